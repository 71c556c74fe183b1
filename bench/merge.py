"""Puts results of one machine, software and commit into one file: those of two short visits."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import ceilings, machine, parity
from .records import Run
from .session import with_floor


def run_merge(paths: Sequence[Path], out: Path) -> int:
    """Writes the cases of all files into one; of a case in several, what the first of them has.

    Returns:
        0; 2 where a file is no result, or they are not of one machine, software and commit.
    """
    try:
        merged = _merged(paths)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    merged.save(out)
    print(f"written to {out}: {len(merged.cases)} cases")
    return 0


def _merged(paths: Sequence[Path]) -> Run | parity.Found:
    runs = [_load(path) for path in paths]
    first = runs[0]
    for path, other in zip(paths[1:], runs[1:], strict=True):
        if type(other) is not type(first):
            raise ValueError(f"{path} is of another kind than {paths[0]}")
        machine.require_same(
            other.machine, first.machine, f"{path} cannot be merged with {paths[0]}"
        )
        for name in _both(first, other):
            print(f"{name} is in {path}, too: that of {paths[0]} stays")
        first = _joined(first, other)
    return first


def _load(path: Path) -> Run | parity.Found:
    try:
        return parity.Found.load(path)
    except (ValueError, KeyError, AttributeError, TypeError):
        return Run.load(path)


def _names(run: Run | parity.Found) -> list[str]:
    if isinstance(run, parity.Found):
        return [f"{case} of {name}" for case, found in run.cases.items() for name in found]
    return [case.name for case in run.cases]


def _both(first: Run | parity.Found, other: Run | parity.Found) -> list[str]:
    known = set(_names(first))
    return [name for name in _names(other) if name in known]


def _joined(first: Run | parity.Found, other: Run | parity.Found) -> Run | parity.Found:
    if isinstance(first, parity.Found):
        assert isinstance(other, parity.Found)
        first.add(other)
        return first
    assert isinstance(other, Run)
    top = ceilings.raised(first.ceilings, other.ceilings)
    known = set(_names(first))
    cases = [*first.cases, *(case for case in other.cases if case.name not in known)]
    return replace(first, ceilings=top, cases=[with_floor(case, top) for case in cases])
