"""Lists and pairs as they are written in arguments."""

import pytest

from avemo.text import items, pairs


def test_items() -> None:
    assert items("") == items(" , ") == ()
    assert items("a, b c ,d") == ("a", "b c", "d")


def test_pairs() -> None:
    assert pairs("merge", "") == {}
    assert pairs("merge", "excited = happy,calm=neutral") == {"excited": "happy", "calm": "neutral"}


@pytest.mark.parametrize("text", ["a", "a=", "=b", "a=b,a=c", "a=b,c"])
def test_what_is_no_pair(text: str) -> None:
    with pytest.raises(ValueError, match="merge must be like a=b,c=d, each name once, got '"):
        pairs("merge", text)
