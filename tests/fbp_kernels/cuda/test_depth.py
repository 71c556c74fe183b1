"""Sums as long as in real models and longer, through the shim: float32 results and gradients by the rule.

One running sum over the depth is over it: its error grows with its length. Widths that are not summed over are small,
for the shim is slow.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from ..checks import Inputs, assert_parity
from .shim import Shim


@dataclass(frozen=True)
class Deep:
    """A call whose sums are long.

    Attributes:
        operator: of `fbp_kernels`.
        shapes: of its inputs; weights are scaled by the first size, which is what they are summed over.
        arguments: everything else.
        weights: which inputs those are.
    """

    operator: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any]
    weights: tuple[int, ...] = (2, 3)

    def draw(self, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(shape, generator=generator) for shape in self.shapes]
        for i in self.weights:
            inputs[i] *= inputs[i].shape[0] ** -0.5
        return inputs


def _fbp(batch: int, width: int, outputs: int, factor: int, **arguments: Any) -> Deep:
    sizes = (batch, width), (batch, 5), (width, outputs * factor), (5, outputs * factor)
    return Deep(fk.fbp, sizes, {"factor": factor, **arguments})


def _biased(*tensors: Tensor, **arguments: Any) -> Any:
    *inputs, p_bias, q_bias = tensors
    return fk.fbp(*inputs, p_bias=p_bias, q_bias=q_bias, **arguments)


_biased.__name__ = "fbp"


def _attention(frames: int, width: int, hidden: int) -> Deep:
    sizes = (1, frames, width), (width, hidden), (hidden,), (hidden,)
    return Deep(fk.attention_pool, sizes, {"scale": 1.0, "trunks": 2}, (1, 2, 3))


CASES = {
    "widths, small tiles": _fbp(5, 4096, 6, 4),
    "norms": _fbp(5, 8192, 6, 4, adaptive=True),
    "outputs": _fbp(5, 6, 1000, 5),
    "factors": _fbp(5, 6, 1, 4096),
    "rows": Deep(_biased, ((8192, 5), (8192, 6), (5, 8), (6, 8), (8,), (8,)), {"factor": 2}),
}

# Where one running sum of products does not keep the rule. A softmax damps errors, and a reference on the processor has
# running sums of its own, so these are long.
LONGER = {
    "widths, large tiles": _fbp(130, 4096, 6, 4),
    "channels": _attention(64, 8192, 32),
    "frames": _attention(4096, 16, 16),
    "hidden": _attention(32, 32, 16384),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_long_sums_match_float64(shim: Shim, case: Deep) -> None:
    shim.multiprocessors(1)  # nobody else takes a share of what is summed over
    assert_parity(case.operator, case.draw, case.arguments, "native", draws=2)


@pytest.mark.parametrize("case", LONGER.values(), ids=LONGER.keys())
def test_one_running_sum_would_not(shim: Shim, case: Deep) -> None:
    shim.multiprocessors(1)
    assert_parity(case.operator, case.draw, case.arguments, "native")
    shim.terms(2**30)
    with pytest.raises(AssertionError, match=r"error .*, allowed"):
        assert_parity(case.operator, case.draw, case.arguments, "native")
