"""Which backend a call on a GPU gets where nobody asks for one: measurements, and a rule for what was not measured.

`choice.json` has the measurements, a row for each operator, dtype and size; `python -m bench choice RESULTS` fills it.
A row puts the fused backends that were measured before the others, the fastest first, and the reference last: but
before those that take more than 1.25 times as long. A call goes by the row that is nearest in work:

1. among those of its operator and class of dtype; else
2. of its operator in the other dtypes; else
3. of the operators that have the same kernels.

Without any, what a GPU has done before Python could have launched the next Triton kernel goes to the native kernels,
whose launch costs less; what takes longer goes to Triton.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("choice.json")
FUSED = ("native", "triton")
SAME_KERNELS = ("am_fbp", "fbp", "trunk_fbp")
# A fused backend that takes this much longer than the reference has lost to it; less is noise, and saves memory.
FAR = 1.25
# In multiply-adds: what the native kernels do in 50 us at the rate that they had on an H200 at `clip`, 5.6e12 a second.
# A call of theirs cost Python 28 us there, one of Triton's 357.
HIDDEN = 2**28


@dataclass(frozen=True)
class Row:
    """What was measured of an operator at one size on a GPU.

    Attributes:
        operator: such as "am_fbp".
        dtype: its class, "half" or "float32"; TF32 goes by the latter.
        label: of the shape, such as "clip".
        work: in multiply-adds, as the operator's file counts it.
        seconds: of a call from Python, by mode ("forward" or "training") and backend.
        source: the GPU, versions and date.
        note: what else has to be known of it.
    """

    operator: str
    dtype: str
    label: str
    work: int
    seconds: dict[str, dict[str, float]]
    source: str
    note: str = ""

    def share(self, backend: str) -> float | None:
        """Of the reference's time: the geometric mean over the modes where both were measured, None where none was."""
        shares = [
            by[backend] / by["reference"]
            for by in self.seconds.values()
            if backend in by and "reference" in by
        ]
        return math.prod(shares) ** (1 / len(shares)) if shares else None

    @property
    def order(self) -> tuple[str, ...]:
        """The backends, best first."""
        share = {backend: self.share(backend) for backend in FUSED}
        measured = sorted((s, backend) for backend, s in share.items() if s is not None)
        won = [backend for s, backend in measured if s <= FAR]
        lost = [backend for s, backend in measured if s > FAR]
        unknown = [backend for backend in FUSED if share[backend] is None]
        return (*won, *unknown, "reference", *lost)

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


def kind(dtype: torch.dtype | None) -> str:
    """The class of a dtype; half precision where none is known."""
    return "float32" if dtype is torch.float32 else "half"


def steps(operator: str, dtype: str, rows: Sequence[Row] | None = None) -> tuple[Step, ...]:
    """The choice for an operator by work, in ascending order; the last step has no end.

    Args:
        operator: such as "fbp".
        dtype: a class of dtypes.
        rows: the table's, by default.
    """
    near, rule = _candidates(operator, dtype, table() if rows is None else rows)
    if not near:
        return (
            Step(HIDDEN, ("native", "triton", "reference"), f"{rule}, and native launches faster"),
            Step(math.inf, ("triton", "native", "reference"), f"{rule}, and this is no small call"),
        )
    # Half way between two sizes is where both are as near, in doublings.
    ends = [math.sqrt(a.work * b.work) for a, b in pairwise(near)]
    return tuple(
        Step(end, row.order, f"{rule}{row}")
        for row, end in zip(near, [*ends, math.inf], strict=True)
    )


def _candidates(operator: str, dtype: str, rows: Iterable[Row]) -> tuple[list[Row], str]:
    """The rows that the nearest is chosen from, by work, and how they came to be those."""
    rows = sorted(rows, key=lambda row: row.work)
    own = [row for row in rows if row.operator == operator]
    same = [row for row in own if row.dtype == dtype]
    if same:
        return same, "measured: "
    if own:
        return own, f"not measured in {dtype}, so by the other dtypes: "
    family = SAME_KERNELS if operator in SAME_KERNELS else ()
    kin = [row for row in rows if row.operator in family]
    alike = [row for row in kin if row.dtype == dtype] or kin
    return alike, f"{operator} is not measured{', so by those with the same kernels: ' * bool(kin)}"


def table(path: Path = TABLE) -> list[Row]:
    """The measurements."""
    return [Row(**row) for row in json.loads(path.read_text("utf-8"))]


def text(rows: Iterable[Row]) -> str:
    """A table as its file has it: a row a line, in order, so that changes can be read."""
    ordered = sorted(rows, key=lambda row: (row.operator, row.dtype, row.work))
    lines = [json.dumps({k: v for k, v in vars(row).items() if v != ""}) for row in ordered]
    return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]\n"
