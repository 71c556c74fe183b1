"""How much of a model's attention goes to the part of each clip in which the emotion shows."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_COLUMNS = ("path", "emphasis_start_s", "emphasis_end_s", "intensity")


class Span(NamedTuple):
    """From when to when the emotion shows, in seconds from the clip's beginning."""

    start: float
    end: float


@dataclass(frozen=True)
class Share:
    """What the expressive parts get, on average over clips.

    Attributes:
        clips: how many there are.
        time: share of the clip's time.
        attention: share of the attention.
        ratio: attention over time; an even attention has 1.
    """

    clips: int
    time: float
    attention: float
    ratio: float


def read_spans(conditions: Path) -> dict[str, Span]:
    """The expressive parts of a synthetic corpus, by clip; a neutral clip has none.

    Args:
        conditions: the file conditions.csv of the corpus.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks columns, or a number is none.
    """
    with conditions.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{conditions} must have the columns {', '.join(_COLUMNS)}; missing: "
                f"{', '.join(missing)}"
            )
        try:
            return {
                row["path"]: Span(float(row["emphasis_start_s"]), float(row["emphasis_end_s"]))
                for row in table
                if float(row["intensity"]) > 0
            }
        except ValueError as error:
            raise ValueError(f"{conditions} is damaged: {error}") from error


def within(weights: NDArray[np.float64], seconds: float, span: Span) -> float:
    """How much of some weights lies in a span.

    Args:
        weights: of frames that share a clip out evenly, (T,); one that the span cuts counts in part.
        seconds: of the clip.
        span: of it.
    """
    edges = np.linspace(0, seconds, len(weights) + 1)
    overlap = np.minimum(edges[1:], span.end) - np.maximum(edges[:-1], span.start)
    return float(weights @ (np.clip(overlap, 0, None) / (seconds / len(weights))))


def share(
    attentions: Mapping[str, NDArray[np.float64]],
    seconds: Mapping[str, float],
    spans: Mapping[str, Span],
) -> Share | None:
    """What the expressive parts get of a stream's attention.

    Args:
        attentions: the weights of each clip's frames, (T,), which sum to 1, or to 0 in a clip whose
            stream has no frame to attend to, which does not count.
        seconds: of each clip.
        spans: of the clips that have an expressive part; the others do not count.

    Returns:
        The shares, or None where no clip counts.
    """
    counted = [path for path in attentions if path in spans and attentions[path].any()]
    if not counted:
        return None
    time = np.mean([_part(seconds[path], spans[path]) for path in counted])
    attention = np.mean([within(attentions[p], seconds[p], spans[p]) for p in counted])
    return Share(len(counted), float(time), float(attention), float(attention / time))


def _part(seconds: float, span: Span) -> float:
    return (min(span.end, seconds) - max(span.start, 0.0)) / seconds


def describe(shares: Mapping[str, Share | None]) -> Sequence[str]:
    """The shares of each stream in words, a line each."""
    return [
        f"attention ({stream})".ljust(22)
        + f"{s.attention:.1%} in the expressive {s.time:.1%} of the time: {s.ratio:.2f} times its "
        f"share ({s.clips} clips)"
        for stream, s in shares.items()
        if s
    ]
