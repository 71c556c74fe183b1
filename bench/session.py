"""One run of the suites: every case is measured once, when the first of its contenders is due."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch._inductor.config as inductor_config

from . import ceilings, device, machine, watch
from .journal import Journal
from .names import is_ours
from .plan import Outcome, Plan, Settings
from .records import Case, Ceilings, Run
from .suite import Choice
from .timing import Clock, clock


class Session:
    """Measures cases and keeps what came of them.

    Args:
        choice: what was asked for.
        seconds: for the turns of one case.
        out: where all that is measured is written after every case, so that nothing is lost with what comes next.
        earlier: a run on the same machine, which this one goes on with.
        resume: whether it goes on with anything, be it only with what ended the run before.
        timer: times the turns; default the device's clock.
    """

    def __init__(
        self,
        choice: Choice,
        seconds: float,
        out: Path | None = None,
        earlier: Run | None = None,
        resume: bool = False,
        timer: Clock | None = None,
    ) -> None:
        self.choice, self.seconds, self.out = choice, seconds, out
        self._earlier = earlier
        self.outcomes: dict[str, Outcome] = {}
        self._chosen: dict[str, list[str]] = {}
        self._clock = timer or clock(choice.device)
        self._first: Ceilings | None = None
        self._family = ("", "", "")
        self._journal = Journal(out)
        if not resume:
            self._journal.forget()
        elif (now := self._journal.blame("the run ended without a word")) is not None:
            print(f"the run before ended without a word: {now}; it is left out as failed")
        # Graph breaks of the peers are theirs; a failure to compile is an error still.
        torch._logging.set_logs(dynamo=logging.ERROR, inductor=logging.ERROR)
        inductor_config.autotune_num_choices_displayed = 0

    def choose(self, plan: Plan, contender: str) -> None:
        """Notes that a contender takes part in a case."""
        self._chosen.setdefault(plan.name, []).append(contender)

    def outcome(self, plan: Plan) -> Outcome:
        """What came of a case, measured where it has not been yet."""
        if plan.name not in self.outcomes:
            self._forget_compiled(plan)
            self._ceilings()
            outcome = self._measured(plan)
            self.outcomes[plan.name] = outcome
            if self.out is not None:
                self.run(self._ceilings()).save(self.out)
            self._journal.settle(plan.name)
            print("\n" + "\n".join(summary(outcome.case)), flush=True)
        return self.outcomes[plan.name]

    def _measured(self, plan: Plan) -> Outcome:
        """What came of a case, without those who failed in its midst, here or in a process that they ended."""
        names = self._chosen[plan.name]
        note = partial(self._journal.note, plan.name)
        settings = Settings(self.choice.device, self.seconds, self._clock, note)
        while True:
            failed = self._journal.failed(plan.name, names)
            try:
                outcome = plan.measure([name for name in names if name not in failed], settings)
            except Exception as error:
                why = device.reason(error)
                if isinstance(error, device.DeviceLostError) or not device.answers(
                    self.choice.device
                ):
                    watch.lost(f"{self._journal.now}: {why}")
                now = self._journal.blame(f"fails: {why}")
                if now is None or len(failed) == len(names):
                    raise
                continue
            return with_failed(outcome, failed)

    def finish(self) -> None:
        """Measures the ceilings once more, of which the higher count, and writes the run."""
        if self.out is not None and self.outcomes:
            again = ceilings.measure(self.choice.device, list(self.choice.dtypes))
            self.run(ceilings.raised(self._ceilings(), again)).save(self.out)

    def run(self, top: Ceilings) -> Run:
        """All that was measured so far, under given ceilings of the machine."""
        cases = [outcome.case for outcome in self.outcomes.values()]
        if self._earlier is not None:
            top = ceilings.raised(self._earlier.ceilings, top)
            cases = [*self._earlier.cases, *cases]
        floors = [with_floor(case, top) for case in cases]
        return Run(machine.describe(self.choice.device), top, floors)

    @property
    def to_do(self) -> str:
        """How much there is to measure, as a sentence."""
        there = f", {len(self._earlier.cases)} are in the file" if self._earlier else ""
        return f"{len(self._chosen)} cases to measure{there}"

    def has(self, plan: Plan) -> bool:
        """Whether the earlier run measured a case."""
        return self._earlier is not None and any(c.name == plan.name for c in self._earlier.cases)

    def _ceilings(self) -> Ceilings:
        if self._first is None:
            self._first = ceilings.measure(self.choice.device, list(self.choice.dtypes))
        return self._first

    def _forget_compiled(self, plan: Plan) -> None:
        """Lets the compiler begin anew with every family of cases: it gives up on a function after a few."""
        if plan.family != self._family or not plan.family[1]:
            torch.compiler.reset()
        self._family = plan.family


def with_failed(outcome: Outcome, failed: dict[str, str]) -> Outcome:
    """The outcome with contenders that failed beside the others."""
    ours = {name: why for name, why in failed.items() if is_ours(name)}
    left_out = {name: f"wrong: {why}" if name in ours else why for name, why in failed.items()}
    case = replace(outcome.case, left_out=outcome.case.left_out | left_out)
    return replace(outcome, case=case, wrong=outcome.wrong | ours)


class Replay:
    """A timer that gives durations that were measured before.

    pytest-benchmark runs one benchmark after the other; contenders that take turns have to be timed together
    and reported one by one.
    """

    def __init__(self) -> None:
        self._times: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        """What the next rounds shall have taken, in seconds."""
        self._times = iter([t for d in durations for t in (0.0, d)])

    def __call__(self) -> float:
        return next(self._times)


def with_floor(case: Case, top: Ceilings) -> Case:
    """The case with the least time that the machine's ceilings allow."""
    floor = max(case.flops / top.flops[case.dtype], case.bytes / top.bytes)
    return replace(case, floor_seconds=floor)


def summary(case: Case) -> Iterator[str]:
    """A case in a few lines: medians, and what our contenders gain over each peer."""
    yield case.name
    for name, m in case.contenders.items():
        ratios = ", ".join(
            f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f}) over {peer}"
            for peer, r in m.ratios.items()
            if not is_ours(peer)
        )
        yield f"  {name:<14}{1e3 * m.seconds.median:>11.4f} ms  {ratios}"
    for name, why in case.left_out.items():
        yield f"  {name:<14}left out: {why}"
