"""From decoded windows to the predictions of clips."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avemo.data.features import (
    FULL_BINS,
    Clip,
    FeatureConfig,
    fill_missing,
    levels_of,
    quantize,
)
from avemo.data.reasons import MediaError
from avemo.evaluation import timeline
from avemo.evaluation.answers import Answer, Asker
from avemo.evaluation.canvas import Canvas, Png, Point, Svg
from avemo.evaluation.decoding import Finished, Piece, Windows
from avemo.evaluation.picture import FACES, Scene, Stretch, bits, draw
from avemo.evaluation.predict import Prediction
from avemo.models import needed_streams
from avemo.storage import write
from avemo.text import printable
from avemo.training.checkpoint import Checkpoint

_COLUMNS = 200  # of the spectrogram in a picture, for a window

_CANVASES: dict[str, tuple[Callable[[Point, str], Canvas], str]] = {
    "svg": (Svg, ".svg"),
    "png": (partial(Png, theme="light"), ".png"),
    "png-dark": (partial(Png, theme="dark"), ".png"),
}
_FILES = {".srt": timeline.srt, ".vtt": timeline.vtt}


@dataclass
class _Found:
    """What is known of a clip so far."""

    windows: list[tuple[float, float, NDArray[np.float64]]] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    reasons: list[MediaError] = field(default_factory=list)
    end: float = 0.0


def results(
    trained: Checkpoint,
    clips: Sequence[Path],
    pieces: Iterator[tuple[int, Piece | Finished]],
    windows: Windows,
    places: Sequence[Path],
    pictures: str,
) -> Iterator[tuple[Path, Prediction | MediaError]]:
    """What comes of each clip, in their order.

    Args:
        trained: the model.
        clips: their files.
        pieces: their windows, each with the clip's number.
        windows: how the clips were cut.
        places: paths of what is written of each clip, without suffixes.
        pictures: a kind of them, or "none".
    """
    asker = Asker(trained.model, trained.features, needed_streams(trained.model))
    open_clips: dict[int, _Found] = {}
    done: dict[int, Prediction | MediaError] = {}
    following = 0
    drawn, lined = pictures != "none", windows.hop is not None
    for number, piece in pieces:
        found = open_clips.setdefault(number, _Found())
        if isinstance(piece, Piece):
            found.end = piece.start + piece.duration
            if isinstance(piece.clip, MediaError):
                found.reasons.append(piece.clip)
                continue
            answer = asker(piece.clip, hide=drawn and not lined)
            found.windows.append((piece.start, piece.duration, answer.probabilities))
            if drawn:
                found.stretches.append(_stretch(piece, piece.clip, answer, trained.features, lined))
            continue
        del open_clips[number]
        place = (clips[number], places[number])
        done[number] = piece.error or _concluded(trained, found, *place, lined, pictures)
        while following in done:
            yield clips[following], done.pop(following)
            following += 1


def _concluded(
    trained: Checkpoint, found: _Found, clip: Path, place: Path, lined: bool, pictures: str
) -> Prediction | MediaError:
    """What all windows of a clip come to."""
    if not found.windows:
        return found.reasons[0]
    total = np.zeros(len(trained.classes))
    for _, duration, probabilities in found.windows:
        total += duration * probabilities
    mean = total / total.sum()
    order = np.argsort(-total, kind="stable")
    line = timeline.moments(found.windows) if lined else []
    cues = timeline.cues(line, trained.classes)
    files = _write_timeline(cues, found.end, place) if lined else ()
    picture = None
    if pictures != "none":
        scene = Scene(clip.name, trained.classes, mean, found.stretches, line, cues)
        picture = _save(scene, place, pictures)
    return Prediction(
        clip,
        {trained.classes[i]: float(total[i] / total.sum()) for i in order},
        picture,
        dict(Counter(reason.category for reason in found.reasons)),
        line,
        files,
    )


def _write_timeline(cues: list[timeline.Cue], end: float, place: Path) -> tuple[Path, ...]:
    texts = {suffix: form(cues) for suffix, form in _FILES.items()}
    texts[".TextGrid"] = timeline.textgrid(cues, end)
    files = []
    for suffix, text in texts.items():
        file = place.with_name(place.name + suffix)
        write(file, text)
        files.append(file)
    return tuple(files)


def _save(scene: Scene, place: Path, kind: str) -> Path | None:
    """Draws a picture and saves it; one that cannot be drawn is told and stops nothing."""
    make, suffix = _CANVASES[kind]
    path = place.with_name(place.name + suffix)

    try:
        write(path, draw(scene, make))
    except Exception as error:  # the numbers are what counts
        reason = printable(f"{path}: no picture: {type(error).__name__}: {error}")
        print(reason, file=sys.stderr)
        return None
    return path


def _stretch(
    piece: Piece, clip: Clip, answer: Answer, features: FeatureConfig, lined: bool
) -> Stretch:
    """What a picture shows of a window: of a time line only what that has."""
    clip = fill_missing(clip, features)
    given = {"audio": answer.audio_attention, "video": answer.video_attention}
    attention = {name: weights for name, weights in given.items() if weights is not None}
    hidden = answer.hidden
    return Stretch(
        start=piece.start,
        duration=piece.duration,
        levels=np.zeros((1, 1), np.uint8)
        if lined
        else _shrunk(quantize(levels_of(clip.audio, features), features)),
        top_hertz=FULL_BINS * features.bin_hz,
        faces={} if lined else _faces(clip, attention.get("video")),
        seen=clip.valid,
        peaks=piece.peaks,
        frame=piece.frame,
        attention={} if lined else attention,
        gain={name: bits(answer.probabilities, h.parts) for name, h in hidden.items()},
        whole={name: h.whole for name, h in hidden.items()},
    )


def _faces(clip: Clip, weights: NDArray[np.float64] | None) -> dict[int, NDArray[np.uint8]]:
    """Those worth showing, if there are any."""
    if not clip.valid.any():
        return {}
    return {i: clip.video[i].copy() for i in attended_frames(weights, len(clip.video))}


def attended_frames(weights: NDArray[np.float64] | None, count: int) -> list[int]:
    """Frames worth showing: the one of the highest attention in each of equal parts.

    Args:
        weights: attention, (count,), or None for an even one.
        count: number of frames.
    """
    weights = np.ones(count) if weights is None else weights
    number = min(count, FACES)
    part = (np.arange(count) + 0.5) * number // count
    frames = np.arange(count)
    return [int(frames[part == n][np.argmax(weights[part == n])]) for n in range(number)]


def _shrunk(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Averages frames until a window has no more of them than a picture can show."""
    parts = np.array_split(levels, min(len(levels), _COLUMNS))
    return np.stack([part.mean(axis=0) for part in parts]).astype(np.uint8)
