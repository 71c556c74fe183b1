"""One training step of the whole model: accelerated, plain PyTorch, compiled."""

from collections.abc import Callable

from bench.plan import Plan
from bench.step import STEPS, StepPlan
from bench.suite import Choice


def PLANS(choice: Choice) -> list[Plan]:  # noqa: N802, the name that every suite has
    """Steps of the sizes asked for; they are in float32 and train."""
    if "training" not in choice.modes:
        return []
    return [StepPlan(label, choice.device) for label in choice.labels if label in STEPS]


def test_training_step(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
