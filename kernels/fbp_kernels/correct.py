"""What "correct" means, in one place for the tests, the benchmarks and the search for configurations.

Truth is the reference in float64. A result or gradient is correct where its largest error is at most twice that of the
reference in the same dtype, plus one unit in the last place of the output's scale.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TF32_UNIT = 2.0**-10  # 10 explicit bits of mantissa


def allowed(reference: float, scale: float, unit: float) -> float:
    """What an error may be.

    Args:
        reference: the error of the reference in the same dtype; with TF32 allowed, of the reference with it.
        scale: largest absolute value of the truth.
        unit: of the result, see `unit`.
    """
    return 2 * reference + unit * scale


def unit(dtype: torch.dtype, *, unrounded: bool = False) -> float:
    """One unit in the last place of a number around 1.

    Args:
        dtype: of the result.
        unrounded: TF32 is allowed and PyTorch did not round all the same, as it does in products with a size of 1. The
            reference then has no error that would allow another to round: one unit of TF32 does.
    """
    return TF32_UNIT if unrounded else torch.finfo(dtype).eps


def error(got: Tensor, truth: Tensor) -> float:
    """The largest absolute error, in float64; NaN where one is, 0 for empty tensors."""
    return (got.double() - truth).abs().max().item() if truth.numel() else 0.0


def scale(truth: Tensor) -> float:
    """The largest absolute value, 0 for empty tensors."""
    return truth.abs().max().item() if truth.numel() else 0.0


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN, so that an element that nobody wrote shows: freed memory may hold the right results."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
