"""A labelled corpus of synthetic talking faces: who says what, how it is degraded, and the files of it."""

import csv
import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from avemo import storage
from avemo.synth import degrade, face, voice
from avemo.synth.clip import ClipPlan, Format, write_clip
from avemo.synth.emotions import CLASSES, EMOTIONS, ClassCount
from avemo.synth.script import draw_emphasis, draw_script, throughout

SPLITS = {"train": 0.60, "val": 0.15, "test": 0.25}
CLIPS_PER_SPEAKER = 12
DURATION = (1.6, 2.6)  # s
VERSION = 1  # of the drawing: raise it when equal parameters give other clips
Expression = Literal["part", "whole"]  # of a clip, in which the emotion shows
SAMPLE_RATES = (16000, 24000, 32000, 48000)

MANIFEST = "manifest.csv"
CONDITIONS = "conditions.csv"
PARAMETERS = "parameters.json"


@dataclass(frozen=True)
class Parameters:
    """What a corpus is made from; see `synthesize`."""

    clips: int
    classes: int
    seed: int
    noise: float
    size: int
    fps: int
    sample_rate: int
    expression: Expression = "part"
    version: int = VERSION

    def __post_init__(self) -> None:
        def expect(name: str, ok: bool, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

        expect("classes", self.classes in CLASSES, f"one of {sorted(CLASSES)}")
        least = len(SPLITS) * self.classes
        reason = f"so that each of {', '.join(SPLITS)} has each of {self.classes} classes"
        expect("clips", self.clips >= least, f"at least {least}, {reason}")
        expect("seed", self.seed >= 0, "a whole number, 0 or greater")
        expect(
            "noise", math.isfinite(self.noise) and self.noise >= 0, "a finite number, 0 or greater"
        )
        expect(
            "size", self.size >= 64 and self.size % 2 == 0, "an even number of pixels, at least 64"
        )
        expect("fps", 5 <= self.fps <= 120, "frames per second between 5 and 120")
        expect("expression", self.expression in get_args(Expression), "part or whole")
        expect("sample_rate", self.sample_rate in SAMPLE_RATES, f"one of {SAMPLE_RATES} Hz")

    @property
    def media(self) -> Format:
        return Format(self.size, self.fps, self.sample_rate)


def apportion(total: int, shares: dict[str, float], least: int) -> dict[str, int]:
    """Splits `total` by `shares` (largest remainder), each part at least `least`."""
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    parts = {name: max(least, math.floor(value)) for name, value in exact.items()}
    while (rest := total - sum(parts.values())) != 0:
        step = 1 if rest > 0 else -1
        movable = [name for name in parts if step > 0 or parts[name] > least]
        parts[max(movable, key=lambda name: step * (exact[name] - parts[name]))] += step
    return parts


def plan(parameters: Parameters) -> list[ClipPlan]:
    """Draws the whole corpus without rendering anything.

    Speakers are dealt to the splits first. Inside a split, labels are dealt in rounds of all classes, and every round
    goes to the next speaker, so that labels are balanced to within one and no speaker stands for a label.
    """
    names = CLASSES[parameters.classes]
    sizes = apportion(parameters.clips, SPLITS, len(names))
    plans: list[ClipPlan] = []
    speakers = 0
    for split, size in sizes.items():
        count = max(1, min(size // len(names), round(size / CLIPS_PER_SPEAKER)))
        order = _generator(parameters.seed, 0, len(plans))
        labels: list[str] = []
        while len(labels) < size:
            labels.extend(order.permutation(names).tolist())
        for k, label in enumerate(labels[:size]):
            speaker = speakers + (k // len(names)) % count
            plans.append(_draw_clip(parameters, len(plans), label, speaker, split))
        speakers += count
    return plans


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _draw_clip(
    parameters: Parameters, index: int, label: str, speaker: int, split: str
) -> ClipPlan:
    """Draws clip number `index`."""
    person = _generator(parameters.seed, 1, speaker)
    identity, speaker_voice = face.draw_identity(person), voice.draw_speaker(person)
    rng = _generator(parameters.seed, 2, index)
    emotion = EMOTIONS[label]
    duration = round(rng.uniform(*DURATION) * parameters.fps) / parameters.fps
    emphasis = draw_emphasis(duration, rng)
    if parameters.expression == "whole":  # after the draw, so that all else is as it would be
        emphasis = throughout(duration)
    intensity = 0.0 if label == "neutral" else rng.uniform(0.65, 1.0)
    delivery = voice.draw_delivery(emotion.voice, intensity * speaker_voice.expressivity, rng)
    units = _draw_units(emotion.face, emotion.optional, intensity * identity.expressivity, rng)
    flashes = tuple(
        (
            int(rng.choice([1, 2, 4, 7, 12, 15, 17, 23])),
            rng.uniform(0.1, 0.35),
            rng.uniform(0, duration),
        )
        for _ in range(rng.poisson(1.0))
    )
    name = f"s{speaker:03d}"
    return ClipPlan(
        path=f"clips/{name}/{name}_{index:05d}.mp4",
        label=label,
        speaker=name,
        split=split,
        intensity=intensity,
        script=draw_script(duration, emphasis, delivery, speaker_voice.rate, rng),
        identity=identity,
        scene=face.draw_scene(rng),
        units=units,
        flashes=flashes,
        speaker_voice=speaker_voice,
        delivery=delivery,
        gain_db=rng.normal(0, 2.0),
        audio=degrade.draw_audio(parameters.noise, rng),
        video=degrade.draw_video(parameters.noise, duration, emphasis, rng),
        entropy=(parameters.seed, 3, index),
    )


def _draw_units(
    face: dict[int, float], optional: frozenset[int], strength: float, rng: np.random.Generator
) -> dict[int, float]:
    """One clip's version of an emotion's face: some optional actions missing, each stronger or weaker by itself."""
    units = {}
    for unit, value in face.items():
        present, factor = rng.random() > 0.25, rng.uniform(0.75, 1.2)
        if present or unit not in optional:
            units[unit] = value * strength * factor
    return units


def synthesize(
    out: Path,
    *,
    clips: int = 480,
    classes: ClassCount = 4,
    seed: int = 0,
    noise: float = 1.0,
    workers: int = 2,
    size: int = 160,
    fps: int = 25,
    sample_rate: int = 16000,
    expression: Expression = "part",
) -> Path:
    """Writes a corpus of short synthetic talking-face clips with emotion labels.

    Every clip is an MP4 file (H.264, AAC) of 1.6 to 2.6 s. Besides the clips, `out` gets manifest.csv (path, label,
    speaker, split), conditions.csv (what was drawn for each clip), parameters.json and README.md. Equal parameters
    give equal files on one machine, whatever the number of workers. A run that was broken off is taken up again; a
    finished corpus with the same parameters is left as it is.

    Args:
        out: Folder of the corpus: a new or empty one, or one that an earlier call with the same parameters made.
        clips: Number of clips, at least 3 * classes. About 60, 15 and 25 percent go to train, val and test.
        classes: 4 (angry, happy, neutral, sad) or 7 (those and disgust, fear, surprise).
        seed: Seed of everything that is drawn, 0 or greater.
        noise: Scales how often and how strongly sound and picture are degraded: 0 is clean, 1 the default.
        workers: Number of processes that render.
        size: Width and height of the picture in pixels, even, at least 64.
        fps: Frames per second.
        sample_rate: Audio samples per second: 16000, 24000, 32000 or 48000.
        expression: Show the emotion in a part of each clip, as people do, or in the whole of it: then no moment tells
            more than another, and what a model gains by moments it must not gain here.

    Returns:
        Path of the manifest.

    Raises:
        ValueError: An argument is out of its range.
        FileExistsError: `out` holds a corpus with other parameters, or files that are no corpus.
    """
    parameters = Parameters(clips, classes, seed, float(noise), size, fps, sample_rate, expression)
    if workers < 1:
        raise ValueError(f"workers={workers!r}: expected at least 1")
    out = Path(out)
    manifest = out / MANIFEST
    if _claim(out, parameters) and manifest.exists():
        print(f"{out}: already holds this corpus of {clips} clips, left as it is")
        return manifest
    plans = plan(parameters)
    _render(plans, out, parameters.media, workers)
    _write_csv(out / CONDITIONS, [_conditions(p, size) for p in plans])
    storage.write(out / "README.md", _readme(parameters, plans))
    _write_csv(
        manifest,
        [{"path": p.path, "label": p.label, "speaker": p.speaker, "split": p.split} for p in plans],
    )
    return manifest


def _claim(out: Path, parameters: Parameters) -> bool:
    """Makes `out` the corpus of these parameters; returns whether it was before. Raises FileExistsError."""
    record = out / PARAMETERS
    wanted = asdict(parameters)
    if record.exists():
        # Corpora from before the emotion could show in the whole clip say nothing of it.
        found = {"expression": "part"} | json.loads(record.read_text(encoding="utf-8"))
        if found != wanted:
            names = [name for name in wanted if found.get(name) != wanted[name]]
            differences = "; ".join(
                f"{name} is {found.get(name)!r}, asked for {wanted[name]!r}" for name in names
            )
            raise FileExistsError(
                f"{out} holds a corpus with other parameters ({differences}): choose another folder"
            )
        return True
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} holds files that are no corpus of this command: choose a new or empty folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    storage.write(record, json.dumps(wanted, indent=2) + "\n")
    return False


def _render(plans: list[ClipPlan], out: Path, media: Format, workers: int) -> None:
    """Writes the media files that are not there yet."""
    from tqdm import tqdm

    missing = [p for p in plans if not (out / p.path).exists()]
    with tqdm(
        total=len(plans), initial=len(plans) - len(missing), desc="synth", unit="clip"
    ) as progress:
        if workers == 1:
            with _one_thread():
                for p in missing:
                    write_clip(p, out, media)
                    progress.update()
            return
        # Spawned, since the caller may hold threads that a fork would break.
        with ProcessPoolExecutor(workers, get_context("spawn"), _use_one_thread) as pool:
            futures = [pool.submit(write_clip, p, out, media) for p in missing]
            try:
                for future in as_completed(futures):
                    future.result()
                    progress.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _use_one_thread() -> None:
    """OpenCV's threads cost more than they bring on frames this small."""
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _conditions(p: ClipPlan, size: int) -> dict[str, str]:
    """One row of conditions.csv; `size` is the frames' width, pixels."""

    def number(value: float) -> str:
        return "" if math.isinf(value) else f"{value:.4g}"

    emphasis, video = p.script.emphasis, p.video
    return {
        "path": p.path,
        "duration_s": number(p.script.duration),
        "syllables": str(len(p.script.syllables)),
        "intensity": number(p.intensity),
        "emphasis_start_s": number(max(0.0, emphasis.start)),
        "emphasis_apex_s": number(emphasis.apex),
        "emphasis_end_s": number(min(p.script.duration, emphasis.end)),
        "action_units": " ".join(f"{unit}:{value:.2f}" for unit, value in sorted(p.units.items())),
        "speaker_pitch_hz": number(p.speaker_voice.pitch),
        "pitch_shift_semitones": number(p.delivery.pitch),
        "energy_shift_db": number(p.delivery.energy),
        "recording_gain_db": number(p.gain_db),
        "noise": p.audio.kind,
        "snr_db": number(p.audio.snr_db),
        "blur_px": number(video.blur * size),
        "light": number(video.light),
        "grain": number(video.grain),
        "occlusion": video.occlusion,
        "occluded_s": "" if video.occlusion == "none" else _spans([video.occluded]),
        "missed_s": _spans(video.missed),
    }


def _spans(spans: tuple[degrade.Span, ...] | list[degrade.Span]) -> str:
    return " ".join(f"{begin:.3f}-{end:.3f}" for begin, end in spans)


def _write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write(path, text.getvalue())


_WHEN = {
    "part": "Somewhere inside, for about half the clip, the emotion shows in the face and in the\n"
    "voice at the same time; before and after both are neutral.",
    "whole": "The emotion shows in the face and in the voice from beginning to end.",
}


def _readme(parameters: Parameters, plans: list[ClipPlan]) -> str:
    """README.md of the corpus."""
    p = parameters
    options = {name: str(value) for name, value in asdict(p).items() if name != "version"}
    command = " ".join(
        ["avemo synth --out DIR", *(f"--{name} {value}" for name, value in options.items())]
    )
    rows = []
    for split in SPLITS:
        part = [clip for clip in plans if clip.split == split]
        labels = ", ".join(
            f"{sum(c.label == name for c in part)} {name}" for name in CLASSES[p.classes]
        )
        seconds = sum(clip.script.duration for clip in part)
        rows.append(
            f"| {split} | {len(part)} | {len({c.speaker for c in part})} | {seconds:.0f} s | {labels} |"
        )
    heard = sum(c.audio.kind in degrade.NOISES for c in plans)
    seen = sum(c.video.degraded for c in plans)
    both = sum(c.video.degraded and c.audio.kind in degrade.NOISES for c in plans)
    table = "\n".join(rows)
    return f"""# Synthetic talking faces with emotion labels

Made by

    {command}

(version {p.version} of the drawing). Faces and voices are computed from published tables; no recording of any person
is in here. Use it as you like: it is synthetic and free of rights of third parties. Results on it say how a
method works on this corpus; they say nothing about how well it recognises what people feel.

| split | clips | speakers | length | labels |
|---|---|---|---|---|
{table}

No speaker is in two splits. {p.size}x{p.size} pixels, {p.fps} frames per second, {p.sample_rate} Hz mono;
H.264 and AAC.

- `manifest.csv`: path, label, speaker, split.
- `conditions.csv`: what was drawn for each clip. Times in seconds from its start; `action_units` at the apex as
  number:strength; `snr_db` is the mean power of speech over that of the noise (empty: no noise); `blur_px` is the
  standard deviation of the blur; `missed_s` are the spans without a face.
- `parameters.json`: the parameters above.

## What is in a clip

A person says random syllables. {_WHEN[p.expression]} People differ in pitch, vocal tract, rate, geometry of the
face, skin, hair, resting expression and expressivity; clips differ in intensity, in which facial actions of the
prototype show and how strongly, in pose, light, background and recording level. Neutral clips stress a part too, and
faces move without meaning anything, so that no single cue is proof.

By design some emotions are alike in one modality and differ in the other: angry and happy voices are both high, loud
and bright; sad and neutral faces are both quiet. Of these clips {heard} have a degraded sound (white or pink noise,
babble, hum), {seen} a degraded picture (blur, occlusion, missed face, low light), {both} both.

## Sources

- Faces: Friesen & Ekman, 1983, EMFACS-7; Ekman, Friesen & Hager, 2002, Facial Action Coding System; Lucey et al., 2010,
  The Extended Cohn-Kanade Dataset (CK+), Table 1.
- Voices: Banse & Scherer, 1996, Acoustic profiles in vocal emotion expression; Juslin & Laukka, 2003, Communication of
  emotions in vocal expression and music performance; Murray & Arnott, 1993, Toward the simulation of emotion in
  synthetic speech; for surprise Scherer & Oshinsky, 1977, Cue utilization in emotion attribution from auditory
  stimuli. The direction of each cue is published; its size here is a choice.
- Speech: Peterson & Barney, 1952, Control methods used in a study of the vowels; Rosenberg, 1971, Effect of glottal
  pulse shape on the quality of natural vowels; Klatt, 1980, Software for a cascade/parallel formant synthesizer.
"""
