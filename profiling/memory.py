"""Memory over the time of a step, and which range holds it, from the allocators' events of a trace."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from profiling.trace import BACKWARD, PHASES, Allocation, Span, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE = "(before the trace)"
_MB = 1e6
_SHADES = dict(zip(PHASES, ("#937860", "#4c72b0", "#55a868", "#c44e52", "#8172b3"), strict=True))
_RARE = 0.002  # share of the step below which a part is left out of the strip
_NARROW = 0.025  # share of the step below which a band has no name in the picture


@dataclass(frozen=True)
class Held:
    """Bytes that one range allocated and that are still there at some time.

    Attributes:
        name: the range, `BEFORE` for what was there when the trace began.
        backward: allocated in its backward.
        bytes: how many.
    """

    name: str
    backward: bool
    bytes: int


@dataclass(frozen=True)
class Timeline:
    """What the device's allocator gave out during one step.

    Attributes:
        times: milliseconds since the step began, (n,).
        bytes: held from that time on, (n,); the first is what the step found.
        start_bytes: what the step found: weights, the optimizer's state, the batch.
        peak_bytes: the most.
        peak_ms: when.
        at_peak: by range, the most first.
        at_backward: by range, when the backward began: what was kept for it.
        bands: (name, from, to) in milliseconds: the phases.
    """

    times: list[float]
    bytes: list[int]
    start_bytes: int
    peak_bytes: int
    peak_ms: float
    at_peak: list[Held]
    at_backward: list[Held]
    bands: list[tuple[str, float, float]]


def storage_bytes(tensors: Iterable[Tensor], device: torch.device) -> int:
    """Bytes of the tensors' memory on a device, shared memory counted once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if t.device.type == device.type
    }
    return sum(storages.values())


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """What an optimizer keeps besides the weights."""
    values = chain.from_iterable(state.values() for state in optimizer.state.values())
    return (value for value in values if isinstance(value, Tensor))


def timeline(trace: Trace, step: Span, *, before: int, on_host: bool) -> Timeline:
    """Follows the allocator through one step.

    Args:
        trace: that holds the step.
        step: one of `trace.steps`.
        before: bytes that were held when the trace began; freeing them is in no trace.
        on_host: follow the host's memory, otherwise the device's.
    """
    events = [a for a in trace.allocations if a.on_host == on_host and a.time <= step.end]
    found = sum(a.time < step.start for a in events)  # events of earlier steps
    levels = list(accumulate((a.size for a in events), initial=before))[found:]
    peak = max(range(len(levels)), key=levels.__getitem__)
    times = [0.0, *((a.time - step.start) / 1e3 for a in events[found:])]
    backward = next((s for s in trace.in_step(step) if s.is_range and s.name == BACKWARD), step)
    until_backward = [a for a in events if a.time < backward.start]
    return Timeline(
        times,
        levels,
        levels[0],
        levels[peak],
        times[peak],
        _held(events[: found + peak], before),
        _held(until_backward, before),
        _bands(trace, step),
    )


def _held(events: Iterable[Allocation], before: int) -> list[Held]:
    """What is there after some events, by who allocated it."""
    live: dict[int, tuple[int, str, bool]] = {}
    for event in events:
        live.pop(event.address, None)
        if event.size > 0:
            span = event.span
            owner = (span.owner, span.backward) if span else ("", False)
            live[event.address] = (event.size, *owner)
    sums = Counter({(BEFORE, False): before})
    for size, name, backward in live.values():
        sums[name, backward] += size
    return [Held(name, backward, size) for (name, backward), size in sums.most_common() if size]


def _bands(trace: Trace, step: Span) -> list[tuple[str, float, float]]:
    return [
        (s.name, (s.start - step.start) / 1e3, (s.end - step.start) / 1e3)
        for s in trace.in_step(step)
        if s.is_range and s.name in PHASES
    ]


def strips(trace: Trace, step: Span) -> list[tuple[str, float, float]]:
    """Whose work runs when: (top range, from, to) in milliseconds, forward and backward alike."""
    pieces: list[tuple[str, float, float]] = []
    for span in trace.in_step(step):
        top = span.owner.split(".")[0]
        parent = span.parent
        if parent is None or top == parent.owner.split(".")[0] or top in PHASES:
            continue
        start, end = (span.start - step.start) / 1e3, (span.end - step.start) / 1e3
        if pieces and pieces[-1][0] == top and start - pieces[-1][2] < 0.1:
            pieces[-1] = (top, pieces[-1][1], end)
        else:
            pieces.append((top, start, end))
    return pieces


def draw(line: Timeline, pieces: list[tuple[str, float, float]], title: str, path: Path) -> None:
    """Draws memory over time, phases as bands, whose work ran as a strip below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    megabytes = [b / _MB for b in line.bytes]
    axes.step(line.times, megabytes, where="post", color="black", linewidth=0.8)
    axes.fill_between(line.times, megabytes, step="post", color="tab:gray", alpha=0.4)
    top = line.peak_bytes / _MB
    end = max((b[2] for b in line.bands), default=line.times[-1]) or 1.0
    for name, start, stop in line.bands:
        axes.axvspan(start, stop, color=_SHADES[name], alpha=0.12, linewidth=0)
        if stop - start > _NARROW * end:
            axes.text((start + stop) / 2, 1.07 * top, name, ha="center", va="bottom", fontsize=8)
    if pieces:
        _draw_strips(axes, pieces, -0.07 * top)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.plot(line.peak_ms, top, "v", color="black", markersize=5)
    axes.annotate(
        f"{top:,.0f} MB",
        (line.peak_ms, top),
        xytext=(6, 3),
        textcoords="offset points",
        fontsize=8,
    )
    axes.set(
        xlabel="milliseconds since the step began",
        ylabel="allocated, MB",
        title=title,
        xlim=(0, end),
        ylim=(-0.11 * top, 1.15 * top),
    )
    figure.savefig(path, dpi=110)


def _draw_strips(axes: "Axes", pieces: list[tuple[str, float, float]], y: float) -> None:
    times: dict[str, float] = {}
    for name, start, end in pieces:
        times[name] = times.get(name, 0.0) + end - start
    total = sum(times.values())
    for number, name in enumerate(n for n in times if times[n] > _RARE * total):
        bars = [(start, end - start) for other, start, end in pieces if other == name]
        axes.broken_barh(bars, (1.4 * y, -0.7 * y), color=f"C{number}", label=name, linewidth=0)
