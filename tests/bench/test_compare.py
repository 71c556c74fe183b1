"""Regressions are told from noise, and nothing is passed over."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import Comparison, Verdict, compare, run_compare, table
from bench.records import Case, Spread

from .made_up import case, changed, measurement, run, spread


def _verdicts(comparison: Comparison) -> dict[str, Verdict]:
    return {row.quantity: row.verdict for row in comparison.rows}


def _compare(old: Case, new: Case, **machine: Any) -> Comparison:
    return compare(run(old), run(new, **machine))


def test_a_run_agrees_with_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run(case(), case(mode="training"), case(label="B=1", curve="B")).save(path)
    assert run_compare(path, path) == 0
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "3 of 3 speed ratios agree" in printed
    assert "4 of 4 figures of memory and launches agree" in printed  # three peaks, one kept
    assert "0 regressions, 0 improvements, 7 unchanged." in printed


def test_a_clear_slowdown_is_flagged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, new = case(ratios={"eager": 1.5}), case(ratios={"eager": 1.0})
    comparison = _compare(old, new)
    (row,) = comparison.of(Verdict.REGRESSION)
    assert (row.case, row.contender) == ("fbp clip float32 forward", "native")
    assert row.change == pytest.approx(-1 / 3)
    assert not row.agrees
    run(old).save(tmp_path / "old.json")
    run(new).save(tmp_path / "new.json")
    assert run_compare(tmp_path / "old.json", tmp_path / "new.json") == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("REGRESSION") and line.endswith("-33.3%") for line in lines)
    assert run_compare(tmp_path / "new.json", tmp_path / "old.json") == 0


def test_a_slower_machine_is_no_regression() -> None:
    """All contenders take three times as long; their ratios stay."""
    assert not _compare(case(native=2.0), case(native=6.0)).of(Verdict.REGRESSION)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (spread(1.5, 0.1), spread(1.3, 0.1)),  # 13 % less, but the spreads meet
        (spread(1.5, 0.001), spread(1.45, 0.001)),  # apart, but by less than 5 %
        (Spread(1.4, 1.45, 1.5, 1.55, 1.6), Spread(1.0, 1.05, 1.1, 1.2, 1.4)),  # just touching
    ],
)
def test_noise_is_not_flagged(old: Spread, new: Spread) -> None:
    comparison = _compare(case(ratios={"eager": old}), case(ratios={"eager": new}))
    assert _verdicts(comparison)["speed against eager"] is Verdict.UNCHANGED


def test_small_differences_outside_of_the_spread_do_not_agree() -> None:
    comparison = _compare(
        case(ratios={"eager": spread(1.5, 0.001)}), case(ratios={"eager": spread(1.45, 0.001)})
    )
    assert "0 of 1 speed ratios agree" in comparison.agreement


def test_the_agreement_says_how_far_medians_are_apart() -> None:
    ratios = {"B=1": (2.0, 2.0), "B=2": (2.0, 1.9), "B=4": (2.0, 2.4)}
    old, new = (
        run(*(case(label=label, ratios={"eager": pair[i]}) for label, pair in ratios.items()))
        for i in (0, 1)
    )
    sentence = compare(old, new).agreement
    assert "half of the medians differ by at most 5.0%, all by at most 20.0%" in sentence


def test_samples_of_one_kernel_agree() -> None:
    """Two runs of the same code under noise of 20 percent: none is flagged, those of a slowed kernel are."""
    generator = np.random.default_rng(0)

    def sampled(true_ratio: float) -> list[Case]:
        times = generator.lognormal(0, 0.2, (30, 25))
        return [
            case(label=f"B={i}", ratios={"eager": Spread.of(list(true_ratio * row))})
            for i, row in enumerate(times)
        ]

    same = compare(run(*sampled(1.3)), run(*sampled(1.3)))
    slowed = compare(run(*sampled(1.3)), run(*sampled(1.3 / 2.5)))
    assert not same.of(Verdict.REGRESSION)
    assert "30 of 30 speed ratios agree" in same.agreement
    assert len(slowed.of(Verdict.REGRESSION)) == 30


def test_an_improvement() -> None:
    comparison = _compare(case(ratios={"eager": 1.0}), case(ratios={"eager": 1.5}))
    assert _verdicts(comparison)["speed against eager"] is Verdict.IMPROVEMENT


@pytest.mark.parametrize(
    ("quantity", "old", "new", "verdict"),
    [
        ("peak_bytes", 10_000_000, 10_100_000, Verdict.UNCHANGED),  # 1 %
        ("peak_bytes", 10_000_000, 10_100_001, Verdict.REGRESSION),
        ("peak_bytes", 0, 4096, Verdict.UNCHANGED),
        ("kept_bytes", 0, 4097, Verdict.REGRESSION),
        ("kept_bytes", 2_000_000, 1_000_000, Verdict.IMPROVEMENT),
        ("launches", 2, 3, Verdict.REGRESSION),
        ("launches", 3, 3, Verdict.UNCHANGED),
        ("launches", 3, 1, Verdict.IMPROVEMENT),
        ("peak_bytes", 100, math.nan, Verdict.REGRESSION),
    ],
)
def test_memory_and_launches(quantity: str, old: int, new: int, verdict: Verdict) -> None:
    before = changed(case(), "native", **{quantity: old})
    after = changed(case(), "native", **{quantity: new})
    assert _verdicts(_compare(before, after))[quantity] is verdict


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
def test_a_ratio_that_is_no_number(bad: float) -> None:
    good = case(ratios={"eager": 1.5})
    broken = case(ratios={"eager": Spread(1.0, 1.0, bad, 1.0, 1.0)})
    comparison = _compare(good, broken)
    assert _verdicts(comparison)["speed against eager"] is Verdict.REGRESSION
    table(comparison)
    comparison = _compare(broken, good)
    assert not comparison.of(Verdict.REGRESSION)
    assert (
        "no usable ratio to eager in the old run: native in fbp clip float32 forward"
        in comparison.apart
    )


def test_what_is_in_one_run_only_is_listed_and_counted() -> None:
    old = run(case(), case("trunk_fbp"))
    new = run(case(), case("am_fbp"), case("fbp", "vqa"))
    comparison = compare(old, new)
    assert comparison.apart == [
        "only in the old run: trunk_fbp clip float32 forward",
        "only in the new run: am_fbp clip float32 forward",
        "only in the new run: fbp vqa float32 forward",
    ]
    assert "Not compared (3):" in table(comparison)
    assert not comparison.of(Verdict.REGRESSION)


def test_figures_and_contenders_of_one_run_only_are_listed() -> None:
    old = changed(case(), "native", launches=3)
    both = case().contenders | {"triton": measurement(1.0, ratios={"eager": 3.0})}
    comparison = _compare(old, replace(case(), contenders=both))
    assert comparison.apart == [
        "only in the old run: launches of native in fbp clip float32 forward",
        "only in the new run: triton in fbp clip float32 forward",
    ]


def test_a_kernel_that_can_no_longer_be_measured_is_a_regression() -> None:
    """Contenders with wrong results are left out of a run; that must not look like a shorter run."""
    peers = {name: m for name, m in case().contenders.items() if name != "native"}
    without = replace(case(), contenders=peers)
    wrong = replace(without, left_out={"native": "result 0 is off by 3.0"})
    (row,) = _compare(case(), wrong).of(Verdict.REGRESSION)
    assert row.new == "left out: result 0 is off by 3.0"
    silent = _compare(case(), without)
    assert silent.apart == ["only in the old run: native in fbp clip float32 forward"]
    assert not silent.rows


def test_other_sizes_under_one_name_are_not_compared() -> None:
    comparison = _compare(case(sizes={"B": 32}), case(sizes={"B": 64}))
    assert not comparison.rows
    assert comparison.apart[0].startswith("other sizes: fbp clip float32 forward")


def test_runs_with_nothing_in_common_do_not_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(case("fbp")).save(tmp_path / "old.json")
    run(case("am_fbp")).save(tmp_path / "new.json")
    assert run_compare(tmp_path / "old.json", tmp_path / "new.json") == 1
    assert "nothing in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"), [("device", "other"), ("threads", 1), ("torch", "2.12.0")]
)
def test_another_machine_is_warned_of_at_the_top(key: str, value: Any) -> None:
    comparison = _compare(case(), case(), **{key: value})
    first = table(comparison).splitlines()[0]
    assert first.startswith("WARNING")
    assert f"{key} " in first
    assert repr(value) in first


def test_without_eager_the_fastest_common_peer_counts() -> None:
    old = case(ratios={"compile": 1.4, "products": 0.8, "max-autotune": 0.7})
    new = case(ratios={"compile": 1.4, "products": 0.5})
    comparison = _compare(old, new)
    assert _verdicts(comparison)["speed against products"] is Verdict.REGRESSION


def test_graphs_are_compared_with_graphs() -> None:
    graph = {"native graph": measurement(1.0, ratios={"eager": 4.0, "eager graph": 1.5})}
    plain = {"native": measurement(1.0, ratios={"eager": 1.3, "eager graph": 0.4})}
    made = replace(case(), contenders=plain | graph)
    quantities = [row.quantity for row in _compare(made, made).rows]
    assert quantities == ["speed against eager", "speed against eager graph"]


def test_two_cases_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="two cases 'fbp clip float32 forward'"):
        compare(run(case(), case()), run(case()))


def test_a_file_that_is_no_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(case()).save(tmp_path / "run.json")
    (tmp_path / "other.json").write_text('{"version": 0}')
    assert run_compare(tmp_path / "run.json", tmp_path / "other.json") == 2
    assert "other.json is not a result" in capsys.readouterr().err
    assert run_compare(tmp_path / "run.json", tmp_path / "missing.json") == 2
    assert "missing.json" in capsys.readouterr().err


def _peers_moved(factor: float, ours: float) -> Comparison:
    """Twelve cases: in the new run `compile` is `factor` times slower against eager, ours `ours` times."""
    labels = [f"B={i}" for i in range(12)]
    old = [case(label=label, ratios={"eager": 1.5, "compile": 1.5}) for label in labels]
    new = [
        case(label=label, ratios={"eager": 1.5 / ours, "compile": factor * 1.5 / ours})
        for label in labels
    ]
    return compare(run(*old), run(*new))


def test_what_moves_no_further_than_the_peers_is_no_regression() -> None:
    comparison = _peers_moved(1.3, ours=1.25)
    assert comparison.drift == pytest.approx(0.3)
    assert not comparison.of(Verdict.REGRESSION)
    assert "12 of 12 speed ratios agree" in comparison.agreement
    assert "within the 30.0% that peers moved" in comparison.agreement


def test_what_moves_further_is_one() -> None:
    assert len(_peers_moved(1.3, ours=1.4).of(Verdict.REGRESSION)) == 12
    assert len(_peers_moved(1.0, ours=1.25).of(Verdict.REGRESSION)) == 12


def test_too_few_peers_tell_nothing_of_the_machine() -> None:
    old, new = (
        case(ratios={"eager": 1.5, "compile": 1.5}),
        case(ratios={"eager": 1.2, "compile": 2.4}),
    )
    comparison = _compare(old, new)
    assert comparison.drift == 0
    assert len(comparison.of(Verdict.REGRESSION)) == 1
