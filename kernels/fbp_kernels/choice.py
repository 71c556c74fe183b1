"""Which backend a call gets where nobody asks for one: measurements, and a rule for what was not measured.

`choice.json` has the measurements, for GPUs and for each instruction set of the CPU kernels: a row for each operator,
dtype and size. `python -m bench choice RESULTS` fills it. In each mode, forward alone or with the backward to come, a
row puts the fused backends that were measured first, the fastest in front, then those that were not, then the
reference; but a fused backend that takes longer than the reference goes behind it. A mode that was not measured goes
by the other one. A call goes by the row that is nearest in work:

1. among those of its operator and dtype; else
2. of its operator in float32; else in any dtype; else
3. of the operators that have the same kernels.

Without any the fused kernels go first: they were written to be faster, and nothing says that they are not; but for
convolutions, which PyTorch leaves to libraries for the very processor, the reference does. On a GPU
what has been done before Python could have launched the next Triton kernel goes to the native kernels, whose launch
costs less; what takes longer goes to Triton.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("choice.json")
GPU = "cuda"
MODES = ("forward", "training")
# What PyTorch hands to a library for the very processor: a kernel of ours goes first only where it was seen to win.
OF_VENDORS = ("conv2d",)
SAME_KERNELS = ("am_fbp", "fbp", "trunk_fbp")
# In multiply-adds: what the native kernels do in 50 us at the rate that they had on an H200 at `clip`, 5.6e12 a second.
# A call of theirs cost Python 28 us there, one of Triton's 357.
HIDDEN = 2**28


@dataclass(frozen=True)
class Row:
    """What was measured of an operator at one size.

    Attributes:
        target: what ran it: "cuda", or the instruction set of the CPU kernels, such as "avx2".
        operator: such as "am_fbp".
        dtype: such as "bfloat16"; on a GPU its class, "half" or "float32", by which TF32 goes.
        label: of the shape, such as "clip".
        work: in multiply-adds, as the operator's file counts it.
        seconds: of a call from Python, by mode ("forward" or "training") and backend.
        source: the machine, versions and date.
        note: what else has to be known of it.
    """

    target: str
    operator: str
    dtype: str
    label: str
    work: int
    seconds: dict[str, dict[str, float]]
    source: str
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What there is one row of."""
        return self.target, self.operator, self.dtype, self.label

    def share(self, backend: str, mode: str) -> float | None:
        """Of the reference's time in a mode, or in the other one where it was measured there alone; else None."""
        for one in (mode, *MODES):
            by = self.seconds.get(one, {})
            if backend in by and "reference" in by:
                return by[backend] / by["reference"]
        return None

    def order(self, mode: str) -> tuple[str, ...]:
        """The backends in a mode, best first; on a CPU, where it is interpreted, Triton comes last."""
        fused = ("native", "triton") if self.target == GPU else ("native",)
        share = {backend: self.share(backend, mode) for backend in fused}
        measured = sorted((s, backend) for backend, s in share.items() if s is not None)
        won = [backend for s, backend in measured if s <= 1]
        lost = [backend for s, backend in measured if s > 1]
        unknown = [backend for backend in fused if share[backend] is None]
        order = (*won, *unknown, "reference", *lost)
        return order if self.target == GPU else (*order, "triton")

    @property
    def loses(self) -> bool:
        """Whether the reference comes first in some mode."""
        return any(self.order(mode)[0] == "reference" for mode in MODES)

    def __str__(self) -> str:
        times = "; ".join(
            f"{mode} " + ", ".join(f"{name} {s * 1e6:.0f} us" for name, s in by.items())
            for mode, by in self.seconds.items()
        )
        note = f"; {self.note}" if self.note else ""
        return f"{self.operator} at {self.label} in {self.dtype}: {times}{note} ({self.source})"


@dataclass(frozen=True)
class Step:
    """What holds up to some work.

    Attributes:
        work: multiply-adds, infinity for the last step.
        order: the backends, best first.
        why: the row or the rule.
    """

    work: float
    order: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Choice:
    """What there is to choose for an operator in one dtype on one target.

    Attributes:
        steps: by mode, in ascending order of work; the last step has no end.
        bounds: the same in short: up to some work, the orders of a forward alone and of one with a backward to come.
        always: the order that every call has, whatever its size and mode; None where it depends on them.
    """

    steps: dict[str, tuple[Step, ...]]
    bounds: tuple[tuple[float, tuple[str, ...], tuple[str, ...]], ...]
    always: tuple[str, ...] | None

    @classmethod
    def of(cls, steps: dict[str, tuple[Step, ...]]) -> "Choice":
        """Ready to be asked, by a compiler that traces the question too."""
        bounds: list[tuple[float, tuple[str, ...], tuple[str, ...]]] = []
        for forward, training in zip(*(steps[mode] for mode in MODES), strict=True):
            if bounds and bounds[-1][1:] == (forward.order, training.order):
                bounds.pop()
            bounds.append((forward.work, forward.order, training.order))
        _, forward_order, training_order = bounds[0]
        alike = len(bounds) == 1 and forward_order == training_order
        return cls(steps, tuple(bounds), forward_order if alike else None)

    def step(self, mode: str, work: float = math.inf) -> Step:
        """What holds for some work."""
        for step in self.steps[mode]:
            if work <= step.work:
                return step
        raise AssertionError("the last step has no end")


def kind(target: str, dtype: torch.dtype | None) -> str:
    """What rows of a target have for a dtype; where none is known, what most calls have there."""
    if target == GPU:
        return "float32" if dtype is torch.float32 else "half"
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def choice(target: str, operator: str, dtype: str, rows: Sequence[Row] | None = None) -> Choice:
    """What there is to choose for an operator.

    Args:
        target: as rows have it.
        operator: such as "fbp".
        dtype: as rows of the target have it.
        rows: the table's, by default.
    """
    rows = measured() if rows is None else rows
    near, rule = _candidates(operator, dtype, [row for row in rows if row.target == target])
    if not near:
        return Choice.of(dict.fromkeys(MODES, _unmeasured(target, operator, rule)))
    # Half way between two sizes is where both are as near, in doublings.
    ends = [*(math.sqrt(a.work * b.work) for a, b in pairwise(near)), math.inf]
    why = [f"{rule}{row}" for row in near]
    return Choice.of(
        {
            mode: tuple(
                Step(end, row.order(mode), said)
                for row, end, said in zip(near, ends, why, strict=True)
            )
            for mode in MODES
        }
    )


def _unmeasured(target: str, operator: str, rule: str) -> tuple[Step, ...]:
    if operator in OF_VENDORS:
        why = f"{rule}, and PyTorch's own is the work of a processor's makers"
        return (Step(math.inf, ("reference", "native", "triton"), why),)
    if target != GPU:
        why = f"{rule}, and its kernel was written to be faster"
        return (Step(math.inf, ("native", "reference", "triton"), why),)
    return (
        Step(HIDDEN, ("native", "triton", "reference"), f"{rule}, and native launches faster"),
        Step(math.inf, ("triton", "native", "reference"), f"{rule}, and this is no small call"),
    )


def _candidates(operator: str, dtype: str, rows: Iterable[Row]) -> tuple[list[Row], str]:
    """The rows that the nearest is chosen from, by work, and how they came to be those."""
    rows = sorted(rows, key=lambda row: row.work)
    own = [row for row in rows if row.operator == operator]
    same = [row for row in own if row.dtype == dtype]
    if same:
        return same, "measured: "
    if own:
        single = [row for row in own if row.dtype == "float32"]
        return single or own, f"not measured in {dtype}, so by the other dtypes: "
    family = SAME_KERNELS if operator in SAME_KERNELS else ()
    kin = [row for row in rows if row.operator in family]
    alike = [row for row in kin if row.dtype == dtype] or kin
    return alike, f"{operator} is not measured{', so by those with the same kernels: ' * bool(kin)}"


def table(path: Path = TABLE) -> list[Row]:
    """The measurements."""
    return [Row(**row) for row in json.loads(path.read_text("utf-8"))]


@functools.cache
def measured() -> list[Row]:
    """The table as the package came with it."""
    return table()


def text(rows: Iterable[Row]) -> str:
    """A table as its file has it: a row a line, in order, so that changes can be read."""
    ordered = sorted(
        rows, key=lambda row: (row.target, row.operator, row.dtype, row.work, row.label)
    )
    lines = [json.dumps({k: v for k, v in vars(row).items() if v != ""}) for row in ordered]
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n"
