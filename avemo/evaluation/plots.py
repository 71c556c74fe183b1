"""Pictures of what a model attended to."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from avemo.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACES = 10
MARKED = 3
LONGEST_TITLE, LONGEST_LABEL = 100, 24
_ATTENDED = "#d62728"
_FACES_COLOR, _SOUND_COLOR = "#1f77b4", "#ff7f0e"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a clip that the model saw at once.

    Attributes:
        start: seconds.
        duration: seconds.
        spectrogram: dB, float32 (T, F), evenly spread over the stretch.
        top_hertz: the frequency at the upper edge of the spectrogram.
        faces: some of its T_v video frames by their number, uint8 (S, S).
        seen: bool (T_v,), whether there was a face.
        audio_attention: float (T_a',), sums to 1; None if the model does not listen.
        video_attention: float (T_v,), sums to 1; None if the model does not look.
    """

    start: float
    duration: float
    spectrogram: NDArray[np.float32]
    top_hertz: float
    faces: dict[int, NDArray[np.uint8]]
    seen: NDArray[np.bool_]
    audio_attention: NDArray[np.float64] | None
    video_attention: NDArray[np.float64] | None


def save_picture(path: Path, draw: Callable[[], Figure], dpi: int) -> bool:
    """Draws a figure and saves it; one that cannot be drawn is told and stops nothing.

    Text is shown as it is: names, labels and paths are no markup, whatever the user's settings of
    matplotlib say.

    Args:
        path: of the picture; its suffix is the format.
        draw: makes the figure.
        dpi: dots per inch.

    Returns:
        Whether there is a picture.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    try:
        with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
            figure = draw()
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=dpi)
    except Exception as error:  # the numbers are what counts
        reason = printable(f"{path}: no picture: {type(error).__name__}: {error}")
        print(reason, file=sys.stderr)
        return False
    return True


def draw_attention(
    title: str, probabilities: Sequence[tuple[str, float]], stretches: Sequence[Stretch]
) -> Figure:
    """Draws faces, attention of both streams and the spectrogram over one time axis.

    Attention is shown relative to an even spread (1 is even), so that streams with different frame
    rates and stretches of different length can be compared. The faces shown are those of the
    highest attention in equal parts of the clip; the highest of all have a red frame.

    Args:
        title: a line above it.
        probabilities: classes and their probabilities, the likeliest first.
        stretches: the clip's parts in order; parts that could not be used may be missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    grid = figure.add_gridspec(4, 2, width_ratios=(6, 1), height_ratios=(1.05, 1, 1, 1.8))
    faces = figure.add_subplot(grid[0, 0])
    look, listen, sound = (figure.add_subplot(grid[row, 0], sharex=faces) for row in (1, 2, 3))
    figure.suptitle(printable(title, LONGEST_TITLE))
    _draw_faces(faces, stretches)
    attended_video = [(s.video_attention, s) for s in stretches if s.video_attention is not None]
    attended_audio = [(s.audio_attention, s) for s in stretches if s.audio_attention is not None]
    _draw_attention(look, "faces", _FACES_COLOR, attended_video)
    _draw_attention(listen, "sound", _SOUND_COLOR, attended_audio)
    _shade_unseen(look, stretches)
    image = _draw_spectrogram(sound, stretches)
    figure.colorbar(image, cax=_beside(figure, grid[3, 1]), label="dB")
    _draw_probabilities(figure.add_subplot(grid[0:3, 1]), probabilities)
    faces.set_xlim(stretches[0].start, stretches[-1].start + stretches[-1].duration)
    for axes in (faces, look, listen):
        axes.tick_params(labelbottom=False)
    return figure


def attended_frames(weights: NDArray[np.float64] | None, count: int) -> list[int]:
    """Frames worth showing: the one of the highest attention in each of equal parts.

    Args:
        weights: attention, (count,), or None for an even one.
        count: number of frames.
    """
    weights = np.ones(count) if weights is None else weights
    parts = np.array_split(np.arange(count), min(count, FACES))
    return [int(part[np.argmax(weights[part])]) for part in parts]


def _draw_faces(axes: Axes, stretches: Sequence[Stretch]) -> None:
    frames = [(s, i) for s in stretches for i in s.faces]
    times = np.array([s.start + (i + 0.5) / len(s.seen) * s.duration for s, i in frames])
    height = np.array([_relative(s.video_attention, len(s.seen))[i] for s, i in frames])
    edges = np.linspace(stretches[0].start, stretches[-1].start + stretches[-1].duration, FACES + 1)
    width = edges[1] - edges[0]
    chosen = []
    for left, right in itertools.pairwise(edges):
        inside = np.flatnonzero((times >= left) & (times < right))
        if len(inside):
            chosen.append((left, inside[np.argmax(height[inside])]))
    looks = any(s.video_attention is not None for s in stretches)
    marked = sorted((n for _, n in chosen), key=lambda n: -height[n])[: MARKED if looks else 0]
    for left, number in chosen:
        stretch, index = frames[number]
        extent = (left + 0.04 * width, left + 0.96 * width, 0, 1)
        axes.imshow(
            stretch.faces[index], cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto"
        )
        color = _ATTENDED if number in marked else "0.6"
        thick = 3.0 if number in marked else 0.8
        axes.add_patch(_frame(extent, color, thick))
        axes.plot([times[number], left + width / 2], [-0.18, 0], color=color, lw=1, clip_on=False)
    axes.set_ylim(-0.2, 1.03)
    axes.set_yticks([])
    axes.set_ylabel("faces")
    for side in axes.spines.values():
        side.set_visible(False)


def _frame(extent: tuple[float, float, float, float], color: str, width: float) -> Any:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    return Rectangle((left, bottom), right - left, top - bottom, fill=False, ec=color, lw=width)


def _draw_attention(
    axes: Axes, name: str, color: str, parts: Sequence[tuple[NDArray[np.float64] | None, Stretch]]
) -> None:
    for weights, stretch in parts:
        assert weights is not None
        edges = np.linspace(stretch.start, stretch.start + stretch.duration, len(weights) + 1)
        axes.stairs(_relative(weights, len(weights)), edges, fill=True, color=color, alpha=0.75)
    if parts:
        axes.axhline(1, color="0.4", lw=0.8, ls="--")
        axes.set_ylim(bottom=0)
    else:
        axes.text(0.5, 0.5, "not used by this model", transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    axes.set_ylabel(f"attention\nto {name}")


def _shade_unseen(axes: Axes, stretches: Sequence[Stretch]) -> None:
    label: str | None = "no face seen"
    for stretch in stretches:
        edges = np.linspace(stretch.start, stretch.start + stretch.duration, len(stretch.seen) + 1)
        for index in np.flatnonzero(~stretch.seen):
            axes.axvspan(edges[index], edges[index + 1], color="0.8", lw=0, zorder=0, label=label)
            label = None
    if label is None:
        axes.legend(loc="upper right", fontsize=8)


def _draw_spectrogram(axes: Axes, stretches: Sequence[Stretch]) -> Any:
    low = min(float(s.spectrogram.min()) for s in stretches)
    high = max(float(s.spectrogram.max()) for s in stretches)
    for stretch in stretches:
        extent = (stretch.start, stretch.start + stretch.duration, 0, stretch.top_hertz / 1000)
        image = axes.imshow(
            stretch.spectrogram.T,
            origin="lower",
            aspect="auto",
            extent=extent,
            vmin=low,
            vmax=max(high, low + 1),
            cmap="magma",
        )
    axes.set_ylabel("kHz")
    axes.set_xlabel("seconds")
    return image


def _draw_probabilities(axes: Axes, probabilities: Sequence[tuple[str, float]]) -> None:
    names = [printable(name, LONGEST_LABEL) for name, _ in probabilities]
    values = [value for _, value in probabilities]
    places = range(len(names))  # not the names: two that look alike would share a bar
    bars = axes.barh(
        places, values, tick_label=names, color=[_ATTENDED] + ["0.6"] * (len(names) - 1)
    )
    axes.bar_label(bars, labels=[f"{value:.0%}" for value in values], padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25)
    axes.set_xticks([])
    axes.set_title("probability", fontsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _beside(figure: Any, cell: Any) -> Any:
    return figure.add_subplot(cell.subgridspec(1, 5)[0, 0])


def _relative(weights: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    return np.ones(count) if weights is None else weights * count
