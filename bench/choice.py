"""Enters what was measured into the table by which `fbp_kernels` chooses a backend, and says what that changes."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avemo.machine import slug, title
from fbp_kernels import backends, choice, ops

from .goal_records import Goals
from .operators import SUBJECTS, Draw
from .records import Run, Spread

# On a GPU bfloat16 stands for half precision; TF32 goes by float32.
_GPU_DTYPES = {"bfloat16": "half", "float32": "float32"}
# Not entered: at a size of 1 the reference that is timed is called without the checks that every operator makes first,
# and those take longer than it does.
_LEAST = "one"
_CONTENDERS = {"native": "native", "triton": "triton", "eager": "reference"}  # called from Python


@dataclass(frozen=True)
class Timed:
    """What one of a result's cases says of a choice.

    Attributes:
        operator: such as "fbp".
        label: of the sizes.
        sizes: by the field's letters.
        dtype: of the inputs.
        mode: "forward" or "training".
        seconds: by backend.
    """

    operator: str
    label: str
    sizes: dict[str, int]
    dtype: str
    mode: str
    seconds: dict[str, float]


def run_choice(paths: Sequence[Path], table: Path = choice.TABLE) -> int:
    """Enters results into the table, and prints what is chosen otherwise then, and where nothing fused is.

    Returns:
        0; 2, with the table as it was, where a file is no result that can be entered.
    """
    before = rows = choice.table(table)
    try:
        for path in paths:
            rows = entered(rows, *_read(path))
    except ValueError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    table.write_text(choice.text(rows), "utf-8")
    known = {row.key: row for row in before}
    changed = [row for row in rows if known.get(row.key) != row]
    print(f"{len(changed)} of {len(rows)} rows are new or measured anew; chosen otherwise:")
    for line in _differences(known, changed) or ["nothing"]:
        print(f"  {line}")
    print("where the reference comes first:")
    for line in [line for row in rows for line in _lost(row)] or ["nowhere"]:
        print(f"  {line}")
    return 0


def _read(path: Path) -> tuple[Mapping[str, Any], list[Timed]]:
    """The machine and the cases of a result of `run` or of `goals`.

    Raises:
        ValueError: it is neither.
    """
    if "goals" in json.loads(path.read_text("utf-8")):
        goals = Goals.load(path)
        return goals.machine, [*_of_goals(goals)]
    run = Run.load(path)
    return run.machine, [*_of_run(run)]


def _of_goals(goals: Goals) -> Iterator[Timed]:
    for r in goals.reached:
        if r.goal.peer == "eager" and r.ratio and "eager" in r.seconds:
            seconds = {
                "native": _by_turns(r.seconds["eager"], r.ratio),
                "reference": r.seconds["eager"],
            }
            yield Timed(
                r.goal.operator, r.goal.label, r.goal.sizes, r.goal.dtype, r.goal.mode, seconds
            )


def _of_run(run: Run) -> Iterator[Timed]:
    for case in run.cases:
        there = {
            ours: case.contenders[n] for n, ours in _CONTENDERS.items() if n in case.contenders
        }
        seconds = {ours: measured.seconds.median for ours, measured in there.items()}
        for ours, measured in there.items():
            if "reference" in there and "eager" in measured.ratios:
                seconds[ours] = _by_turns(seconds["reference"], measured.ratios["eager"])
        if seconds and not case.curve:
            yield Timed(case.operator, case.label, case.sizes, case.dtype, case.mode, seconds)


def _by_turns(eager: float, ratio: Spread) -> float:
    """Our time as eager's and the ratio have it: a ratio of medians would have what else the machine did in it."""
    return eager / ratio.median


def entered(
    rows: Sequence[choice.Row], machine: Mapping[str, Any], cases: Iterable[Timed]
) -> list[choice.Row]:
    """The rows with what a machine measured; what it did not measure stays as it was.

    Args:
        rows: the table's.
        machine: as `bench.machine.describe` has it.
        cases: of a result.

    Raises:
        ValueError: the kernels' instruction set is not that of their peers, or no case says anything of a choice.
    """
    target, source = _target(machine)
    found = {row.key: row for row in rows}
    count = 0
    for case in cases:
        dtype = _GPU_DTYPES.get(case.dtype, "") if target == choice.GPU else case.dtype
        if case.operator in ops.__all__ and dtype not in ("", "tf32") and case.label != _LEAST:
            key = (target, case.operator, dtype, case.label)
            found[key] = _with(found.get(key), key, case, source)
            count += 1
    if not count:
        raise ValueError(
            "no operator was timed beside eager PyTorch; goals have times since 2026-11-28"
        )
    return list(found.values())


def _target(machine: Mapping[str, Any]) -> tuple[str, str]:
    """What ran a result, and the words for it.

    Raises:
        ValueError: the kernels were held to an instruction set, and what they were compared with was not.
    """
    software = f"torch {machine['torch']}"
    of = f"commit {machine['commit']}, {machine['date']}"
    if machine.get("gpu") and machine["device"] == slug(machine["gpu"]):
        return choice.GPU, f"{machine['gpu']}, {software}, Triton {machine['triton']}, {of}"
    isa = str(machine["instruction_set"])
    if machine["device"].endswith(f"-kernels-{slug(isa)}"):
        raise ValueError(f"the kernels were held to {isa}, but not PyTorch; --hold holds both")
    if not isa:
        raise ValueError("the C++ extension was not there")
    return isa, f"{title(machine)}, {software}, {of}"


def _with(
    before: choice.Row | None, key: tuple[str, str, str, str], case: Timed, source: str
) -> choice.Row:
    """A row with one case more."""
    if before is None:
        call = SUBJECTS[case.operator].make(case.sizes, Draw("float32"))
        before = choice.Row(*key, backends.work(case.operator, call.tensors), {}, source)
    old = before.seconds.get(case.mode, {})
    # A note is on what was there before.
    kept = old.keys() - case.seconds.keys() or case.mode not in before.seconds
    rounded = {name: float(f"{s:.5g}") for name, s in case.seconds.items()}
    every = {**before.seconds, case.mode: {**old, **rounded}}
    ordered = {mode: every[mode] for mode in choice.MODES if mode in every}
    return replace(before, seconds=ordered, source=source, note=before.note if kept else "")


def _differences(
    known: Mapping[tuple[str, str, str, str], choice.Row], rows: Iterable[choice.Row]
) -> list[str]:
    """Modes in which another backend comes first than did before."""
    lines = []
    for row in rows:
        for mode in row.seconds:
            first, old = row.order(mode)[0], known.get(row.key)
            if old is None or old.order(mode)[0] != first:
                was = old.order(mode)[0] if old else "not measured"
                lines.append(f"{_name(row, mode)}: {was} -> {first}{_speed(row, mode)}")
    return lines


def _lost(row: choice.Row) -> list[str]:
    return [
        f"{_name(row, mode)}{_speed(row, mode)}"
        for mode in row.seconds
        if row.order(mode)[0] == "reference"
    ]


def _name(row: choice.Row, mode: str) -> str:
    return f"{row.target} {row.operator} {row.label} {row.dtype} {mode}"


def _speed(row: choice.Row, mode: str) -> str:
    shares = {name: row.share(name, mode) for name in ("native", "triton")}
    times = [f"{name} {1 / share:.2f}" for name, share in shares.items() if share]
    return f" ({', '.join(times)} times as fast as eager)" if times else ""
