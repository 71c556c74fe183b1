"""The measures of emotion recognition and the tests between systems, defined here alone.

Every measure is a function of confusion matrices (..., classes, classes) of counts, rows the truth, to
float64 (...): of one matrix, or of all resamples of a bootstrap at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

CONFIDENCE = 0.95
RESAMPLES = 9999
_AT_A_TIME = 500  # resamples that are in memory together
_ROUNDING = 1e-12  # of a measure whose sums were taken in another order


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """The metric that counts: entry (i, j) is the number of clips of class i taken for class j."""
    return MulticlassConfusionMatrix(num_classes=classes)


def accuracy(confusion: Tensor) -> Tensor:
    """Share of all clips that are recognised (weighted accuracy, WA); NaN where there are none."""
    return _right(confusion).sum(-1) / confusion.double().sum((-2, -1))


def recalls(confusion: Tensor) -> Tensor:
    """Share of each class's clips that are recognised: (..., classes), NaN for one without clips."""
    return _right(confusion) / confusion.double().sum(-1)


def unweighted_accuracy(confusion: Tensor) -> Tensor:
    """Mean of the recalls of the classes that have clips (unweighted accuracy, UA).

    A class without clips says nothing about a model, so it does not count as a recall of 0.
    """
    return recalls(confusion).nanmean(-1)


def f1(confusion: Tensor) -> Tensor:
    """Mean over the classes of the harmonic mean of recall and precision (macro F1).

    A class that no clip has and none is taken for is left out.
    """
    named = confusion.double().sum(-1) + confusion.double().sum(-2)
    return (2 * _right(confusion) / named).nanmean(-1)


def _right(confusion: Tensor) -> Tensor:
    return confusion.double().diagonal(dim1=-2, dim2=-1)


Measure = Callable[[Tensor], Tensor]
MEASURES: dict[str, Measure] = {
    "accuracy": accuracy,
    "unweighted_accuracy": unweighted_accuracy,
    "f1": f1,
}


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """What a model achieves on a set of clips.

    Attributes:
        clips: how many there are.
        accuracy: share of the clips that are recognised.
        accuracy_interval: Wilson's 95 percent confidence interval of the accuracy.
        unweighted_accuracy: mean recall over the classes.
        f1: mean over the classes.
        chance: accuracy of always naming the class with the most clips.
        p_value: probability of at least this accuracy by a guesser that is right with
            probability `chance` (one-sided binomial test).
        recalls: recall of each class; None for a class without clips.
        confusion: rows the truth, columns the prediction, counts.
    """

    clips: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    unweighted_accuracy: float
    f1: float
    chance: float
    p_value: float
    recalls: dict[str, float | None]
    confusion: list[list[int]]


def scores(confusion: Tensor, classes: tuple[str, ...]) -> Scores:
    """All measures of a confusion matrix.

    Args:
        confusion: (classes, classes), counts, rows the truth; at least one clip.
        classes: the names of its rows.
    """
    from scipy.stats import binomtest

    clips, right = int(confusion.sum()), int(confusion.diagonal().sum())
    chance = int(confusion.sum(1).max()) / clips
    interval = binomtest(right, clips).proportion_ci(CONFIDENCE, method="wilson")
    return Scores(
        clips=clips,
        accuracy=accuracy(confusion).item(),
        accuracy_interval=(float(interval.low), float(interval.high)),
        unweighted_accuracy=unweighted_accuracy(confusion).item(),
        f1=f1(confusion).item(),
        chance=chance,
        p_value=float(binomtest(right, clips, chance, alternative="greater").pvalue),
        recalls={
            name: None if torch.isnan(recall) else recall.item()
            for name, recall in zip(classes, recalls(confusion), strict=True)
        },
        confusion=confusion.tolist(),
    )


def mcnemar(right: Sequence[tuple[bool, bool]]) -> float:
    """McNemar's exact test: are two systems equally good on the same clips?

    Args:
        right: for each clip, whether the first and whether the second system recognises it.

    Returns:
        The two-sided p-value: only the clips count that exactly one of them recognises, and were they
        equally good, each would be the first's with probability one half.
    """
    from scipy.stats import binomtest

    first, second = right.count((True, False)), right.count((False, True))
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def combine(p_values: Sequence[float]) -> float:
    """One p-value of several tests of the same hypothesis that depend on each other in any way.

    Rueger (1978), "Das maximale Signifikanzniveau des Tests: Lehne H0 ab, wenn k unter n gegebenen
    Tests zur Ablehnung fuehren": n / k times the k-th smallest of n. Here k is the middle one, so that
    one lucky test decides nothing; a single p-value is left as it is.
    """
    count = len(p_values)
    middle = (count + 1) // 2
    return min(1.0, count / middle * sorted(p_values)[middle - 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction: p-values that hold for all hypotheses together, in the same order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


class Estimate(NamedTuple):
    """A measure, or the difference of two, and what drawing the units again makes of it.

    Attributes:
        value: on the clips as they are.
        interval: 95 percent of the resamples lie within (percentiles).
        p_value: two-sided, of the value being zero: the share of resamples at least as far from the
            value as that is from zero (Efron and Tibshirani, 1993, "An introduction to the
            bootstrap", chapter 16). 1 where the value is zero in every resample.
    """

    value: float
    interval: Interval
    p_value: float


def bootstrap(
    measure: Measure,
    first: Tensor,
    second: Tensor | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimates a system's mean measure over its runs, or how far it is ahead of another's.

    Args:
        measure: one of `MEASURES`.
        first: (runs, units, classes, classes), the confusion matrix of each unit in each run. Units
            are drawn, for all runs and both systems alike: clips, or all clips of a speaker.
        second: of the other system, on the same units; it may have another number of runs.
        resamples: how often units are drawn.
        seed: of the draws.
    """
    from scipy import stats

    units = first.shape[1]
    systems = [first] if second is None else [first, second]

    def statistic(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        often = _times_drawn(np.moveaxis(drawn, axis, -1), units)
        means = [measure(_sums(often, counts)).mean(0) for counts in systems]
        return (means[0] - means[1] if len(means) == 2 else means[0]).numpy()

    every = np.arange(units)
    value = float(statistic(every, -1))
    if units == 1:  # of which there is one resample alone
        return Estimate(value, Interval(value, value), 1.0)
    result = stats.bootstrap(
        (every,),
        statistic,
        n_resamples=resamples,
        batch=_AT_A_TIME,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    far = np.abs(result.bootstrap_distribution - value) >= abs(value) - _ROUNDING
    return Estimate(value, Interval(low, high), float((1 + far.sum()) / (1 + resamples)))


def _times_drawn(drawn: NDArray[np.int64], units: int) -> Tensor:
    """How often each unit was drawn: (..., n) to float64 (..., units)."""
    places = torch.from_numpy(drawn)
    often = torch.zeros(*drawn.shape[:-1], units, dtype=torch.float64)
    return often.scatter_add_(-1, places, torch.ones_like(places, dtype=torch.float64))


def _sums(often: Tensor, counts: Tensor) -> Tensor:
    """Matrices of drawn units: (..., units), (runs, units, C, C) to (runs, ..., C, C)."""
    return torch.einsum("...u,ruij->r...ij", often, counts.double())
