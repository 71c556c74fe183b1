"""What a clip shows over time, as subtitles and as a TextGrid of Praat."""

from __future__ import annotations

import html
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from avemo.text import printable

if TYPE_CHECKING:  # what is wrong with a command's arguments is told without NumPy
    import numpy as np
    from numpy.typing import NDArray

_INSTANT = 1e-6  # seconds; what is shorter comes of rounding


class Moment(NamedTuple):
    """A stretch of time and what the windows over it say on average.

    Attributes:
        start: seconds.
        end: seconds.
        probabilities: float64 (classes,).
    """

    start: float
    end: float
    probabilities: NDArray[np.float64]


class Cue(NamedTuple):
    """A stretch of time in which one emotion is the likeliest throughout.

    Attributes:
        start: seconds.
        end: seconds.
        emotion: its name.
        probability: its mean.
    """

    start: float
    end: float
    emotion: str
    probability: float


def moments(windows: Sequence[tuple[float, float, NDArray[np.float64]]]) -> list[Moment]:
    """The time line of windows that may overlap: at each time the mean of those over it.

    Args:
        windows: start, duration and probabilities, in the order of their starts and of their ends.

    Returns:
        Stretches in order, with gaps where there is no window.
    """
    starts = [start for start, _, _ in windows]
    ends = [start + duration for start, duration, _ in windows]
    found = []
    for left, right in itertools.pairwise(sorted({*starts, *ends})):
        middle = (left + right) / 2
        over = [p for _, _, p in windows[bisect_right(ends, middle) : bisect_left(starts, middle)]]
        if over and right - left > _INSTANT:
            found.append(Moment(left, right, sum(over[1:], over[0]) / len(over)))
    return found


def cues(line: Sequence[Moment], classes: Sequence[str]) -> list[Cue]:
    """Joins the stretches of a time line that follow each other with the same emotion."""
    found: list[Cue] = []
    for start, end, probabilities in line:
        best = int(probabilities.argmax())
        cue = Cue(start, end, classes[best], float(probabilities[best]))
        last = found[-1] if found else None
        if last and last.emotion == cue.emotion and abs(last.end - start) < _INSTANT:
            lengths = (last.end - last.start, end - start)
            parts = zip(lengths, (last.probability, cue.probability), strict=True)
            mean = sum(length * probability for length, probability in parts) / sum(lengths)
            found[-1] = Cue(last.start, end, cue.emotion, mean)
        else:
            found.append(cue)
    return found


def srt(line: Sequence[Cue]) -> str:
    """SubRip subtitles."""
    blocks = (
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_caption(cue)}\n"
        for number, cue in enumerate(line, 1)
    )
    return "\n".join(blocks)


def vtt(line: Sequence[Cue]) -> str:
    """WebVTT subtitles."""
    blocks = (
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{html.escape(_caption(cue), quote=False)}\n"
        for cue in line
    )
    return "\n".join(["WEBVTT\n", *blocks])


def textgrid(line: Sequence[Cue], end: float) -> str:
    """A TextGrid of Praat with the tiers "emotion" and "probability" from 0 to `end` seconds."""
    intervals = list(_gapless(line, end))
    tiers = {
        "emotion": [cue.emotion for cue in intervals],
        "probability": [f"{cue.probability:.3f}" if cue.emotion else "" for cue in intervals],
    }
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += [
        "xmin = 0",
        f"xmax = {end:.6f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, texts) in enumerate(tiers.items(), 1):
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
        ]
        lines += ["        xmin = 0", f"        xmax = {end:.6f}"]
        lines += [f"        intervals: size = {len(intervals)}"]
        for place, (cue, text) in enumerate(zip(intervals, texts, strict=True), 1):
            shown = printable(text).replace('"', '""')
            lines += [f"        intervals [{place}]:", f"            xmin = {cue.start:.6f}"]
            lines += [f"            xmax = {cue.end:.6f}", f'            text = "{shown}"']
    return "\n".join(lines) + "\n"


def _gapless(line: Sequence[Cue], end: float) -> Iterator[Cue]:
    at = 0.0
    for cue in [*line, Cue(end, end, "", 0.0)]:
        if cue.start - at > _INSTANT:
            yield Cue(at, cue.start, "", 0.0)
        if cue.end > cue.start:
            yield cue
        at = cue.end


def _caption(cue: Cue) -> str:
    return f"{printable(cue.emotion)} {cue.probability:.0%}"


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
