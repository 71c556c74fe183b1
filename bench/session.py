"""One run of the suites: every case is measured once, when the first of its contenders is due."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch._inductor.config as inductor_config

from . import ceilings, machine
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
        timer: times the turns; default the device's clock.
    """

    def __init__(
        self,
        choice: Choice,
        seconds: float,
        out: Path | None = None,
        earlier: Run | None = None,
        timer: Clock | None = None,
    ) -> None:
        self.choice, self.seconds, self.out = choice, seconds, out
        self._earlier = earlier
        self.outcomes: dict[str, Outcome] = {}
        self._chosen: dict[str, list[str]] = {}
        self._clock = timer or clock(choice.device)
        self._first: Ceilings | None = None
        self._family = ("", "", "")
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
            settings = Settings(self.choice.device, self.seconds, self._clock)
            outcome = plan.measure(self._chosen[plan.name], settings)
            self.outcomes[plan.name] = outcome
            if self.out is not None:
                self.run(self._ceilings()).save(self.out)
            print("\n" + "\n".join(summary(outcome.case)), flush=True)
        return self.outcomes[plan.name]

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
