"""`fbp` with biases, the published MFB, against its peers; block.bootstrap.pytorch's MFB is one of them."""

from collections.abc import Callable

from bench.plan import Plan
from bench.suite import operator_suite

PLANS = operator_suite("fbp_biased")


def test_fbp_biased(measure: Callable[[Plan, str], None], plan: Plan, contender: str) -> None:
    measure(plan, contender)
