"""Names the emotion in media files, and shows where the model looked and listened."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avemo.data.features import (
    FULL_BINS,
    Clip,
    FeatureConfig,
    Window,
    extract_windows,
    fill_missing,
    levels_of,
)
from avemo.data.limits import LONGEST_WORK_SECONDS, MOST_MEMORY, WINDOW_SECONDS
from avemo.data.reasons import MediaError, refusal
from avemo.data.worker import WorkerDeath, ended, process_all
from avemo.text import printable

if TYPE_CHECKING:
    from avemo.evaluation.plots import Stretch
    from avemo.training.checkpoint import Checkpoint

_PICTURE_COLUMNS = 200  # of the spectrogram, per window
_BAR = 30  # characters of a probability of 1
_LONGEST_NAME = 200  # bytes of a picture's name; file systems take 255, or 143 where encrypted


@dataclass(frozen=True)
class Prediction:
    """What a model says of one clip.

    Attributes:
        clip: the media file.
        probabilities: by class, the likeliest first.
        picture: the picture of the attention, or None if it could not be drawn.
        skipped: windows that had to be left out, by the category of the reason.
    """

    clip: Path
    probabilities: dict[str, float]
    picture: Path | None
    skipped: dict[str, int]


def predict(
    checkpoint: Path,
    clips: list[Path],
    *,
    out: Path = Path("predictions"),
    detector: Path | None = None,
) -> list[Prediction]:
    """Prints the class probabilities of media files and saves pictures of the attention.

    A clip longer than those that the model was trained with is cut into equal windows that are not
    longer; the probabilities are the average over the windows, weighted by their duration. So
    memory stays bounded for a recording of any length. A clip that cannot be used is reported with
    the reason, and the others go on.

    Args:
        checkpoint: a trained model (.safetensors).
        clips: media files of any kind; without a picture if the model only listens, without sound if
            it only looks, without either one if it has learned to do without (`modality_dropout`).
        out: folder for the pictures; made if needed.
        detector: the YuNet model (.onnx) that the training cache was made with, if it was.

    Returns:
        The predictions of the clips that could be used.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is no checkpoint, the detector is another one than in training, or no clip
            could be used.
    """
    from avemo.data.faces import load_detector
    from avemo.training import checkpoint as checkpoints

    if not clips:
        raise ValueError("clips must name at least one media file")
    trained = checkpoints.load(checkpoint)
    finder = load_detector(detector).name
    if finder != trained.features.detector:
        raise ValueError(
            f"detector must be {trained.features.detector}, which the model was trained with, "
            f"got {finder}"
        )
    out.mkdir(parents=True, exist_ok=True)
    predictions: list[Prediction] = []
    failed: Counter[str] = Counter()
    pictures = _picture_paths(clips, out)
    for (number, clip), windows in _decoded(trained, clips, detector):
        try:
            prediction = _predict_clip(trained, clip, pictures[number], windows)
        except MediaError as error:
            failed[error.category] += 1
            print(printable(f"{clip}: cannot be used: {error}"), file=sys.stderr)
            continue
        predictions.append(prediction)
        print(_table(prediction))
    if failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(failed.items()))
        print(f"{len(predictions)} of {len(clips)} clips predicted; errors: {reasons}")
    if not predictions:
        raise ValueError(f"none of the {len(clips)} clips could be used")
    return predictions


def _decoded(
    trained: Checkpoint, clips: list[Path], detector: Path | None
) -> Iterator[tuple[tuple[int, Path], Iterator[Window | MediaError]]]:
    """Each clip, by its number and path, with its windows as another process decodes them: what
    kills a decoder costs its clip alone."""
    from avemo.models import required_streams

    data = trained.config.data
    seconds = data.max_seconds or WINDOW_SECONDS
    needs = required_streams(trained.model, data.augment.modality_dropout)
    results = process_all(
        enumerate(clips),
        _decoder,
        (trained.features, detector, seconds, needs),
        workers=1,
        timeout=LONGEST_WORK_SECONDS,
        memory=MOST_MEMORY,
    )
    for clip, group in itertools.groupby(results, key=itemgetter(0)):
        yield clip, (ended(r) if isinstance(r, WorkerDeath) else r for _, r in group)


def _decoder(
    features: FeatureConfig, detector: Path | None, seconds: float, needs: tuple[str, ...]
) -> Callable[[tuple[int, Path]], Iterator[Window | MediaError]]:
    """What the other process does with a clip."""
    from avemo.data.faces import load_detector

    finder = load_detector(detector)

    def decode(item: tuple[int, Path]) -> Iterator[Window | MediaError]:
        try:
            yield from extract_windows(item[1], features, finder, seconds=seconds, needs=needs)
        except Exception as error:
            yield refusal(error)

    return decode


def _predict_clip(
    trained: Checkpoint, path: Path, picture: Path, windows: Iterator[Window | MediaError]
) -> Prediction:
    from tqdm import tqdm

    from avemo.evaluation.plots import draw_attention, save_picture

    total = np.zeros(len(trained.classes))
    stretches: list[Stretch] = []
    reasons: list[MediaError] = []
    shown = printable(path.name)
    for window in tqdm(windows, shown, unit="window", leave=False, disable=None):
        if isinstance(window, MediaError):  # of the file as a whole
            raise window
        start, duration, clip = window
        if isinstance(clip, MediaError):
            reasons.append(clip)
            continue
        probabilities, stretch = _run(trained, clip, start, duration)
        total += duration * probabilities
        stretches.append(stretch)
    if not stretches:
        raise reasons[0]
    order = np.argsort(-total, kind="stable")
    ranked = {trained.classes[i]: float(total[i] / total.sum()) for i in order}
    best = next(iter(ranked))
    draw = partial(draw_attention, f"{path.name}: {best}", list(ranked.items()), stretches)
    drawn = save_picture(picture, draw, dpi=110)
    skipped = dict(Counter(r.category for r in reasons))
    return Prediction(path, ranked, picture if drawn else None, skipped)


def _run(
    trained: Checkpoint, clip: Clip, start: float, duration: float
) -> tuple[NDArray[np.float64], Stretch]:
    """The model's answer to one window, as probabilities and for the picture."""
    import torch

    from avemo.data.inputs import collate, to_sample
    from avemo.evaluation.plots import Stretch, attended_frames

    batch = collate([to_sample(clip, trained.features)])
    with torch.inference_mode():
        output = trained.model(batch.audio, batch.audio_lengths, batch.video, batch.video_lengths)
    probabilities = output.logits[0].double().softmax(0).numpy()
    audio, video = (
        None if weights is None else weights[0].double().numpy()
        for weights in (output.audio_attention, output.video_attention)
    )
    features = trained.features
    clip = fill_missing(clip, features)
    return probabilities, Stretch(
        start=start,
        duration=duration,
        spectrogram=_shrink(levels_of(clip.audio, features)),
        top_hertz=FULL_BINS * features.bin_hz,
        faces={i: clip.video[i].copy() for i in attended_frames(video, len(clip.video))},
        seen=clip.valid,
        audio_attention=audio,
        video_attention=video,
    )


def _shrink(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Averages frames until a window has no more of them than a picture can show."""
    parts = np.array_split(levels, min(len(levels), _PICTURE_COLUMNS))
    return np.stack([part.mean(axis=0) for part in parts])


def _picture_paths(clips: list[Path], out: Path) -> list[Path]:
    """A name for each picture: its clip's.

    Where two clips share it, or it is too long for a file, a part of it and a number that follows
    from the clip's path: the same in every call, and no other clip's.
    """
    names: dict[str, Path] = {}  # in lower case, as some file systems take them, to whose it is
    places = [Path(os.path.abspath(clip)) for clip in clips]
    for place in places:
        if len(os.fsencode(place.stem)) <= _LONGEST_NAME:
            names.setdefault(place.stem.lower(), place)
    paths = []
    for place in places:
        name = place.stem
        if names.get(name.lower()) != place:
            digest = hashlib.sha256(os.fsencode(place)).hexdigest()
            short = name
            while len(os.fsencode(short)) + 1 + len(digest) > _LONGEST_NAME:
                short = short[:-1]
            candidates = (f"{short}-{digest[:digits]}" for digits in range(8, 65, 8))
            name = next(n for n in candidates if names.setdefault(n.lower(), place) == place)
        paths.append(out / f"{name}.png")
    return paths


def _table(prediction: Prediction) -> str:
    ranked = [(printable(name), value) for name, value in prediction.probabilities.items()]
    width = max(len(name) for name, _ in ranked)
    lines = [printable(str(prediction.clip))]
    for name, value in ranked:
        lines.append(f"  {name:<{width}}  {value:6.1%}  {'#' * round(_BAR * value)}".rstrip())
    for reason, count in sorted(prediction.skipped.items()):
        lines.append(f"  windows left out: {count} ({reason})")
    if prediction.picture:
        lines.append(printable(f"  attention: {prediction.picture}"))
    return "\n".join(lines)
