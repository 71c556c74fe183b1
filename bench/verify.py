"""A wrong kernel has no time: results are compared with float64 before anything is timed."""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from fbp_kernels import correct as definition

Rule = Callable[[float, float, float], float]
"""What an error may be, from the reference's error, the largest value and one unit in the last place of 1."""

correct: Rule = definition.allowed
"""For ours."""


def alike(plain: float, scale: float, unit: float) -> float:
    """For peers, who are not on trial and only have to compute the same: half of the digits."""
    return 2 * plain + unit**0.5 * scale


class WrongResultError(RuntimeError):
    """A contender computes something else than the operator."""


class Errors:
    """Largest errors over several draws of the inputs, result by result.

    The error of one small result is the luck of a rounding or two; draws are taken together.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._worst: list[list[float]] = []

    def add(
        self,
        got: tuple[Tensor, ...],
        reference: tuple[Tensor, ...],
        truth: tuple[Tensor, ...],
        unrounded: Sequence[bool] = (),
    ) -> None:
        """Takes in one draw.

        Args:
            got: the contender's results.
            reference: those of the reference in the same dtype.
            truth: those of the reference in float64.
            unrounded: by result, whether TF32 is allowed and PyTorch did not round; default nowhere.

        Raises:
            WrongResultError: there are other results than expected, or not all of them are numbers.
        """
        if len(got) != len(truth):
            raise WrongResultError(f"gave {len(got)} results, expected {len(truth)}")
        require_finite(got)
        self._worst = self._worst or [[0.0, 0.0] for _ in truth]
        spared = unrounded or (False,) * len(truth)
        for worst, ours, plain, true, whole in zip(
            self._worst, got, reference, truth, spared, strict=True
        ):
            if ours.shape != true.shape:
                raise WrongResultError(
                    f"gave a result of shape {tuple(ours.shape)}, expected {tuple(true.shape)}"
                )
            unit = definition.unit(ours.dtype, unrounded=whole)
            allowed = self.rule(definition.error(plain, true), definition.scale(true), unit)
            error = definition.error(ours, true)
            worst[:] = max(worst[0], error), max(worst[1], allowed)

    def worst(self) -> float:
        """The largest share that any result took of what its error may be; above 1 it is too large."""
        return max(
            (error / allowed if allowed else math.inf for error, allowed in self._worst if error),
            default=0.0,
        )

    def check(self) -> None:
        """Raises `WrongResultError` where an error is larger than the rule allows."""
        for number, (error, allowed) in enumerate(self._worst):
            if not error <= allowed:
                raise WrongResultError(
                    f"result {number} is off by {error:.3e}, allowed are {allowed:.3e}"
                )


def require_finite(results: tuple[Tensor, ...]) -> None:
    """Raises `WrongResultError` where memory that held NaN was not written, or NaN was computed."""
    for number, result in enumerate(results):
        missing = result.numel() - int(result.isfinite().sum())
        if missing:
            raise WrongResultError(
                f"result {number} has {missing} of {result.numel()} elements that are not finite"
            )


def require_same_bits(results: tuple[Tensor, ...], run: Callable[[], tuple[Tensor, ...]]) -> None:
    """Raises `WrongResultError` where another run gives other bits: a race may show in nothing else."""
    first = tuple(result.clone() for result in results)  # a graph writes over its results
    for number, (one, other) in enumerate(zip(first, run(), strict=True)):
        if not one.equal(other):
            raise WrongResultError(
                f"result {number} has {int((one != other).sum())} of {one.numel()} elements that"
                " another run gives otherwise"
            )


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that an element that nobody wrote shows.

    PyTorch fills the tensors that it makes itself; the C library (GNU's) fills those that the native kernels allocate
    on the CPU.
    """
    _perturb(0x100)  # 0xFF in every byte, which is NaN in every dtype
    try:
        with definition.poisoned_memory():
            yield
    finally:
        _perturb(0)


def _perturb(value: int) -> None:
    """What fresh memory of the C library is filled with: the complement of the lowest byte; 0 for nothing."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_PERTURB, value)


_M_PERTURB = -6  # of malloc.h


def draws(numbers: int) -> int:
    """How many draws the errors of inputs with so many numbers are taken over."""
    return 1 if numbers > 100_000 else 8
