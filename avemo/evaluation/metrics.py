"""The measures of emotion recognition, all from one confusion matrix, defined here alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """The metric that counts: entry (i, j) is the number of clips of class i taken for class j."""
    return MulticlassConfusionMatrix(num_classes=classes)


def accuracy(confusion: Tensor) -> float:
    """Share of all clips that are recognised (weighted accuracy, WA); NaN where there are none.

    Args:
        confusion: (classes, classes), counts, rows the truth.
    """
    return (confusion.diagonal().sum() / confusion.sum()).item()


def recalls(confusion: Tensor) -> Tensor:
    """Share of each class's clips that are recognised: (classes,), NaN for a class without clips."""
    return confusion.diagonal() / confusion.sum(1)


def unweighted_accuracy(confusion: Tensor) -> float:
    """Mean of the recalls of the classes that have clips (unweighted accuracy, UA).

    A class without clips says nothing about a model, so it does not count as a recall of 0.
    """
    return recalls(confusion).nanmean().item()


@dataclass(frozen=True)
class Scores:
    """What a model achieves on a set of clips.

    Attributes:
        clips: how many there are.
        accuracy: share of the clips that are recognised.
        accuracy_interval: Wilson's 95 percent confidence interval of the accuracy.
        unweighted_accuracy: mean recall over the classes.
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
    interval = binomtest(right, clips).proportion_ci(method="wilson")
    return Scores(
        clips=clips,
        accuracy=accuracy(confusion),
        accuracy_interval=(float(interval.low), float(interval.high)),
        unweighted_accuracy=unweighted_accuracy(confusion),
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
