"""Compares results and gradients of our backends with float64, at the sizes that are measured."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from avemo import storage

from . import device, machine, watch
from .journal import Journal
from .names import asked_as, plain
from .plan import Checked, OperatorPlan
from .suite import Choice, operator_suite

VERSION = 1
RIGHT, WRONG, LEFT_OUT = "right", "wrong", "left out"
_WIDTH = 58


@dataclass(frozen=True)
class Verdict:
    """What became of a backend at a case.

    Attributes:
        outcome: "right", "wrong" (it fails, too) or "left out".
        share: of its allowed error, None where it came to none.
        why: it is not right.
    """

    outcome: str
    share: float | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.outcome == LEFT_OUT:
            return f" left out: {self.why}"
        share = f"{'-':>20}" if self.share is None else f"{self.share:>20.0%}"
        return f"{share}  WRONG: {self.why}" if self.outcome == WRONG else share


@dataclass(frozen=True)
class Found:
    """Verdicts by case and backend.

    Attributes:
        machine: as `bench.machine.describe` has it.
        cases: verdicts by the case's name, then by the backend's.
    """

    machine: dict[str, Any]
    cases: dict[str, dict[str, Verdict]]

    def save(self, path: Path) -> None:
        """Writes them as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write(path, json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Found":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file was not written by this version.
        """
        values = json.loads(path.read_text("utf-8"))
        kind = isinstance(values, dict) and values.get("version") == VERSION
        if not kind or any(
            "outcome" not in v for c in values["cases"].values() for v in c.values()
        ):
            raise ValueError(f"{path} is not a result of `python -m bench parity`")
        cases = {
            case: {name: Verdict(**verdict) for name, verdict in verdicts.items()}
            for case, verdicts in values["cases"].items()
        }
        return cls(values["machine"], cases)

    def add(self, other: "Found") -> None:
        """Takes in verdicts that are not there yet."""
        for case, verdicts in other.cases.items():
            self.cases[case] = verdicts | self.cases.get(case, {})

    def count(self, outcome: str) -> int:
        """How many verdicts are such."""
        return sum(
            v.outcome == outcome for verdicts in self.cases.values() for v in verdicts.values()
        )

    @property
    def status(self) -> int:
        """Exit status: 1 where a backend is wrong or nothing is right."""
        return 1 if self.count(WRONG) or not self.count(RIGHT) else 0

    def __str__(self) -> str:
        counts = [(self.count(outcome), outcome) for outcome in (RIGHT, WRONG, LEFT_OUT)]
        total = sum(count for count, _ in counts)
        return f"{total} asked for: " + ", ".join(f"{count} {word}" for count, word in counts)


def earlier(path: Path, here: dict[str, Any]) -> Found:
    """What a file has, or nothing where there is none.

    Args:
        path: of the file.
        here: this machine, as it is described.

    Raises:
        ValueError: it is of another machine, software or commit.
    """
    if not path.is_file():
        return Found(here, {})
    found = Found.load(path)
    machine.require_same(found.machine, here, f"{path} cannot be resumed")
    return found


def run_parity(
    choice: Choice, operators: Sequence[str], out: Path | None = None, resume: bool = False
) -> int:
    """Prints what became of every backend at every case: how much of its allowed error it takes, or why there is none.

    The rule is that of `fbp_kernels.correct`. Graphs, which replay what is compared here, are compared where they are
    timed.

    Args:
        choice: of cases and backends.
        operators: subjects of `bench.operators`.
        out: where the verdicts are written after every case.
        resume: go on with what is there.

    Returns:
        0, or 1 where a backend is wrong or fails, or nothing is right.
    """
    here = machine.describe(choice.device)
    found = earlier(out, here) if resume and out else Found(here, {})
    journal = Journal(out)
    if not resume:
        journal.forget()
    elif now := journal.blame("the run ended without a word"):
        print(f"the run before ended without a word: {now}; it is left out as failed")
    print(f"{'case':<{_WIDTH}}{'backend':<18}{'of the allowed error':>20}")
    asked = Found(here, {})
    for operator in operators:
        plans = operator_suite(operator)(choice)
        if not plans:
            print(f"{operator} has none of the shapes asked for")
        for plan in plans:
            assert isinstance(plan, OperatorPlan)
            names = [n for n in choice.names(plan) if asked_as(n) in choice.backends]
            names = [n for n in names if n == plain(n)]
            there = found.cases.get(plan.name, {})
            new = _verdicts(plan, [n for n in names if n not in there], journal)
            found.cases[plan.name] = there | new
            asked.cases[plan.name] = {name: found.cases[plan.name][name] for name in names}
            if out is not None and new:
                found.save(out)
            journal.settle(plan.name)
            for name, verdict in asked.cases[plan.name].items():
                known = "" if name in new else "  (known)"
                print(f"{plan.name:<{_WIDTH}}{name:<18}{verdict}{known}", flush=True)
    print(asked)
    return asked.status


def _verdicts(plan: OperatorPlan, names: list[str], journal: Journal) -> dict[str, Verdict]:
    failed = journal.failed(plan.name, names)
    left = [name for name in names if name not in failed]
    verdicts = {name: Verdict(WRONG, None, why) for name, why in failed.items()}
    if left:
        try:
            checked = plan.check(left, lambda who, doing: journal.note(plan.name, who, doing))
        except device.DeviceLostError as error:
            watch.lost(f"{journal.now}: {error}")
        verdicts |= {name: _verdict(checked, name) for name in left}
    return {name: verdicts[name] for name in names}


def _verdict(checked: Checked, name: str) -> Verdict:
    if name in checked.left_out:
        return Verdict(LEFT_OUT, None, checked.left_out[name])
    share = checked.worst.get(name)
    if name in checked.wrong:
        return Verdict(WRONG, share, checked.wrong[name])
    return Verdict(RIGHT, share)


def share_out(
    command: Callable[[Sequence[str], Path], list[str]],
    operators: Sequence[str],
    out: Path,
    here: dict[str, Any],
    *,
    resume: bool,
    processes: int,
    patience: float | None,
) -> int:
    """Lets several processes compare, some operators each, and puts what they found into one file.

    Args:
        command: of a process that compares operators and writes into a file, by both; it resumes.
        operators: subjects of `bench.operators`.
        out: the file.
        here: this machine, as it is described.
        resume: go on with what is there.
        processes: how many.
        patience: see `bench.watch.watched`.

    Returns:
        As `run_parity`; `watch.STOPPED` where somebody stopped it: what was found until then is in the file.
    """
    parts = out.with_suffix(".parts")
    if not resume:
        shutil.rmtree(parts, ignore_errors=True)
    found = earlier(out, here) if resume else Found(here, {})
    for part in sorted(parts.glob("*.json")):  # of a call that was killed
        found.add(earlier(part, here))
    parts.mkdir(parents=True, exist_ok=True)
    groups = [operators[first::processes] for first in range(min(processes, len(operators)))]
    stop, alone = Event(), Lock()

    def compare(number: int, group: Sequence[str]) -> int:
        part, log = parts / f"{number}.json", parts / f"{number}.log"
        known = {n: verdicts for n, verdicts in found.cases.items() if n.split(" ", 1)[0] in group}
        Found(here, known).save(part)
        said: list[str] = []
        with open(log, "w") as output:
            status = watch.watched(
                command(group, part), part, patience, said.append, output.fileno(), stop
            )
        with alone:
            print(log.read_text("utf-8"), *said, sep="\n", flush=True)
        return status

    statuses = [1]
    pool = ThreadPoolExecutor(processes)
    try:
        with watch.stoppable():
            futures = [pool.submit(compare, *numbered) for numbered in enumerate(groups)]
            statuses = [future.result() for future in futures]
    except (watch.StoppedError, KeyboardInterrupt):
        stop.set()
    finally:
        pool.shutdown(cancel_futures=True)
    for part in sorted(parts.glob("*.json")):
        found.add(Found.load(part))
    found.save(out)
    _keep_failures(parts)
    print(*_summary(found), sep="\n", flush=True)
    if stop.is_set():
        return watch.STOPPED
    return found.status or max(statuses)


def _keep_failures(parts: Path) -> None:
    """Removes the parts, unless one knows of a failure that is not in its result."""
    if not any(parts.glob("*.journal")):
        shutil.rmtree(parts)


def _summary(found: Found) -> Iterator[str]:
    for case, verdicts in found.cases.items():
        for name, verdict in verdicts.items():
            if verdict.outcome == WRONG:
                yield f"WRONG: {name} in {case}: {verdict.why}"
    yield f"in the file: {found}"
