"""Long sums in float32 are within the rule with products that run as a device runs them: one addition after the other.

The interpreter leaves products to NumPy, whose own sums are in pieces.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import fbp_kernels as fk
from fbp_kernels.triton import functions, tuning
from fbp_kernels.triton.tuning import Call, Config, Key

from ..checks import assert_parity


def _chain(builder: Any, a: Any, b: Any, start: Any, *_: Any) -> Any:
    """A product as a chain of fused multiply-adds for each element, which is what `tl.dot` is on a GPU in float32."""
    total = start.data
    left, right = a.data.astype(np.float64), b.data.astype(np.float64)  # products are exact there
    for k in range(left.shape[1]):
        total = (left[:, k, None] * right[k] + total).astype(np.float32)
    return TensorHandle(total, start.dtype.scalar)


@pytest.fixture(autouse=True)
def chained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _chain)


TILES = {
    "fbp_forward": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_C": 32, "GROUP": 1},
    "fbp_projection_gradients": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_C": 32, "GROUP": 1},
    "fbp_gradients": {
        "BLOCK_M": 128, "BLOCK_C": 128, "BLOCK_N": 32,
        "WEIGHT_C": 128, "WEIGHT_N": 64, "WEIGHT_M": 32, "GROUP": 1,
    },
    "attention_pool_forward": {"BT": 128, "BA": 128, "BC": 32, "BH": 16},
    "attention_pool_weights_backward": {"BT": 128, "BC": 128},
    "attention_pool_inputs_backward": {"BT": 128, "BA": 32, "BC": 128},
    "attention_pool_parameters_backward": {"BT": 32, "BA": 128, "BC": 128, "BP": 4},
}  # fmt: skip


def choose(key: Key, architecture: str, call: Call) -> Any:
    """Tiles so large that there are few programs, of the depths that a device's table has."""
    return call(Config(TILES[key.kernel], 1, 1))


def parity(operator: Callable[..., Any], *shapes: tuple[int, ...], **arguments: Any) -> None:
    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [torch.randn(shape) * shape[0] ** -0.5 for shape in shapes]

    with tuning.choosing(choose):
        assert_parity(operator, draw, arguments, "triton")


def fbp(*, rows: int = 32, width: int = 32, outputs: int = 16) -> None:
    """A case with one long side, which some of its products sum over."""
    N = outputs * 4

    def biased(*t: Tensor, **options: Any) -> Tensor:
        return fk.fbp(*t[:4], 4, p_bias=t[4], q_bias=t[5], adaptive=True, **options)

    biased.__name__ = "fbp"
    parity(biased, (rows, width), (rows, width), (width, N), (width, N), (N,), (N,))


def attention_pool(*, frames: int = 32, width: int = 32, hidden: int = 32) -> None:
    shapes = (1, frames, width), (width, hidden), (hidden,), (hidden,)
    parity(fk.attention_pool, *shapes, scale=1.0, trunks=2)


BILINEAR = [(fbp, {"width": 4096}), (fbp, {"outputs": 1024}), (fbp, {"rows": 4096})]
ATTENTION = [(attention_pool, {size: 4096}) for size in ("width", "hidden", "frames")]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "sizes"), [*BILINEAR, *ATTENTION])
def test_a_long_sum_is_within_the_rule(case: Callable[..., None], sizes: dict[str, int]) -> None:
    case(**sizes)


# A softmax damps errors of scores: sums have to be long before one running sum shows.
LONGER: list[tuple[Callable[..., None], dict[str, int]]] = [
    (attention_pool, {"width": 4096}),
    (attention_pool, {"hidden": 16384}),
    (attention_pool, {"frames": 16384, "width": 16, "hidden": 16}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "sizes"), [*BILINEAR, *LONGER])
def test_one_running_sum_would_not_be(
    case: Callable[..., None], sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "PIECE", tl.constexpr(2**30))
    with pytest.raises(AssertionError, match=r"error .*, allowed"):
        case(**sizes)
