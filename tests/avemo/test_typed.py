"""Dataclasses from plain values: as a parser of command lines builds them, and errors that name the place."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avemo.typed import build


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, int]
    several: tuple[float, ...] = (0.5,)
    folder: Path | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    anything: dict[str, Any] | None = None
    whole: int = 3
    members: tuple[dict[str, Any], ...] = ()
    other: Inner | None = field(default=None)
    text: str = ""


INNER = st.builds(
    Inner,
    st.tuples(st.integers(), st.integers()),
    st.lists(st.floats(allow_nan=False)).map(tuple),
    st.sampled_from([None, Path("a/b")]),
)


@given(st.builds(Outer, INNER, other=st.none() | INNER, members=st.just(({"a": 1},))))
def test_what_asdict_gives_comes_back(value: Outer) -> None:
    assert build(Outer, asdict(value)) == value


def test_whole_numbers_and_text_are_numbers_where_numbers_are_due() -> None:
    made = build(Inner, {"pair": [1, 2], "several": [1, "1e-3"]})
    assert made == Inner((1, 2), (1.0, 0.001))
    assert all(isinstance(x, float) for x in made.several)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^inner is missing$"),
        ({"inner": {}}, "^inner.pair is missing$"),
        ({"inner": {"pair": [1, 2], "pears": 1}}, "^unknown setting: inner.pears$"),
        ({"inner": {"pair": [1]}}, r"^inner.pair must be tuple\[int, int\], got \[1\]$"),
        ({"inner": {"pair": [1, 2.5]}}, "^inner.pair must be int, got 2.5$"),
        ({"inner": {"pair": [True, 2]}}, "^inner.pair must be int, got True$"),
        (
            {"inner": {"pair": [1, 2], "several": ["x"]}},
            "^inner.several must be a number, got 'x'$",
        ),
        ({"inner": {"pair": [1, 2], "folder": 3}}, "^inner.folder must be Path, got 3$"),
        ({"inner": {"pair": [1, 2]}, "flag": 1}, "^flag must be bool, got 1$"),
        ({"inner": {"pair": [1, 2]}, "kind": "c"}, r"^kind must be Literal\['a', 'b'\], got 'c'$"),
        ({"inner": {"pair": [1, 2]}, "whole": None}, "^whole must be int, got None$"),
        ({"inner": {"pair": [1, 2]}, "other": 3}, "^other must be settings by name, got 3$"),
        ({"inner": [1]}, r"^inner must be settings by name, got \[1\]$"),
        ([], r"^Outer must be settings by name, got \[\]$"),
    ],
)
def test_errors_name_the_place(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Outer, values)
