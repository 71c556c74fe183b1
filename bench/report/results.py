"""Finds the committed results that the report is written from."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from avemo.machine import slug, title

from ..goal_records import Goals
from ..records import Run

RESULTS = Path("bench", "results")
_NAME = re.compile(
    r"(?P<kind>[a-z]+)-(?P<device>.+?)-(?P<date>\d{4}-\d{2}-\d{2})(-(?P<suffix>.+))?"
)


@dataclass(frozen=True)
class Result:
    """A result file, named KIND-DEVICE-DATE.json, or KIND-DEVICE-DATE-SUFFIX.json.

    Attributes:
        path: of the file.
        device: as the name has it.
        date: year-month-day.
        suffix: what sets it apart from the main result of that day, such as "repeat"; "" for the main one.
    """

    path: Path
    device: str
    date: str
    suffix: str


@dataclass(frozen=True)
class Device:
    """What is reported of one device.

    Attributes:
        name: fit for a path.
        result: the file.
        run: what it holds.
        others: results with a suffix, of the same day and device.
    """

    name: str
    result: Result
    run: Run
    others: list[Result]

    @property
    def on_gpu(self) -> bool:
        """Whether the run was one of a GPU: a machine that has one can measure its processor, too."""
        return bool(self.run.machine.get("gpu")) and slug(self.run.machine["gpu"]) == self.name

    @property
    def title(self) -> str:
        """The device as people call it."""
        return str(self.run.machine["gpu"]) if self.on_gpu else title(self.run.machine)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the run, however its file is laid out."""
        text = json.dumps(asdict(self.run), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class GoalResult:
    """What `python -m bench goals` left.

    Attributes:
        result: the file.
        goals: what it holds.
    """

    result: Result
    goals: Goals

    @property
    def title(self) -> str:
        """The machine as people call it, and what sets the result apart from another of it."""
        suffix = f" ({self.result.suffix})" if self.result.suffix else ""
        return title(self.goals.machine) + suffix


def of_commit(machine: Mapping[str, Any]) -> str:
    """Which state of the repository a run measured, as the end of a sentence."""
    commit = str(machine.get("commit") or "")
    if not commit:
        return "measured outside a checkout"
    changed = ", with changes" if commit.endswith("+") else ""
    return f"figures of commit {commit.rstrip('+')}{changed}, measured {machine.get('date')}"


def link_to(result: Result) -> str:
    """A link to a result's file from a page in docs/."""
    return f"[{result.path.name}](../{(RESULTS / result.path.name).as_posix()})"


def found(root: Path, kind: str) -> list[Result]:
    """The results of a kind, oldest first.

    Args:
        root: of the repository.
        kind: how the file's name begins, such as "demo".

    Raises:
        FileNotFoundError: there is none.
    """
    results = _named(root, kind)
    if not results:
        where = RESULTS.as_posix()
        raise FileNotFoundError(f"no result {kind}-DEVICE-DATE.json in {where}")
    return results


def _named(root: Path, kind: str) -> list[Result]:
    results = [
        Result(path, match["device"], match["date"], match["suffix"] or "")
        for path in sorted((root / RESULTS).glob("*.json"))
        if (match := _NAME.fullmatch(path.stem)) and match["kind"] == kind
    ]
    return sorted(results, key=lambda result: (result.date, result.suffix))


def newest(results: list[Result]) -> Result:
    """The newest one without a suffix, or with one where there are no others."""
    plain = [result for result in results if not result.suffix]
    return (plain or results)[-1]


def devices(root: Path) -> list[Device]:
    """The newest run of the benchmarks on each device: graphics processors first, then by name.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is no result of `python -m bench run`.
    """
    by_device: dict[str, list[Result]] = {}
    for result in found(root, "bench"):
        by_device.setdefault(result.device, []).append(result)
    reported = [_device(results) for results in by_device.values()]
    return sorted(reported, key=lambda device: (not device.on_gpu, device.name))


def goals(root: Path) -> list[GoalResult]:
    """The newest goals of each machine, by name, after those with a suffix, such as what was before a change.

    Raises:
        ValueError: a file is no result of `python -m bench goals`.
    """
    latest: dict[tuple[str, str], Result] = {}
    for result in _named(root, "goals"):
        latest[result.device, result.suffix] = result
    ordered = sorted(latest.values(), key=lambda r: (r.device, not r.suffix, r.date))
    return [GoalResult(result, Goals.load(result.path)) for result in ordered]


def _device(results: list[Result]) -> Device:
    main = newest(results)
    others = [r for r in results if r.date == main.date and r != main]
    return Device(slug(main.device), main, Run.load(main.path), others)
