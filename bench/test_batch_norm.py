"""`batch_norm` against its peers."""

from collections.abc import Callable

from bench.plan import Plan
from bench.suite import operator_suite

PLANS = operator_suite("batch_norm")


def test_batch_norm(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
