"""What a run of the benchmarks leaves: typed, written as one JSON file, read by `compare` and `report`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avemo import storage

VERSION = 1


@dataclass(frozen=True)
class Spread:
    """Percentiles of a sample.

    Attributes:
        low: the 10th.
        lower: the 25th.
        median: the 50th.
        upper: the 75th.
        high: the 90th.
    """

    low: float
    lower: float
    median: float
    upper: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The percentiles of a sample, which is not empty."""
        percentiles = np.percentile(values, [10, 25, 50, 75, 90])
        return cls(*(float(f"{x:.5g}") for x in percentiles))


@dataclass(frozen=True)
class Measurement:
    """One contender in one case.

    Attributes:
        seconds: of one call.
        turns: how many were timed, each of them beside one call of every other contender.
        ratios: by peer, the peer's time over this contender's in the same turn; above 1 this one is faster.
        peak_bytes: most that PyTorch's allocator held at once beyond what there was before the call, or None
            where it was not measured.
        kept_bytes: held between forward and backward beyond inputs and weights; None in a forward.
        launches: kernels started on a GPU by one call, None on a CPU.
    """

    seconds: Spread
    turns: int
    ratios: dict[str, Spread]
    peak_bytes: int | None = None
    kept_bytes: int | None = None
    launches: int | None = None


def case_name(operator: str, label: str, dtype: str, mode: str) -> str:
    """What identifies a case among those of a run, measured already or not yet."""
    return f"{operator} {label} {dtype} {mode}"


@dataclass(frozen=True)
class Case:
    """What was measured together, in turn, in one process.

    Attributes:
        operator: such as "fbp", or "training_step".
        label: a row of `bench.shapes.SHAPES`, or a point of a curve, such as "B=16".
        curve: the size that a family of cases varies: "B", "K" or "H", or "" for a case on its own.
        sizes: what the operator was called with, by the field's letters.
        dtype: "float32", "tf32", "bfloat16" or "float16".
        mode: "forward", or "training" for forward and backward.
        flops: of the operator at its best: products only, projections kept for the backward.
        bytes: each input and weight read once, each result written once.
        floor_seconds: the larger of flops and bytes over the machine's ceilings of the same run.
        contenders: by name: "native" and "triton" are ours (with " keep" or " recompute" behind them they are told
            whether to keep the projections for the backward, where they would do the other), "accelerated" a model
            with ours;
            peers are "eager", "channels-last" (a model all in that memory format), "compile", "max-autotune",
            "products" (bare matrix products), "plain" (a better expression in plain PyTorch), "mfb"
            (block.bootstrap.pytorch), "copy"; a name with " graph" at its end
            was replayed as a CUDA graph.
        left_out: by name, contenders that could not run, and why.
    """

    operator: str
    label: str
    curve: str
    sizes: dict[str, int]
    dtype: str
    mode: str
    flops: float
    bytes: float
    floor_seconds: float
    contenders: dict[str, Measurement] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What identifies the case among those of a run."""
        return case_name(self.operator, self.label, self.dtype, self.mode)


@dataclass(frozen=True)
class Ceilings:
    """The machine's two ceilings, measured in the same run.

    Attributes:
        flops: by dtype, operations per second of the fastest large matrix product, and which that was.
        bytes: bytes per second of a large copy, read and written ones counted.
        product: by dtype, what gave `flops`.
    """

    flops: dict[str, float]
    bytes: float
    product: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        machine: what the timings depend on: `device` (its short name), `date`, `processor`, `threads`,
            `instruction_set`, `gpu`, `driver`, `system`, `python`, `torch`, `triton`, `commit`.
        ceilings: of the machine.
        cases: in the order in which they were measured.
    """

    machine: dict[str, Any]
    ceilings: Ceilings
    cases: list[Case]

    def save(self, path: Path) -> None:
        """Writes the run as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"version": VERSION} | asdict(self)
        storage.write(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file was not written by this version.
        """
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise ValueError(f"{path} is not a result of `python -m bench run`, version {VERSION}")
        return cls(
            values["machine"],
            Ceilings(**values["ceilings"]),
            [_case(case) for case in values["cases"]],
        )


def _case(values: dict[str, Any]) -> Case:
    contenders = {name: _measurement(m) for name, m in values["contenders"].items()}
    return Case(**(values | {"contenders": contenders}))


def _measurement(values: dict[str, Any]) -> Measurement:
    ratios = {peer: Spread(**r) for peer, r in values["ratios"].items()}
    return Measurement(**(values | {"seconds": Spread(**values["seconds"]), "ratios": ratios}))
