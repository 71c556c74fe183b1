"""Marks of some of a test's parameters."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(parameters: Iterable[Any], *which: Any) -> list[Any]:
    """Parameters of a test, some of them marked as slow: what they test is in others, but for combinations."""
    found = list(parameters)
    assert set(which) <= set(found), "or they are not there any more"

    def marked(one: Any) -> Any:
        values = one if isinstance(one, tuple) else (one,)
        return pytest.param(*values, marks=pytest.mark.slow) if one in which else one

    return [marked(one) for one in found]
