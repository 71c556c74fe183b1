"""`attention_pool` against its peers."""

from collections.abc import Callable

from bench.plan import Plan
from bench.suite import operator_suite

PLANS = operator_suite("attention_pool")


def test_attention_pool(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
