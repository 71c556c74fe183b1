"""One clip, from its plan to a media file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avemo.synth.degrade import AudioDegradation, VideoDegradation, VideoDegrader, degrade_audio
from avemo.synth.emotions import Voice
from avemo.synth.face import FaceRenderer, Identity, Pose, Scene, Speech
from avemo.synth.script import Script
from avemo.synth.voice import Speaker, articulation, speak


@dataclass(frozen=True)
class Format:
    """Format of the media files: width and height in pixels, frames per second, audio samples per second."""

    size: int = 160
    fps: int = 25
    sample_rate: int = 16000


@dataclass(frozen=True)
class ClipPlan:
    """All that is drawn for one clip; rendering adds only noise from `entropy`.

    Attributes:
        path: of the media file, relative to the corpus, posix.
        label: the emotion.
        speaker: name of the speaker.
        split: train, val or test.
        intensity: strength of the expression at its apex, [0, 1].
        script: what is said and when the emotion shows.
        identity: the speaker's face.
        scene: surroundings and light.
        units: action units at the apex, strength in [0, 1] by FACS number.
        flashes: conversational facial actions that mean nothing: (action unit, strength, apex in s).
        speaker_voice: the speaker's voice.
        delivery: change of the voice at the apex.
        gain_db: recording level, dB.
        audio: noise over the voice.
        video: what happens to the picture.
        entropy: key of the clip's random stream.
    """

    path: str
    label: str
    speaker: str
    split: str
    intensity: float
    script: Script
    identity: Identity
    scene: Scene
    units: dict[int, float]
    flashes: tuple[tuple[int, float, float], ...]
    speaker_voice: Speaker
    delivery: Voice
    gain_db: float
    audio: AudioDegradation
    video: VideoDegradation
    entropy: tuple[int, ...]

    def generator(self, stream: int) -> np.random.Generator:
        """Random generator number `stream` of this clip, the same in whichever process it is made."""
        return np.random.default_rng(
            np.random.SeedSequence(self.entropy[0], spawn_key=(*self.entropy[1:], stream))
        )


def render_audio(plan: ClipPlan, media: Format) -> np.ndarray:
    """The clip's sound: float32 (round(duration * sample_rate),) in [-1, 1]."""
    rng = plan.generator(0)
    speech = speak(plan.script, plan.speaker_voice, plan.delivery, media.sample_rate, rng)
    sound = degrade_audio(speech, plan.audio, media.sample_rate, rng) * 10 ** (plan.gain_db / 20)
    return (sound / max(1.0, np.abs(sound).max() / 0.97)).astype(np.float32)


def _wander(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slow random movement with unit variance, float64 like `times`: three slow sines."""
    rates, phases = rng.uniform(0.15, 0.9, 3), rng.random(3)
    return np.sin(2 * np.pi * (rates * times[:, None] + phases)).sum(1) * np.sqrt(2 / 3)


def _blinks(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Closure of the lids in [0, 1], about one blink in three seconds."""
    closure = np.zeros_like(times)
    for moment in np.cumsum(rng.exponential(3.0, 4)):
        closure = np.maximum(closure, np.clip(1.4 - np.abs(times - moment) / 0.07, 0, 1))
    return closure


def render_video(plan: ClipPlan, media: Format) -> list[np.ndarray]:
    """The clip's frames, each uint8 (size, size, 3) RGB."""
    rng = plan.generator(1)
    times = (np.arange(round(plan.script.duration * media.fps)) + 0.5) / media.fps
    strength = plan.script.emphasis.envelope(times)
    control, jaw, rounding = articulation(plan.script)
    # Loud speech opens the mouth wider.
    jaw = np.interp(times, control, jaw) * 10 ** (0.02 * plan.delivery.energy * strength)
    rounding = np.interp(times, control, rounding)
    yaw, pitch, roll = (
        size * _wander(times, rng) + offset
        for size, offset in zip((0.06, 0.04, 0.025), rng.normal(0, (0.08, 0.05, 0.03)), strict=True)
    )
    shift = 0.03 * np.stack([_wander(times, rng), _wander(times, rng)], axis=1)
    gaze = np.clip(0.5 * np.stack([_wander(times, rng), 0.5 * _wander(times, rng)], axis=1), -1, 1)
    blink = _blinks(times, rng)
    renderer = FaceRenderer(plan.identity, plan.scene, media.size)
    degrade = VideoDegrader(plan.video, media.size, rng)
    frames = []
    for k, time in enumerate(times):
        units = {unit: value * strength[k] for unit, value in plan.units.items()}
        for unit, value, apex in plan.flashes:
            units[unit] = units.get(unit, 0.0) + value * max(0.0, 1 - ((time - apex) / 0.3) ** 2)
        units[45] = blink[k]
        pose = Pose(yaw[k], pitch[k], roll[k], (shift[k, 0], shift[k, 1]))
        speech = Speech(float(np.clip(jaw[k], 0, 1.3)), rounding[k], (gaze[k, 0], gaze[k, 1]))
        frame = renderer.empty() if degrade.missed(time) else renderer.render(units, pose, speech)
        if degrade.occluded(time):
            frame = degrade.occlude(frame, time, renderer.landmarks(units, pose, speech))
        frames.append(degrade.expose(frame))
    return frames


def write_clip(plan: ClipPlan, root: Path, media: Format) -> None:
    """Renders the clip and writes it to `root / plan.path`, under another name until it is complete."""
    path = root / plan.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    encode(part, render_video(plan, media), render_audio(plan, media), media)
    part.replace(path)


def encode(path: Path, frames: list[np.ndarray], sound: np.ndarray, media: Format) -> None:
    """Writes frames and sound as MP4 with H.264 and AAC.

    Single-threaded encoders and no date or version in the file: equal input gives equal bytes.

    Args:
        path: of the file, whatever its suffix.
        frames: uint8 (size, size, 3) RGB each.
        sound: float32 (samples,) in [-1, 1].
        media: rates and size.
    """
    import av

    with av.open(
        str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}
    ) as container:
        video = container.add_stream("libx264", rate=media.fps)
        video.width = video.height = media.size
        video.pix_fmt = "yuv420p"
        video.options = {"preset": "ultrafast", "crf": "20", "threads": "1", "bf": "0"}
        video.codec_context.thread_count = 1
        audio = container.add_stream("aac", rate=media.sample_rate, layout="mono")
        audio.bit_rate = 64000
        audio.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        samples.sample_rate = media.sample_rate
        samples.pts = 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
