"""Tables say what the numbers are."""

from pathlib import Path

import pytest

from bench.records import Ceilings, Spread
from profiling.account import Account, Row
from profiling.convolutions import Convolution
from profiling.report import (
    PROFILE,
    Profile,
    RangeCost,
    conditions,
    convolutions_table,
    memory_table,
    ms,
    ranges_table,
    rows_table,
    table,
)


def profile(**changes: object) -> Profile:
    """A made-up profile of 10 ms."""
    rows = [
        Row("step", 1, other_ms=0.5),
        Row("a", 1, forward_ms=1.0),
        Row("a.b", 2, forward_ms=2.0, backward_ms=5.0),
        Row("backward", 1, backward_ms=1.5),
    ]
    values: dict[str, object] = {
        "title": "made up",
        "command": "python -m nothing",
        "machine": {
            "gpu": "",
            "processor": "Z80",
            "threads": 1,
            "torch": "2.11",
            "date": "2026-01-01",
        },
        "settings": {"batch": 3},
        "seconds": Spread(0.008, 0.009, 0.010, 0.011, 0.012),
        "cost": RangeCost(5e-6, 4),
        "account": Account("host", 10.0, rows, rows, rows, []),
        "memory": {
            "start_bytes": 10_000_000,
            "peak_bytes": 13_000_000,
            "peak_ms": 4.5,
            "at_peak": [
                {"name": "a.b", "backward": True, "bytes": 2_000_000},
                {"name": "a", "backward": False, "bytes": 1_000_000},
            ],
            "at_backward": [{"name": "a", "backward": False, "bytes": 1_000_000}],
        },
        "convolutions": [
            Convolution("a.conv", 4e6, 8e6, forward_ms=1.0, backward_ms=2.0),
            Convolution("a.first", 1e6, 1e6, forward_ms=1.0, backward_ms=4.0),
        ],
        "ceilings": Ceilings({"float32": 8e9}, 1e9, {"float32": "torch.mm"}),
    }
    return Profile(**(values | changes))  # type: ignore[arg-type]


def _cells(text: str) -> dict[str, list[str]]:
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {first.replace("&nbsp;", ""): rest for first, *rest in rows}


def test_ranges_are_shown_with_what_is_in_them() -> None:
    cells = _cells(ranges_table(profile()))
    assert cells == {
        "(rest of step)": ["1", "", "", "0.50", "5.0%"],
        "`a`": ["1", "3.00", "5.00", "", "80.0%"],
        "`a.b`": ["2", "2.00", "5.00", "", "70.0%"],
        "(rest of a)": ["1", "1.00", "", "", "10.0%"],
        "(rest of backward)": ["1", "", "1.50", "", "15.0%"],
        "**total**": ["", "3.00", "6.50", "0.50", "100.0%"],
    }


def test_a_shallow_table_still_adds_up() -> None:
    cells = _cells(ranges_table(profile(), depth=0))
    assert list(cells) == ["(rest of step)", "`a`", "(rest of backward)", "**total**"]
    shares = [float(c[-1].rstrip("%")) for n, c in cells.items() if n != "**total**"]
    assert sum(shares) == pytest.approx(100.0)


def test_what_is_left_out_is_summed_up() -> None:
    account = profile().account
    cells = _cells(rows_table("kind", account.kinds, account, most=1))
    assert cells["(3 others)"] == ["4", "3.00", "6.50", "", "95.0%"]


def test_conditions_tell_what_the_ranges_cost() -> None:
    told = conditions(profile())
    assert "4 ranges cost 5 microseconds each, 0.2% of an unwatched step" in told
    assert "10 ms (quartiles 9 ms to 11 ms)" in told
    assert "Z80, 1 threads" in told


def test_memory_by_who_allocated_it() -> None:
    cells = _cells(memory_table(profile()))
    assert cells == {"`a.b` (backward)": ["", "2.00"], "`a`": ["1.00", "1.00"]}


def test_convolutions_are_held_against_the_ceiling() -> None:
    table = convolutions_table(profile())
    assert "share of 8 GFLOP/s (torch.mm)" in table
    assert _cells(table) == {
        "`a.conv`": ["0.0", "4", "4", "50%"],
        "`a.first`": ["0.0", "1", "0", "5%"],
        "**total**": ["0.0", "2", "2", "22%"],  # 14 MFLOP in 8 ms
    }


def test_a_profile_comes_back_from_its_file(tmp_path: Path) -> None:
    profile().save(tmp_path / PROFILE)
    assert Profile.load(tmp_path / PROFILE) == profile()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": {"low": 1}}'])
def test_another_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / PROFILE).write_text(content)
    with pytest.raises(ValueError, match=r"profile\.json is not a profile"):
        Profile.load(tmp_path / PROFILE)


def test_columns_are_in_line() -> None:
    assert table(("a", "bb"), [("ccc", "1"), ("d", "234")]) == (
        "| a   |  bb |\n|-----|----:|\n| ccc |   1 |\n| d   | 234 |"
    )


def test_milliseconds_have_three_digits() -> None:
    assert [ms(s) for s in (0.00012345, 0.012345, 1.2345, 12.345)] == [
        "0.123 ms", "12.3 ms", "1,234 ms", "12,345 ms",
    ]  # fmt: skip
