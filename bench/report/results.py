"""Finds the committed results that the report is written from."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

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
        goals: the newest result of `python -m bench goals` on it, if there is one.
    """

    name: str
    result: Result
    run: Run
    others: list[Result]
    goals: Result | None

    @property
    def on_gpu(self) -> bool:
        """Whether the run was one of a GPU: a machine that has one can measure its processor, too."""
        return bool(self.run.machine.get("gpu")) and _slug(self.run.machine["gpu"]) == self.name

    @property
    def title(self) -> str:
        """The device as people call it."""
        machine = self.run.machine
        if self.on_gpu:
            return str(machine["gpu"])
        return f"{machine.get('processor', self.name)}, {machine.get('threads')} threads"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the run, however its file is laid out."""
        text = json.dumps(asdict(self.run), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def of_commit(run: Run) -> str:
    """Which state of the repository a run measured, as the end of a sentence."""
    commit = str(run.machine.get("commit") or "")
    if not commit:
        return "measured outside a checkout"
    changed = ", with changes" if commit.endswith("+") else ""
    return f"figures of commit {commit.rstrip('+')}{changed}, measured {run.machine.get('date')}"


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
    goals = {result.device: result for result in _named(root, "goals")}
    reported = [_device(results, goals.get(name)) for name, results in by_device.items()]
    return sorted(reported, key=lambda device: (not device.on_gpu, device.name))


def _device(results: list[Result], goals: Result | None) -> Device:
    main = newest(results)
    others = [r for r in results if r.date == main.date and r != main]
    return Device(_slug(main.device), main, Run.load(main.path), others, goals)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
