"""Adds up a step of a trace: by range, by kind of module, by operation. Nothing is counted twice, nothing left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from profiling.trace import DATA, EVALUATE, OPTIMIZER, STEP, Kernel, Span, Trace

PYTHON = "(Python between operations)"
ENGINE = "(autograd engine)"
IDLE = "(device idle)"
_NEITHER = {STEP, DATA, OPTIMIZER}  # of forward and backward


@dataclass
class Row:
    """Time of one step that one name stands for; its own only, not what is nested in it.

    Attributes:
        name: of a range, a kind of module, an operation or a kernel.
        calls: how often in the step.
        forward_ms: in the forward.
        backward_ms: in the backward of what it did in the forward.
        other_ms: in neither, such as in the optimizer.
    """

    name: str
    calls: int = 0
    forward_ms: float = 0.0
    backward_ms: float = 0.0
    other_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.forward_ms + self.backward_ms + self.other_ms

    def add(self, owner: str, backward: bool, milliseconds: float) -> None:
        """Counts time of a range."""
        if owner in _NEITHER:
            self.other_ms += milliseconds
        elif backward:
            self.backward_ms += milliseconds
        else:
            self.forward_ms += milliseconds


@dataclass(frozen=True)
class Account:
    """One step, three times added up to the same total.

    Attributes:
        clock: "host" where time is that of the thread that takes the steps, "device" where it is that of kernels.
        total_ms: of the step.
        ranges: by range, in the order in which they were opened.
        kinds: by class of module, or range that is no module; most time first.
        operations: by operation, most time first.
        kernels: by kernel, most time first; empty on a CPU.
    """

    clock: Literal["host", "device"]
    total_ms: float
    ranges: list[Row]
    kinds: list[Row]
    operations: list[Row]
    kernels: list[Row]


class _Table:
    """Rows by name, made when they are first needed."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row(name))

    def by_time(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda r: -r.total_ms)


def median_step(trace: Trace) -> Span:
    """The step whose duration is the median of all: one that took place, so that its parts add up."""
    by_duration = sorted(trace.steps, key=lambda s: s.duration)
    return by_duration[(len(by_duration) - 1) // 2]


def account(
    trace: Trace, step: Span, kinds: Mapping[str, str] | None = None, *, shapes: bool = False
) -> Account:
    """Adds up one step.

    Args:
        trace: that holds the step.
        step: one of `trace.steps`.
        kinds: class names of modules by range, as `ModuleRanges.kinds` has them.
        shapes: tell operations apart by the shapes of their inputs; needs a trace that has them.
    """
    spans = [s for s in trace.in_step(step) if s.thread == step.thread]
    kernels = [k for k in trace.kernels if step.start <= k.start <= step.end]
    ranges, by_kind, operations, by_kernel = _Table(), _Table(), _Table(), _Table()

    def count(span: Span, operation: str, milliseconds: float, times: int) -> None:
        ranges.row(span.owner).add(span.owner, span.backward, milliseconds)
        kind = (kinds or {}).get(span.owner, span.owner)
        by_kind.row(kind).add(span.owner, span.backward, milliseconds)
        row = operations.row(operation)
        row.add(span.owner, span.backward, milliseconds)
        row.calls += times

    for span in spans:
        if span.is_range:
            ranges.row(span.name).calls += 1
            by_kind.row((kinds or {}).get(span.name, span.name)).calls += 1
    if kernels:
        for kernel in kernels:
            launch = kernel.launch or step
            milliseconds = (kernel.end - kernel.start) / 1e3
            count(launch, _operation(launch, shapes), milliseconds, 1)
            row = by_kernel.row(kernel.name)
            row.add(launch.owner, launch.backward, milliseconds)
            row.calls += 1
        count(step, IDLE, _idle(step, kernels), 0)
    else:
        for span in spans:
            count(span, _name(span, shapes), span.itself / 1e3, int(span.is_operation))
    return Account(
        "device" if kernels else "host",
        sum(row.total_ms for row in ranges.rows.values()),
        list(ranges.rows.values()),
        by_kind.by_time(),
        operations.by_time(),
        by_kernel.by_time(),
    )


def _name(span: Span, shapes: bool) -> str:
    if not span.is_operation:
        return PYTHON
    if span.name.startswith(EVALUATE):
        return ENGINE
    dimensions = [d for d in span.args.get("Input Dims", []) if d] if shapes else []
    return f"{span.name} {dimensions}" if dimensions else span.name


def _operation(launch: Span, shapes: bool) -> str:
    """The operation that launched a kernel."""
    inside = (s for s in launch.ancestors() if s.is_operation)
    return next((_name(s, shapes) for s in inside), PYTHON)


def _idle(step: Span, kernels: list[Kernel]) -> float:
    """Milliseconds of a step in which no kernel ran."""
    busy, reached = 0.0, step.start
    for kernel in sorted(kernels, key=lambda k: k.start):
        busy += max(kernel.end - max(kernel.start, reached), 0.0)
        reached = max(reached, kernel.end)
    return max(step.duration - busy, 0.0) / 1e3


@dataclass(frozen=True)
class Branch:
    """A range with all that is nested in it.

    Attributes:
        row: summed up over itself and what is nested.
        depth: 0 for what is nested in nothing.
        is_rest: a branch's own time, listed below its parts.
    """

    row: Row
    depth: int
    is_rest: bool = False


def tree(rows: list[Row]) -> list[Branch]:
    """Ranges with what is nested in them, in order: "audio.encoder" is in "audio"; the top ones add up to the step."""
    parents = {row.name: _parent(row.name, {r.name for r in rows}) for row in rows}
    return [branch for row in rows if not parents[row.name] for branch in _grow(row, rows, parents)]


def _parent(name: str, names: set[str]) -> str:
    parts = name.split(".")
    above = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((n for n in above if n in names), "")


def _grow(row: Row, rows: list[Row], parents: Mapping[str, str], depth: int = 0) -> list[Branch]:
    children = [r for r in rows if parents[r.name] == row.name]
    below = [branch for child in children for branch in _grow(child, rows, parents, depth + 1)]
    parts = [row, *(b.row for b in below if b.depth == depth + 1 and not b.is_rest)]
    total = Row(
        row.name,
        row.calls,
        sum(r.forward_ms for r in parts),
        sum(r.backward_ms for r in parts),
        sum(r.other_ms for r in parts),
    )
    rest = [Branch(row, depth + 1, is_rest=True)] if children else []
    return [Branch(total, depth), *below, *rest]
