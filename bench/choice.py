"""Enters what a GPU measured into the table by which `fbp_kernels` chooses a backend there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fbp_kernels import backends, choice, ops

from .operators import SUBJECTS, Draw
from .records import Case, Run

# bfloat16 stands for half precision; TF32 goes by float32.
_DTYPES = {"bfloat16": "half", "float32": "float32"}
_CONTENDERS = {"native": "native", "triton": "triton", "eager": "reference"}  # called from Python


def run_choice(paths: Sequence[Path], table: Path = choice.TABLE) -> int:
    """Enters results into the table, and prints what it says then; gives the exit status."""
    rows = choice.table(table)
    for path in paths:
        rows = entered(rows, Run.load(path))
    table.write_text(choice.text(rows), "utf-8")
    for row in rows:
        print(f"{row}\n  -> {', '.join(row.order)}")
    return 0


def entered(rows: Sequence[choice.Row], run: Run) -> list[choice.Row]:
    """The rows with the cases of a run; what it did not measure stays as it was.

    Raises:
        ValueError: the run is none of a GPU.
    """
    machine = run.machine
    if not machine.get("gpu"):
        raise ValueError(f"a run of {machine.get('processor')}: the table is of GPUs")
    source = (
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}, "
        f"commit {machine['commit']}, {machine['date']}"
    )
    found = {(row.operator, row.dtype, row.label): row for row in rows}
    for case in run.cases:
        if case.curve or case.dtype not in _DTYPES or case.operator not in ops.__all__:
            continue
        key = (case.operator, _DTYPES[case.dtype], case.label)
        found[key] = _with(found.get(key), key, case, source)
    return list(found.values())


def _with(
    before: choice.Row | None, key: tuple[str, str, str], case: Case, source: str
) -> choice.Row:
    """A row with one case more."""
    seconds = {
        ours: case.contenders[name].seconds.median
        for name, ours in _CONTENDERS.items()
        if name in case.contenders
    }
    if before is None:
        call = SUBJECTS[case.operator].make(case.sizes, Draw(case.dtype))
        before = choice.Row(*key, backends.work(case.operator, call.tensors), {}, source)
    old = before.seconds.get(case.mode, {})
    # A note is on what was there before.
    note = before.note if old.keys() - seconds.keys() or case.mode not in before.seconds else ""
    every = {**before.seconds, case.mode: {**old, **seconds}}
    return replace(before, seconds=every, source=source, note=note)
