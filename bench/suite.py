"""Which cases a suite has: one operator at the shapes, dtypes and modes asked for, and along its curves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .names import ACCELERATED, asked_as
from .operators import SUBJECTS
from .plan import OperatorPlan, Plan

MODES = ("forward", "training")


@dataclass(frozen=True)
class Choice:
    """What was asked for.

    Attributes:
        labels: of sizes; an operator takes those that it has.
        curves: sizes to vary.
        dtypes: of inputs.
        modes: "forward", "training".
        backends: of ours.
        peers: of theirs.
        device: "cpu" or "cuda".
    """

    labels: tuple[str, ...]
    curves: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    backends: tuple[str, ...]
    peers: tuple[str, ...]
    device: str

    def names(self, plan: Plan) -> list[str]:
        """The contenders of a plan that were asked for."""
        asked = (*self.backends, *self.peers, ACCELERATED)
        return [name for name in plan.contenders if asked_as(name) in asked]


Plans = Callable[[Choice], list[Plan]]


def operator_suite(operator: str) -> Plans:
    """The cases of an operator of `bench.operators`."""

    def plans(choice: Choice) -> list[Plan]:
        return list(_plans(operator, choice))

    return plans


def _plans(operator: str, choice: Choice) -> Iterator[Plan]:
    subject = SUBJECTS[operator]
    for mode in choice.modes:
        for label in choice.labels:
            if label in subject.sizes:
                for dtype in choice.dtypes:
                    sizes = subject.sizes[label]
                    yield OperatorPlan(operator, label, sizes, dtype, mode, choice.device)
        for curve in subject.curves:
            if curve in choice.curves:
                for label, sizes in subject.points(curve).items():
                    dtype = choice.dtypes[0]
                    yield OperatorPlan(operator, label, sizes, dtype, mode, choice.device, curve)
