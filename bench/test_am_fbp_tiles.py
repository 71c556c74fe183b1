"""`am_fbp` from inputs of which no tensor map can tell: by the native kernels by tiles."""

from collections.abc import Callable

from bench.plan import Plan
from bench.suite import operator_suite

PLANS = operator_suite("am_fbp_tiles")


def test_am_fbp_tiles(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
