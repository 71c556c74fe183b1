"""The pictures of a run; what there is nothing to show of gives none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ..names import ordered, ours, peer_ratios, plain
from ..records import Case, Measurement, Run, Spread
from .figures import (
    curves,
    gflops,
    main_rows,
    operators,
    smallest,
    steps,
    unique,
    usable,
)
from .pictures import Bar, Picture, color, grouped_bars, new_figure, powers_of_two

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODES = {"forward": "forward", "training": "forward and backward"}
VARIED = {"B": "batch size", "K": "factors per output", "H": "trunks"}
_MARKERS = "osD^vPX*<>"


def speedup(run: Run) -> list[Picture]:
    """How many times faster ours are than their peers: the main rows first, then each of ours everywhere."""
    rows = [
        (case, name)
        for name, modes in main_rows(run)
        for case in modes.values()
        if name in case.contenders
    ]
    pictures = _speedup("speedup", "Times faster than each peer", rows)
    cases = operators(run)
    for dtype in unique(case.dtype for case in cases):
        same = [case for case in cases if case.dtype == dtype]
        for name in ordered(name for case in same for name in ours(case)):
            rows = [(case, name) for case in same if name in case.contenders]
            file = f"speedup-{dtype}-{name.replace(' ', '-')}"
            pictures += _speedup(file, f"{name}, {dtype}: times faster than each peer", rows)
    return pictures


def _speedup(file: str, title: str, rows: list[tuple[Case, str]]) -> list[Picture]:
    several = len({name for _, name in rows}) > 1
    columns: dict[str, dict[str, dict[str, Bar]]] = {}
    for case, name in rows:
        ratios = peer_ratios(case, name)
        found = {plain(peer): _bar_of(ratio) for peer, ratio in ratios.items() if usable(ratio)}
        if found:
            label = f"{_label(case)}\n{name}" if several else _label(case)
            columns.setdefault(_mode(case), {})[label] = found
    unit = "times faster (10th to 90th percentile); left of 1: slower"
    return _picture(file, title, columns, unit, baseline=1.0, log=True)


def memory(run: Run) -> list[Picture]:
    """Peak and kept memory of each contender as parts of eager's."""
    pictures = []
    cases = operators(run) + steps(run)
    for dtype in unique(case.dtype for case in cases):
        columns: dict[str, dict[str, dict[str, Bar]]] = {}
        for case in (case for case in cases if case.dtype == dtype):
            for quantity, word in (("peak_bytes", "peak"), ("kept_bytes", "kept for backward")):
                if found := _memory_bars(case, quantity):
                    title = word if quantity == "kept_bytes" else f"{word}, {_mode(case)}"
                    columns.setdefault(title, {})[_label(case)] = found
        title = f"Memory as part of eager's, {dtype}"
        pictures += _picture(f"memory-{dtype}", title, columns, "part of eager's", baseline=0.0)
    return pictures


def _memory_bars(case: Case, quantity: str) -> dict[str, Bar]:
    eager = case.contenders.get("eager")
    whole = getattr(eager, quantity) if eager else None
    if not whole:
        return {}
    parts = {name: getattr(case.contenders[name], quantity) for name in ordered(case.contenders)}
    return {name: Bar(*[part / whole] * 3) for name, part in parts.items() if part is not None}


def host(run: Run) -> list[Picture]:
    """Microseconds of a call at size 1."""
    title = "A call at size 1, in microseconds"
    rows = [(f"{case.operator}, {case.dtype}", case) for case in smallest(run)]
    return _times("host", title, rows, 1e6, "microseconds")


def training_step(run: Run) -> list[Picture]:
    """Milliseconds of a training step."""
    rows = [(f"{case.label}, {case.dtype}", case) for case in steps(run)]
    return _times("training-step", "One training step, in ms", rows, 1e3, "ms")


def _times(
    file: str, title: str, rows: list[tuple[str, Case]], scale: float, unit: str
) -> list[Picture]:
    columns: dict[str, dict[str, dict[str, Bar]]] = {}
    for label, case in rows:
        found = {
            name: _bar_of(case.contenders[name].seconds, scale)
            for name in ordered(case.contenders)
            if usable(case.contenders[name].seconds)
        }
        if found:
            columns.setdefault(_mode(case), {})[label] = found
    return _picture(file, title, columns, f"{unit} (10th to 90th percentile)", baseline=0.0)


def _picture(
    file: str,
    title: str,
    columns: dict[str, dict[str, dict[str, Bar]]],
    unit: str,
    *,
    baseline: float,
    log: bool = False,
) -> list[Picture]:
    def draw() -> Figure:
        return grouped_bars(columns, unit, baseline=baseline, log=log)

    return [Picture(file, title, draw)] if columns else []


def roofline(run: Run) -> list[Picture]:
    """Where every kernel stands below the machine's two ceilings."""
    cases = [case for case in operators(run) if ours(case) and _on_roofline(case)]
    dtypes = unique(case.dtype for case in cases)
    return [
        Picture(
            f"roofline-{dtype}",
            f"Roofline, {dtype}",
            _roofline_drawer(run, dtype, [case for case in cases if case.dtype == dtype]),
        )
        for dtype in dtypes
    ]


def _on_roofline(case: Case) -> bool:
    return all(math.isfinite(x) and x > 0 for x in (case.flops, case.bytes))


def _roofline_drawer(run: Run, dtype: str, cases: list[Case]) -> Callable[[], Figure]:
    """Operators by colour, shapes by marker, our contenders by rows of axes."""

    def draw() -> Figure:
        from matplotlib.lines import Line2D

        modes = unique(case.mode for case in cases)
        names = ordered(name for case in cases for name in ours(case))
        shades = {name: f"C{i}" for i, name in enumerate(unique(c.operator for c in cases))}
        markers = dict(zip(unique(c.label for c in cases), cycle(_MARKERS), strict=False))
        figure = new_figure(1.8 + 3.4 * len(modes), 0.6 + 3.2 * len(names))
        grid = figure.subplots(len(names), len(modes), sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid, names, strict=True):
            for ax, mode in zip(axes, modes, strict=True):
                _roof(ax, run, dtype, [case.flops / case.bytes for case in cases])
                for case in cases:
                    if case.mode == mode and name in case.contenders:
                        _kernel(ax, case, name, shades[case.operator], markers[case.label])
                ax.set_title(f"{name}, {MODES.get(mode, mode)}", fontsize=9)
            axes[0].set_ylabel("GFLOP/s")
        for ax in grid[-1]:
            ax.set_xlabel("flop per byte")
        shown = [("o", shade, name) for name, shade in shades.items()]
        shown += [(marker, "black", label) for label, marker in markers.items()]
        shown.append(("_", "black", "eager PyTorch"))
        handles = [
            Line2D([], [], marker=marker, linestyle="", color=shade, label=label)
            for marker, shade, label in shown
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        return figure

    return draw


def _roof(ax: Axes, run: Run, dtype: str, intensities: list[float]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    flops, rate = run.ceilings.flops.get(dtype), run.ceilings.bytes
    if not flops or not rate:
        return
    ridge = flops / rate
    corners = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
    ax.plot(corners, [min(flops, x * rate) / 1e9 for x in corners], color="black", linewidth=1)


def _kernel(ax: Axes, case: Case, name: str, shade: str, marker: str) -> None:
    x, y = case.flops / case.bytes, gflops(case, case.contenders[name])
    eager = case.contenders.get(name.replace(plain(name), "eager")) or case.contenders.get("eager")
    if eager:
        below = gflops(case, eager)
        ax.plot([x, x], [below, y], color=shade, linewidth=0.6, alpha=0.7)
        ax.plot([x], [below], marker="_", color=shade, markersize=6)
    ax.plot([x], [y], marker=marker, color=shade, markersize=4.5, alpha=0.8)


def cost_curves(run: Run) -> list[Picture]:
    """Time over the size that a family of cases varies."""
    return [
        Picture(
            f"cost-{varied}-{dtype}",
            f"Cost against {VARIED.get(varied, varied)}, {dtype}",
            _curve_drawer(varied, cases),
        )
        for (varied, dtype), cases in curves(run).items()
    ]


def _curve_drawer(varied: str, cases: list[Case]) -> Callable[[], Figure]:
    def draw() -> Figure:
        from matplotlib.lines import Line2D

        rows, modes = unique(c.operator for c in cases), unique(c.mode for c in cases)
        figure = new_figure(1.5 + 3.6 * len(modes), 0.6 + 2.6 * len(rows))
        grid = figure.subplots(len(rows), len(modes), squeeze=False)
        for axes, operator in zip(grid, rows, strict=True):
            for ax, mode in zip(axes, modes, strict=True):
                here = [c for c in cases if (c.operator, c.mode) == (operator, mode)]
                _curve(ax, varied, here)
                ax.set_title(f"{operator}, {MODES.get(mode, mode)}", fontsize=9)
            axes[0].set_ylabel("ms (10th to 90th percentile)")
        for ax in grid[-1]:
            ax.set_xlabel(f"{varied}: {VARIED.get(varied, 'size')}")
        names = ordered(name for case in cases for name in case.contenders)
        handles = [Line2D([], [], **_line(name), label=name) for name in names]
        handles.append(Line2D([], [], color="black", linestyle=":", label="floor"))
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        return figure

    return draw


def _curve(ax: Axes, varied: str, cases: list[Case]) -> None:
    cases = sorted((c for c in cases if varied in c.sizes), key=lambda c: c.sizes[varied])
    ax.set_yscale("log")
    powers_of_two(ax, [case.sizes[varied] for case in cases])
    floor = [(c.sizes[varied], 1e3 * c.floor_seconds) for c in cases if c.floor_seconds > 0]
    if floor:
        ax.plot(*zip(*floor, strict=True), color="black", linestyle=":", linewidth=1)
    for name in ordered(name for case in cases for name in case.contenders):
        points = list(_points(cases, name, varied))
        if not points:
            continue
        xs = [x for x, _ in points]
        spreads = [m.seconds for _, m in points]
        ax.fill_between(
            xs,
            [1e3 * s.low for s in spreads],
            [1e3 * s.high for s in spreads],
            color=color(name),
            alpha=0.15,
            linewidth=0,
        )
        ax.plot(xs, [1e3 * s.median for s in spreads], **_line(name))


def _line(name: str) -> dict[str, Any]:
    dashed = "-" if name == plain(name) else "--"
    return {
        "color": color(name),
        "linestyle": dashed,
        "linewidth": 1.2,
        "marker": "o",
        "markersize": 2.5,
    }


def _points(cases: Iterable[Case], name: str, varied: str) -> Iterable[tuple[int, Measurement]]:
    for case in cases:
        measured = case.contenders.get(name)
        if measured and usable(measured.seconds):
            yield case.sizes[varied], measured


def _bar_of(spread: Spread, scale: float = 1.0) -> Bar:
    return Bar(scale * spread.low, scale * spread.median, scale * spread.high)


def _label(case: Case) -> str:
    return f"{case.operator} {case.label}"


def _mode(case: Case) -> str:
    return MODES.get(case.mode, case.mode)
