"""What goes wrong with a recording: noise over the voice; blur, occlusion, missed faces and low light over the face.

The two modalities are hit independently, so that a clip may have a good picture and a bad sound, the other way round,
both or neither.
"""

import math
from dataclasses import dataclass

import numpy as np

from avemo.synth.emotions import Voice
from avemo.synth.script import Emphasis, draw_emphasis, draw_script
from avemo.synth.voice import draw_speaker, speak

HIT = 0.32  # probability at noise = 1 that one modality of a clip is degraded
NOISES = ("white", "pink", "babble", "hum")
OCCLUSIONS = ("mouth", "eyes", "half")

Span = tuple[float, float]  # seconds
_ENTRY = 0.12  # s that an occluding object takes to come in or to leave


@dataclass(frozen=True)
class AudioDegradation:
    """Noise over the voice.

    Attributes:
        kind: one of NOISES, or "room" for the faint noise of a good recording, or "none".
        snr_db: mean power of the speech over that of the noise, dB; infinite for "none".
    """

    kind: str = "none"
    snr_db: float = float("inf")


@dataclass(frozen=True)
class VideoDegradation:
    """What happens to the picture.

    Attributes:
        grain: standard deviation of the sensor's noise, grey levels of 255.
        blur: standard deviation of a Gaussian blur over all frames, as a fraction of the frame's width.
        light: gain on all colours; below 1 the grain grows with the gain that the camera adds.
        occlusion: one of OCCLUSIONS or "none": what is hidden by an object in front of the face.
        occluded: when, s; (0, 0) for never.
        missed: spans in which the face is out of the frame, s.
    """

    grain: float = 0.0
    blur: float = 0.0
    light: float = 1.0
    occlusion: str = "none"
    occluded: Span = (0.0, 0.0)
    missed: tuple[Span, ...] = ()

    @property
    def degraded(self) -> bool:
        """Whether more than grain happens."""
        return bool(self.blur or self.light != 1 or self.occlusion != "none" or self.missed)


def _hit(noise: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < min(0.95, HIT * noise))


def draw_audio(noise: float, rng: np.random.Generator) -> AudioDegradation:
    """Draws the noise of one clip: `noise` scales how likely and how loud (0 none, 1 default)."""
    hit, kind = _hit(noise, rng), str(rng.choice(NOISES))
    loss, faint = rng.uniform(14, 26), rng.uniform(5, 15)
    if noise == 0:
        return AudioDegradation()
    if hit:
        return AudioDegradation(kind, 20.0 - loss * min(noise, 1.5))
    return AudioDegradation("room", 40.0 - faint * min(noise, 1.5))


def draw_video(
    noise: float, duration: float, emphasis: Emphasis, rng: np.random.Generator
) -> VideoDegradation:
    """Draws what happens to the picture of one clip.

    Args:
        noise: scales how likely and how strong (0 none, 1 default).
        duration: of the clip, s.
        emphasis: occlusions and missed faces are drawn around it, where they matter.
        rng: source of the draw.
    """
    hit, kind = (
        _hit(noise, rng),
        rng.choice(["blur", "occlusion", "missed", "light"], p=[0.35, 0.3, 0.2, 0.15]),
    )
    strength = rng.uniform(0.6, 1.0) * min(noise, 1.5)
    centre = emphasis.apex + rng.normal(0, 0.12)
    share = min(0.5, 0.55 * strength) * duration
    span = (max(0.0, centre - share / 2), min(duration, centre + share / 2))
    occlusion, grain = str(rng.choice(OCCLUSIONS)), rng.uniform(0.8, 2.0) * min(noise, 1.5)
    if not hit:
        return VideoDegradation(grain=grain)
    if kind == "blur":
        return VideoDegradation(grain=grain, blur=0.02 * strength)
    if kind == "occlusion":
        return VideoDegradation(grain=grain, occlusion=occlusion, occluded=span)
    if kind == "missed":
        return VideoDegradation(grain=grain, missed=(span,))
    return VideoDegradation(grain=grain * 2, blur=0.008 * strength, light=1 / (1 + 1.2 * strength))


def noise_of(kind: str, samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of one kind (see AudioDegradation) at unit power: float64 (samples,)."""
    if kind == "hum":
        times = np.arange(samples) / rate
        mains = rng.choice([50.0, 60.0])
        noise = 0.05 * rng.normal(size=samples)
        for n in range(1, 25):
            noise += (
                rng.uniform(0.3, 1.0)
                / n**0.6
                * np.sin(2 * np.pi * (n * mains * times + rng.random()))
            )
    elif kind == "babble":
        noise = _babble(samples, rate, rng)
    else:
        slope = {"white": 0.0, "pink": 0.5, "room": 0.75}[kind]
        spectrum = np.fft.rfft(rng.normal(size=samples))
        frequency = np.fft.rfftfreq(samples, 1 / rate)
        noise = np.fft.irfft(spectrum / np.maximum(frequency, 40.0) ** slope, samples)
    return noise / np.sqrt(np.mean(noise**2))


def _babble(samples: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Several people talking at once: neutral voices, each heard twice at a random shift."""
    mixture = np.zeros(samples)
    duration = samples / rate
    for _ in range(3):
        speaker = draw_speaker(rng)
        script = draw_script(duration, draw_emphasis(duration, rng), Voice(), speaker.rate, rng)
        speech = speak(script, speaker, Voice(), rate, rng)
        for shift in rng.integers(0, samples, 2):
            mixture += np.roll(speech, int(shift))
    return mixture


def degrade_audio(
    speech: np.ndarray, degradation: AudioDegradation, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Adds noise at the drawn ratio.

    Args:
        speech: float64 (samples,).
        degradation: kind and ratio of the noise.
        rate: sampling rate, Hz.
        rng: source of the noise.

    Returns:
        float64 (samples,).
    """
    if degradation.kind == "none":
        return speech
    power = np.mean(speech**2) / 10 ** (degradation.snr_db / 10)
    return speech + np.sqrt(power) * noise_of(degradation.kind, len(speech), rate, rng)


class VideoDegrader:
    """Degrades the frames of one clip, one after the other.

    Args:
        degradation: what happens.
        size: width and height of the frames, pixels.
        rng: source of grain and of the occluding object's look.
    """

    def __init__(self, degradation: VideoDegradation, size: int, rng: np.random.Generator) -> None:
        self.degradation = degradation
        self._size = size
        self._rng = rng
        self._object = tuple(float(c) for c in rng.uniform(40, 200) + rng.normal(0, 15, 3))
        self._slant = rng.uniform(-0.12, 0.12)
        deviates = rng.normal(size=(size + 32, size + 32, 3))
        self._grain = np.round(deviates * degradation.grain).astype(np.int16)

    def missed(self, time: float) -> bool:
        """Whether the face is out of the frame at `time` (s)."""
        return any(begin <= time < end for begin, end in self.degradation.missed)

    def occluded(self, time: float) -> bool:
        """Whether something is in front of the face at `time` (s)."""
        begin, end = self.degradation.occluded
        return self.degradation.occlusion != "none" and begin <= time < end

    def occlude(
        self, frame: np.ndarray, time: float, landmarks: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Hides a part of the face behind a slanted bar that comes in from the side and leaves again.

        Args:
            frame: uint8 (size, size, 3), RGB; not changed.
            time: of the frame, s, inside the occluded span.
            landmarks: of the face in it, as FaceRenderer.landmarks gives them.

        Returns:
            uint8 (size, size, 3).
        """
        import cv2

        begin, end = self.degradation.occluded
        entered = min(1.0, (time - begin) / _ENTRY, (end - time) / _ENTRY)
        eyes, lips = landmarks["eyes"], landmarks["lips"].mean(0)
        middle = eyes.mean(0)
        apart = float(np.linalg.norm(eyes[0] - eyes[1]))
        side = 1 if self._slant > 0 else -1
        x, y, width, height = {
            "mouth": (*lips, 2.4 * apart, 0.9 * apart),
            "eyes": (*(middle - (0, 0.15 * apart)), 2.6 * apart, 0.85 * apart),
            "half": (*(0.5 * (middle + lips) + (side * 0.62 * apart, 0)), 1.2 * apart, 3.2 * apart),
        }[self.degradation.occlusion]
        away = (1 - entered) * self._size
        bar = (
            (float(x + side * away), float(y + 0.3 * away)),
            (width, height),
            math.degrees(self._slant),
        )
        frame = frame.copy()
        corners = np.rint(cv2.boxPoints(bar) * 8).astype(np.int32)
        cv2.fillPoly(frame, [corners], self._object, cv2.LINE_AA, 3)
        return frame

    def expose(self, frame: np.ndarray) -> np.ndarray:
        """What the camera makes of `frame` (uint8 (size, size, 3)): blur, low light, grain."""
        import cv2

        d = self.degradation
        if d.blur:
            frame = cv2.GaussianBlur(frame, (0, 0), d.blur * self._size)
        if d.light != 1:
            frame = cv2.convertScaleAbs(frame, alpha=d.light)
        if d.grain:
            y, x = self._rng.integers(0, 32, 2)
            grain = self._grain[y : y + self._size, x : x + self._size]
            frame = cv2.add(frame, grain, dtype=cv2.CV_8U)
        return frame
