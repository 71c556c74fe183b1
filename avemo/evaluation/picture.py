"""The picture of a prediction: which second decided, and which stream.

What decided is found by hiding: a part of a stream is taken away, and the model is asked again.
A bar shows what that does to the emotion that was named, in bits of its probability: upwards, the part
spoke for it.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from avemo.evaluation.canvas import SERIES, Canvas, Point
from avemo.evaluation.timeline import Cue, Moment
from avemo.text import printable

FACES = 10
_WIDTH, _LEFT, _RIGHT, _SIDE = 1200.0, 110.0, 905.0, 960.0
_COLORS = {"video": "face", "audio": "voice"}
_NAMES = {"video": "face", "audio": "voice"}
_MOST_CUES = 4
_LEAST = 1e-9  # a probability below it is as good as none


@dataclass(frozen=True)
class Stretch:
    """A stretch of a clip that the model saw at once.

    Attributes:
        start: seconds.
        duration: seconds.
        levels: spectrogram, uint8 (T, F), evenly spread over the stretch.
        top_hertz: the frequency at the upper edge of the spectrogram.
        faces: some of its T_v video frames by their number, uint8 (S, S).
        seen: bool (T_v,), whether there was a face.
        peaks: the loudest of the waveform, float32 (N,), evenly spread.
        frame: the picture in its middle, uint8 (H, W), or None.
        attention: by stream, float (T,), sums to 1; of the streams that the model attends to.
        gain: by stream, what each of equal parts in time added to each class, bits (parts, classes).
        whole: by stream, the probabilities without it, (classes,).
    """

    start: float
    duration: float
    levels: NDArray[np.uint8]
    top_hertz: float
    faces: dict[int, NDArray[np.uint8]]
    seen: NDArray[np.bool_]
    peaks: NDArray[np.float32]
    frame: NDArray[np.uint8] | None
    attention: dict[str, NDArray[np.float64]]
    gain: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    whole: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def end(self) -> float:
        return self.start + self.duration


class Part(NamedTuple):
    """A part of a stream, and the bits that it added to the emotion that was named."""

    stream: str
    start: float
    end: float
    bits: float


@dataclass(frozen=True)
class Scene:
    """What a picture is of.

    Attributes:
        name: of the clip.
        classes: the emotions, in the order of the stretches' arrays.
        probabilities: of the clip as a whole, (classes,).
        stretches: the clip's parts in order; parts that could not be used may be missing.
        line: the time line of windows, and
        cues: what it comes to, if windows were asked for.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    stretches: Sequence[Stretch]
    line: Sequence[Moment] = ()
    cues: Sequence[Cue] = ()

    @property
    def best(self) -> int:
        return int(np.argmax(self.probabilities))

    @property
    def streams(self) -> list[str]:
        """Those that were hidden, faces first."""
        return [name for name in _COLORS if all(name in s.gain for s in self.stretches)]

    def parts(self) -> list[Part]:
        """All parts of all streams, in time."""
        found = []
        for stretch, stream in itertools.product(self.stretches, self.streams):
            bits = stretch.gain[stream][:, self.best]
            edges = np.linspace(stretch.start, stretch.end, len(bits) + 1)
            pairs = itertools.pairwise(edges.tolist())
            found += [Part(stream, *e, float(b)) for e, b in zip(pairs, bits, strict=True)]
        return found

    def without(self, stream: str) -> NDArray[np.float64]:
        """The probabilities of the clip without a stream."""
        rows = [s.whole[stream] for s in self.stretches]
        return np.average(rows, axis=0, weights=[s.duration for s in self.stretches])


def bits(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much larger the probabilities are than without something, in bits: (C,) and (..., C) to (..., C)."""
    return np.log2(np.maximum(before, _LEAST) / np.maximum(after, _LEAST))


def draw(scene: Scene, canvas: Callable[[Point, str], Canvas]) -> bytes:
    """Draws faces and voice over one time axis, with what each second of either did.

    Args:
        scene: what is drawn.
        canvas: makes a canvas of a size, with a title.

    Returns:
        The file's content.
    """
    rows = _timeline_rows(scene) if scene.line else _decision_rows(scene)
    top = 114.0
    places = []
    for height, row in rows:
        places.append((top, height, row))
        top += height + 16
    size = (_WIDTH, max(top + 36, 330))
    said = f"{_shown(scene.name, 60)}: {printable(scene.classes[scene.best])}"
    on = canvas(size, f"{said}. {_why(scene)}")
    axis = _Axis(scene.stretches)
    _headline(on, scene)
    for at, height, row in places:
        row(on, axis, at, height)
    axis.ticks(on, top - 8)
    _sidebar(on, scene)
    return on.finished()


class _Axis:
    """Time to places."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self.start, self.end = stretches[0].start, stretches[-1].end

    def __call__(self, seconds: float) -> float:
        share = (seconds - self.start) / (self.end - self.start)
        return _LEFT + share * (_RIGHT - _LEFT)

    def span(self, start: float, end: float) -> tuple[float, float]:
        left = self(start)
        return left, self(end) - left

    def ticks(self, on: Canvas, y: float) -> None:
        length = self.end - self.start
        steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)
        step = next((s for s in steps if length / s <= 10), 14400)
        for number in range(int(np.ceil(self.start / step)), int(self.end / step + 1e-9) + 1):
            x = self(number * step)
            on.line([(x, y), (x, y + 5)], "muted", 1)
            on.text((x, y + 19), f"{number * step:g}", color="muted", size=12, anchor="middle")
        on.text((_RIGHT, y + 36), "seconds", color="muted", size=12, anchor="end")


_Row = Callable[[Canvas, _Axis, float, float], None]


def _decision_rows(scene: Scene) -> list[tuple[float, _Row]]:
    """What each part of each stream did."""
    parts = scene.parts()
    top = max((abs(p.bits) for p in parts), default=0.0) or 1.0
    decided = _decided(scene)

    def faces(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _faces(on, axis, y, height, scene)

    def bars(stream: str) -> _Row:
        def row(on: Canvas, axis: _Axis, y: float, height: float) -> None:
            own = [p for p in parts if p.stream == stream]
            _bars(on, axis, y, height, own, top, decided)
            _attention(on, axis, y, height, scene, stream)

        return row

    def sound(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _spectrogram(on, axis, y, height, scene)

    rows: list[tuple[float, _Row]] = [(bars_height, bars(s)) for s, bars_height in _heights(scene)]
    pictured = any(s.faces for s in scene.stretches)
    return [*([(84.0, faces)] if pictured else []), *rows, (130.0, sound)]


def _heights(scene: Scene) -> list[tuple[str, float]]:
    return [(stream, 104.0) for stream in scene.streams]


def _timeline_rows(scene: Scene) -> list[tuple[float, _Row]]:
    """What the windows say, over frames and waveform."""

    def frames(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _frames(on, axis, y, height, scene)

    def named(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _named(on, axis, y, height, scene)

    def curves(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _curves(on, axis, y, height, scene)

    def waveform(on: Canvas, axis: _Axis, y: float, height: float) -> None:
        _waveform(on, axis, y, height, scene)

    pictured = any(s.frame is not None for s in scene.stretches)
    pictures: list[tuple[float, _Row]] = [(84.0, frames)] if pictured else []
    return [*pictures, (30.0, named), (170.0, curves), (90.0, waveform)]


def _decided(scene: Scene) -> Part | None:
    """The part that added most, if one added anything."""
    most = max(scene.parts(), key=lambda p: p.bits, default=None)
    return most if most and most.bits > 0.01 else None


def _why(scene: Scene) -> str:
    """The decision in words."""
    if scene.line:
        return _course(scene.cues)
    decided = _decided(scene)
    if decided is None:
        return "no single moment decided: to hide any of them changes nothing"
    where = f"the {_NAMES[decided.stream]} from {decided.start:.1f} to {decided.end:.1f} s"
    return f"decided most by {where}"


def _course(cues: Sequence[Cue]) -> str:
    """What follows what, where that is not too much to say."""
    said = [f"from {cue.start:.1f} s {_shown(cue.emotion, 20)}" for cue in cues[:_MOST_CUES]]
    more = len(cues) - len(said)
    return ", ".join([*said, f"and {more} more changes"] if more else said)


def _headline(on: Canvas, scene: Scene) -> None:
    on.text((24, 32), _shown(scene.name, 100), size=16, color="muted")
    best = scene.best
    answer = f"{_shown(scene.classes[best], 60)} {scene.probabilities[best]:.0%}"
    on.text((24, 64), answer, size=24, bold=True)
    decided = None if scene.line else _decided(scene)
    if decided:
        on.rectangle((24, 78), (14, 14), _COLORS[decided.stream])
    on.text((46 if decided else 24, 90), _why(scene), size=15)


def _faces(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    """The face of the highest attention in each of equal parts of the clip."""
    frames = [(s, i) for s in scene.stretches for i in s.faces]
    times = [s.start + (i + 0.5) / len(s.seen) * s.duration for s, i in frames]
    weights = [_relative(s.attention.get("video"), len(s.seen))[i] for s, i in frames]
    edges = np.linspace(axis.start, axis.end, FACES + 1).tolist()
    decided = _decided(scene)
    side = min(height, (_RIGHT - _LEFT) / FACES - 6)
    on.text((24, y + height / 2), "faces", color="muted")
    for left, right in itertools.pairwise(edges):
        inside = [n for n, time in enumerate(times) if left <= time < right]
        if not inside:
            continue
        number = max(inside, key=lambda n: weights[n])
        stretch, index = frames[number]
        x = axis((left + right) / 2) - side / 2
        on.image((x, y), (side, side), stretch.faces[index])
        if not stretch.seen[index]:
            on.rectangle((x, y), (side, side), "paper", opacity=0.55)
            on.text((x + side / 2, y + side / 2 + 4), "not seen", size=10, anchor="middle")
        when = (
            decided and decided.stream == "video" and decided.start <= times[number] < decided.end
        )
        if when:
            on.frame((x, y), (side, side), "mark", 5)
            on.frame((x - 3, y - 3), (side + 6, side + 6), "frame", 1)


def _bars(
    on: Canvas,
    axis: _Axis,
    y: float,
    height: float,
    parts: Sequence[Part],
    top: float,
    decided: Part | None,
) -> None:
    """What each part did: upwards for the emotion, downwards against it."""
    middle, reach = y + height / 2, height / 2 - 4
    stream = parts[0].stream
    on.text((24, y + 16), _NAMES[stream], color=_COLORS[stream], size=15, bold=True)
    on.text((24, y + 40), "for", color="muted", size=11)
    on.text((24, y + height - 8), "against", color="muted", size=11)
    for part in parts:
        x, width = axis.span(part.start, part.end)
        length = part.bits / top * reach
        if part == decided:
            on.rectangle((x, y), (width, height), "mark", opacity=0.45)
        on.rectangle(
            (x + 2, middle - max(length, 0)), (max(width - 4, 1), abs(length)), _COLORS[stream]
        )
        if part == decided:
            on.frame((x, y), (width, height), "frame", 1.5)
    on.line([(_LEFT, middle), (_RIGHT, middle)], "grid", 1)


def _attention(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene, stream: str) -> None:
    """Where the model attended, as a line: 1 for an even spread is at a third of the height."""
    found = [(s, s.attention[stream]) for s in scene.stretches if stream in s.attention]
    most = max((float(_relative(w, len(w)).max()) for _, w in found), default=1.0)
    for stretch, weights in found:
        values = _relative(weights, len(weights)) / max(most, 3.0)
        edges = np.linspace(stretch.start, stretch.end, len(weights) + 1).tolist()
        points = []
        for value, (left, right) in zip(values.tolist(), itertools.pairwise(edges), strict=True):
            points += [
                (axis(left), y + height * (1 - value)),
                (axis(right), y + height * (1 - value)),
            ]
        on.line(points, "ink", 1.2)


def _spectrogram(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    low = min(int(s.levels.min()) for s in scene.stretches)
    high = max(max(int(s.levels.max()) for s in scene.stretches), low + 1)
    for stretch in scene.stretches:
        x, width = axis.span(stretch.start, stretch.end)
        grey = (stretch.levels.T[::-1].astype(np.float32) - low) * (255 / (high - low))
        on.image((x, y), (width, height), grey.astype(np.uint8), ink=True)
    top = scene.stretches[0].top_hertz / 1000
    on.text((24, y + 16), "sound", color="muted")
    for value in (0.0, top / 2, top):
        place = y + height * (1 - value / top)
        on.text(
            (_LEFT - 8, min(place + 4, y + height)),
            f"{value:g}",
            color="muted",
            size=11,
            anchor="end",
        )
    on.text((24, y + 34), "kHz", color="muted", size=11)


def _frames(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    """As many frames as there is room for."""
    shown = [(s.start + s.duration / 2, s.frame) for s in scene.stretches if s.frame is not None]
    on.text((24, y + height / 2), "frames", color="muted")
    free = _LEFT
    for time, frame in shown:
        width = height * frame.shape[1] / frame.shape[0]
        x = axis(time) - width / 2
        if x >= free and x + width <= _RIGHT + width / 2:
            on.image((x, y), (width, height), frame)
            free = x + width + 4


def _named(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    """The emotion of each stretch of time, by colour and name."""
    on.text((24, y + 20), "emotion", color="muted")
    for cue in scene.cues:
        x, width = axis.span(cue.start, cue.end)
        color = _series(scene.classes.index(cue.emotion))
        on.rectangle((x, y), (width, height), color)
        name = _shown(cue.emotion, 20)
        if width > 9 * len(name):
            on.text((x + width / 2, y + 20), name, color="#000000", anchor="middle")


def _curves(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    """The probability of every class over time."""
    on.text((24, y + height / 4 + 4), "probability", color="muted")
    for value in (0.0, 0.5, 1.0):
        place = y + height * (1 - value)
        on.line([(_LEFT, place), (_RIGHT, place)], "grid", 1)
        on.text((_LEFT - 8, place + 4), f"{value:.0%}", color="muted", size=11, anchor="end")
    for number in range(len(scene.classes)):
        points: list[Point] = []
        last = None
        for start, end, values in scene.line:
            if last is not None and start - last > 1e-6:
                on.line(points, _series(number), 2.5)
                points = []
            place = y + height * (1 - float(values[number]))
            points += [(axis(start), place), (axis(end), place)]
            last = end
        on.line(points, _series(number), 2.5)


def _waveform(on: Canvas, axis: _Axis, y: float, height: float, scene: Scene) -> None:
    on.text((24, y + height / 2), "sound", color="muted")
    top = max((float(s.peaks.max(initial=0.0)) for s in scene.stretches), default=0.0) or 1.0
    middle, reach = y + height / 2, height / 2 / top
    outlines: list[list[Point]] = []
    until = -np.inf
    for stretch in scene.stretches:
        if stretch.start > until + 1e-6:
            outlines.append([])
        edges = np.linspace(stretch.start, stretch.end, len(stretch.peaks) + 1)[:-1]
        pairs = zip(edges.tolist(), stretch.peaks.tolist(), strict=True)
        outlines[-1] += [
            (axis(t), p * reach) for t, p in pairs if t >= until - 1e-6
        ]  # windows may overlap
        until = max(until, stretch.end)
    for outline in outlines:
        over = [(x, middle - length) for x, length in outline]
        under = [(x, middle + length) for x, length in reversed(outline)]
        if len(outline) > 1:
            on.area([*over, *under], "muted")


def _sidebar(on: Canvas, scene: Scene) -> None:
    """Probabilities of all classes, and of the named one without each stream."""
    y = 126.0
    on.text((_SIDE, y), "probability", color="muted", size=12)
    order = np.argsort(-scene.probabilities, kind="stable")
    most = 8
    for number in order[:most].tolist():
        value = float(scene.probabilities[number])
        color = _series(number) if scene.line else ("ink" if number == scene.best else "muted")
        y = _bar(on, y + 6, _shown(scene.classes[number], 26), value, color, number == scene.best)
    if len(order) > most:
        on.text((_SIDE, y + 16), f"and {len(order) - most} more", color="muted", size=11)
        y += 18
    if not scene.streams or scene.line:
        return
    y += 30
    on.text((_SIDE, y), f"{_shown(scene.classes[scene.best], 16)} without", color="muted", size=12)
    for stream in scene.streams:
        value = float(scene.without(stream)[scene.best])
        y = _bar(on, y + 6, f"the {_NAMES[stream]}", value, _COLORS[stream], False)
    y += 34
    for words in (
        "Bars: what hiding that part of",
        "a stream takes from the emotion.",
        "Line: attention.",
    ):
        on.text((_SIDE, y), words, color="muted", size=11)
        y += 15


def _bar(on: Canvas, y: float, name: str, value: float, color: str, bold: bool) -> float:
    room = _WIDTH - _SIDE - 24
    on.text((_SIDE, y + 13), name, size=13, bold=bold)
    on.text((_WIDTH - 24, y + 13), f"{value:.0%}", size=13, anchor="end", bold=bold)
    on.rectangle((_SIDE, y + 18), (room, 7), "grid")
    on.rectangle((_SIDE, y + 18), (room * value, 7), color)
    return y + 26


def _series(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _shown(text: str, columns: int) -> str:
    """A name in one line, no wider than so many columns; signs of some scripts take two."""
    shown = printable(text)
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in shown)
    return printable(text, columns - columns * wide // (2 * max(1, len(shown))))


def _relative(weights: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    """Attention as times of an even spread."""
    return np.ones(count) if weights is None else weights * len(weights)
