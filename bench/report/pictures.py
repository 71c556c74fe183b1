"""Pictures that know which data they were drawn from, and how bars with whiskers are drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..names import ordered, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {  # Okabe and Ito's, told apart by colour-blind readers too
    "native": "#d55e00",
    "native keep": "#f0b080",
    "native recompute": "#8a3c00",
    "triton": "#cc79a7",
    "triton keep": "#e3b5cc",
    "triton recompute": "#8f4a70",
    "accelerated": "#d55e00",
    "eager": "#0072b2",
    "compile": "#56b4e9",
    "max-autotune": "#009e73",
    "products": "#999999",
    "plain": "#f0e442",
    "mfb": "#e69f00",
    "copy": "#c9c9c9",
}
_OTHER = "#333333"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "avemo",  # names of elements are random otherwise
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Picture:
    """A picture of a run.

    Attributes:
        name: of the file, without its ending.
        title: what it shows.
        draw: draws it.
    """

    name: str
    title: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Bar:
    """A bar and its whisker."""

    low: float
    median: float
    high: float


Groups = Mapping[str, Mapping[str, Bar]]
"""Bars by group, then by series."""


def save(picture: Picture, path: Path, digest: str) -> None:
    """Draws a picture as SVG, the same bytes for the same data and version of matplotlib.

    Args:
        picture: what to draw.
        path: of the file.
        digest: of the data, kept in the file for `digest_of`.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = picture.draw()
        # Without a date and the drawing program's version, equal pictures are equal files.
        metadata = {"Date": None, "Creator": None, "Identifier": f"sha256:{digest}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", bbox_inches="tight", metadata=metadata)
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", "utf-8")


def digest_of(path: Path) -> str | None:
    """The digest of the data that a picture was drawn from; None where it names none."""
    match = _DIGEST.search(path.read_text("utf-8", errors="replace"))
    return match[1] if match else None


def color(contender: str) -> str:
    """The colour of a contender, as a graph or not, in every picture."""
    return _COLORS.get(plain(contender), _OTHER)


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def grouped_bars(
    columns: Mapping[str, Groups], unit: str, *, baseline: float = 0.0, log: bool = False
) -> Figure:
    """Horizontal bars in groups, a column of axes for each of `columns`, whose groups stand on one line.

    Args:
        columns: by title.
        unit: of the values, written under each column.
        baseline: where bars begin; a line marks it.
        log: double at every tick.
    """
    from matplotlib.patches import Patch

    groups, series = _union(columns)
    places: dict[tuple[str, str], float] = {}
    middles: list[float] = []
    y = 0.0
    for group in groups:
        names = [s for s in series if any(s in bars.get(group, {}) for bars in columns.values())]
        places |= {(group, name): y + i for i, name in enumerate(names)}
        middles.append(y + (len(names) - 1) / 2)
        y += len(names) + 1.0
    figure = new_figure(1.8 + 3.4 * len(columns), 1.0 + 0.13 * y)
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, (title, bars) in zip(axes, columns.items(), strict=True):
        ax.set_title(title, fontsize=9)
        for group, found in bars.items():
            for name, bar in found.items():
                _bar(ax, places[group, name], bar, baseline, _fill(name))
        ax.axvline(baseline, color="black", linewidth=0.8)
        ax.set_xlabel(unit)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        if log:
            _double(ax, "x")
    axes[0].set_yticks(middles, groups)
    axes[0].set_ylim(y - 0.5, -1)
    handles = [Patch(**_fill(name), label=name) for name in series]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False
    )
    return figure


def _union(columns: Mapping[str, Groups]) -> tuple[list[str], list[str]]:
    """All groups in order of their first coming, and all series in the order of contenders."""
    groups = dict.fromkeys(g for bars in columns.values() for g in bars)
    return list(groups), ordered(s for bars in columns.values() for g in bars.values() for s in g)


def _fill(name: str) -> dict[str, Any]:
    """The contender's colour, striped for a graph."""
    stripes = {} if name == plain(name) else {"hatch": "////"}
    return {"facecolor": color(name), "edgecolor": "white", "linewidth": 0} | stripes


def _bar(ax: Axes, y: float, bar: Bar, baseline: float, fill: dict[str, Any]) -> None:
    ax.barh(y, bar.median - baseline, left=baseline, height=0.9, **fill)
    if bar.low < bar.high:
        whisker = [[max(0.0, bar.median - bar.low)], [max(0.0, bar.high - bar.median)]]
        ax.errorbar(bar.median, y, xerr=whisker, color="#333333", linewidth=0.7, capsize=1.2)


def _double(ax: Axes, axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (ax.set_xscale if axis == "x" else ax.set_yscale)("log", base=2)
    line = ax.xaxis if axis == "x" else ax.yaxis
    line.set_major_locator(LogLocator(2, numticks=8))
    line.set_major_formatter(FuncFormatter(lambda value, _: _fraction(value)))
    line.set_minor_formatter(NullFormatter())


def _fraction(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def powers_of_two(ax: Axes, ticks: Sequence[float]) -> None:
    """A logarithmic x axis with these ticks."""
    _double(ax, "x")
    if ticks:
        ax.set_xticks(list(ticks))
