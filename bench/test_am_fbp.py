"""`am_fbp` against its peers."""

from collections.abc import Callable

from bench.plan import Plan
from bench.suite import operator_suite

PLANS = operator_suite("am_fbp")


def test_am_fbp(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
