"""Measures and tests between systems against scikit-learn, statsmodels, SciPy and their own properties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from avemo.evaluation import metrics

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def confusion(pairs: list[tuple[int, int]], classes: int = 5) -> torch.Tensor:
    counter = metrics.confusion_matrix(classes)
    truth, predicted = torch.tensor(pairs).T
    counter.update(predicted, truth)
    return counter.compute()


@given(LABELS)
@settings(deadline=None)
def test_measures_are_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = zip(*pairs, strict=True)
    matrix = confusion(pairs)
    assert metrics.accuracy(matrix).item() == pytest.approx(
        sklearn.accuracy_score(truth, predicted)
    )
    assert metrics.f1(matrix).item() == pytest.approx(
        sklearn.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    there = sorted(set(truth))  # scikit-learn warns of classes that are named and never there
    recalls = sklearn.recall_score(truth, predicted, labels=there, average="macro")
    assert metrics.unweighted_accuracy(matrix).item() == pytest.approx(recalls)


@given(LABELS, LABELS)
@settings(deadline=None)
def test_measures_of_many_matrices_are_those_of_each(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    both = torch.stack([confusion(first), confusion(second)])
    for measure in metrics.MEASURES.values():
        assert measure(both).tolist() == [measure(m).item() for m in both]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_statsmodels_s(first: int, second: int, both: int, neither: int) -> None:
    right = [(True, False)] * first + [(False, True)] * second
    right += [(True, True)] * both + [(False, False)] * neither
    table = [[both, first], [second, neither]]
    # With nothing to test, statsmodels gives no number: the p-value is then 1.
    expected = statsmodels_mcnemar(table, exact=True).pvalue if first + second else 1.0
    assert metrics.mcnemar(right) == pytest.approx(min(1.0, expected))
    assert metrics.mcnemar([(b, a) for a, b in right]) == pytest.approx(metrics.mcnemar(right))


@pytest.mark.slow
@given(P_VALUES)
def test_holm_is_statsmodels_s(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert metrics.holm(p_values) == pytest.approx(expected.tolist())
    assert all(c >= p for c, p in zip(metrics.holm(p_values), p_values, strict=True))


@given(P_VALUES)
def test_combined_tests_are_bounded(p_values: list[float]) -> None:
    combined = metrics.combine(p_values)
    assert min(p_values) <= combined <= 1
    assert combined == metrics.combine(p_values[::-1])
    assert metrics.combine(p_values[:1]) == p_values[0]
    middle = math.ceil(len(p_values) / 2)  # of two, the smaller one counts
    expected = len(p_values) / middle * sorted(p_values)[middle - 1]
    assert combined == pytest.approx(min(1, expected))


def test_combined_tests_hold_their_level_whatever_their_dependence() -> None:
    """Equal, independent and opposed tests of a true hypothesis: at most 5 percent are below 0.05."""
    rng = np.random.default_rng(0)
    u = rng.random(4000)
    dependent = {
        "equal": np.stack([u, u, u]),
        "independent": rng.random((3, 4000)),
        "opposed": np.stack([u, 1 - u, (u + 0.5) % 1]),
        # The worst case of Rueger's rule: two of three are small together, and never else.
        "worst": np.where(u < 0.05, u * 2 / 3, 1.0)[None].repeat(2, 0),
    }
    for name, p_values in dependent.items():
        combined = np.array([metrics.combine(list(p)) for p in p_values.T])
        assert (combined <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000), name


def units(right: list[int]) -> torch.Tensor:
    """One run, each unit a clip of class 0 taken for 0 or 1."""
    return torch.stack([confusion([(0, 1 - r)], 2) for r in right])[None]


def test_intervals_are_scipy_s_on_the_clips_themselves() -> None:
    """Of an accuracy drawn clip by clip: the quantiles of a binomial share."""
    right = [1] * 70 + [0] * 30
    estimate = metrics.bootstrap(metrics.accuracy, units(right))
    assert estimate.value == pytest.approx(0.7)
    expected = stats.binom(100, 0.7).ppf([0.025, 0.975]) / 100
    assert estimate.interval == pytest.approx(expected.tolist(), abs=0.0101)
    direct = stats.bootstrap(
        (np.array(right),), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert estimate.interval == pytest.approx(tuple(direct), abs=0.0101)


def test_speakers_drawn_whole_widen_the_interval() -> None:
    """Clips of a speaker stand and fall together: ten speakers say less than a hundred clips."""
    right = ([1] * 10) * 7 + ([0] * 10) * 3
    clips = units(right)
    speakers = clips.reshape(1, 10, 10, 2, 2).sum(2)
    low, high = metrics.bootstrap(metrics.accuracy, clips).interval
    wide_low, wide_high = metrics.bootstrap(metrics.accuracy, speakers).interval
    assert high - low < 0.2 < 0.45 < wide_high - wide_low
    expected = stats.binom(10, 0.7).ppf([0.025, 0.975]) / 10
    assert (wide_low, wide_high) == pytest.approx(expected.tolist(), abs=1e-9)


def test_the_paired_bootstrap_is_a_count_of_all_resamples() -> None:
    """Four clips: all 256 draws can be counted, and the p-value is near that share."""
    ours, theirs = [1, 1, 1, 0], [0, 0, 1, 0]
    d = np.subtract(ours, theirs)
    every = [d[list(draw)].mean() for draw in itertools.product(range(4), repeat=4)]
    exact = np.mean([abs(x - d.mean()) >= d.mean() - 1e-12 for x in every])
    estimate = metrics.bootstrap(metrics.accuracy, units(ours), units(theirs))
    assert estimate.value == pytest.approx(0.5)
    assert estimate.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=30)
def test_paired_bootstraps_keep_their_properties(both: list[tuple[int, int]], runs: int) -> None:
    ours, theirs = (units(list(side)) for side in zip(*both, strict=True))
    there = metrics.bootstrap(metrics.accuracy, ours, theirs, resamples=199)
    back = metrics.bootstrap(metrics.accuracy, theirs, ours, resamples=199)
    assert 0 < there.p_value <= 1
    assert back.p_value == there.p_value
    assert back.value == -there.value
    same = metrics.bootstrap(metrics.accuracy, ours, ours, resamples=199)
    assert (same.value, same.p_value, same.interval) == (0, 1, (0, 0))
    # The same run several times says what it says once.
    repeated = metrics.bootstrap(
        metrics.accuracy, ours.repeat(runs, 1, 1, 1), theirs, resamples=199
    )
    assert repeated.value == pytest.approx(there.value)
    assert repeated.p_value == there.p_value


def test_a_true_difference_is_found_and_a_lucky_one_is_not() -> None:
    clear = metrics.bootstrap(
        metrics.accuracy, units([1] * 90 + [0] * 10), units([1] * 50 + [0] * 50)
    )
    assert clear.p_value < 0.001
    assert clear.interval.low > 0.25
    luck = metrics.bootstrap(metrics.accuracy, units([1, 0] * 25), units([0, 1] * 24 + [1, 0]))
    assert luck.p_value > 0.5
    assert luck.interval.low < 0 < luck.interval.high


def test_bootstraps_repeat_to_the_bit() -> None:
    counts = units([1, 0, 1, 1, 0, 1, 0])
    one, two = (metrics.bootstrap(metrics.f1, counts, resamples=99) for _ in range(2))
    assert one == two
    assert one != metrics.bootstrap(metrics.f1, counts, resamples=99, seed=1)
