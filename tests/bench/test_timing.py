"""Turns: who is timed when, and what a ratio is."""

import pytest

from bench import timing
from bench.records import Spread


class Script:
    """A clock that knows how long each run takes, and writes down the order."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = {name: iter(values) for name, values in seconds.items()}
        self.order: list[str] = []

    def turn(self, runs: list[timing.Run]) -> list[float]:
        names = [str(run()) for run in runs]
        self.order += names
        return [next(self.seconds[name]) for name in names]


def runs(*names: str) -> dict[str, timing.Run]:
    return {name: lambda name=name: name for name in names}  # type: ignore[misc]


def test_turns_begin_with_another_contender_each_and_all_are_timed_in_each() -> None:
    clock = Script({name: [1.0] * 99 for name in "abc"})
    samples = timing.interleave(runs("a", "b", "c"), 0.0, clock, least=4)
    assert "".join(clock.order) == "abc" * 2 + "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_samples_stay_with_their_contender_in_the_order_of_the_turns() -> None:
    clock = Script({"a": [9, 9, 1, 2, 3], "b": [9, 9, 10, 20, 30]})
    samples = timing.interleave(runs("a", "b"), 0.0, clock, least=3)
    assert samples == {"a": [1, 2, 3], "b": [10, 20, 30]}


def test_a_ratio_is_taken_turn_by_turn() -> None:
    # Drift that hits both cancels: each turn is twice as slow as the last.
    samples = {"ours": [1.0, 2.0, 4.0, 8.0], "peer": [3.0, 6.0, 12.0, 24.0]}
    assert timing.ratio(samples, "ours", "peer") == Spread(3, 3, 3, 3, 3)
    assert timing.ratio(samples, "peer", "ours").median == pytest.approx(1 / 3, rel=1e-4)


def test_turns_end_when_the_time_is_up_but_not_before_the_least() -> None:
    count = len(timing.interleave(runs("a"), 0.0, timing.CpuClock())["a"])
    assert count == timing.LEAST
    many = timing.interleave(runs("a"), 60.0, timing.CpuClock())["a"]
    assert len(many) == timing.MOST


def test_spread_is_percentiles() -> None:
    spread = Spread.of([float(x) for x in range(101)])
    assert spread == Spread(10, 25, 50, 75, 90)
