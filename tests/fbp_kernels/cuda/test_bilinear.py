"""What drawn cases seldom meet: large tiles, many factors, shared trunks; and how many launches there are."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from ..checks import assert_parity
from .shim import Shim


def draw(dtype: torch.dtype, *shapes: tuple[int, ...]) -> Any:
    def inputs(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        # Weights have one dimension more than rows of one trunk, or are (width, N): scaled by their width.
        return [
            (torch.randn(s, generator=generator) * (s[-2] ** -0.5 if i % 4 > 1 else 1)).to(dtype)
            for i, s in enumerate(shapes)
        ]

    return inputs


MANY = 200  # multiprocessors: several blocks share the trunks of a tile


@pytest.mark.parametrize("multiprocessors", [1, MANY])
@pytest.mark.parametrize(
    ("batch", "dtype"), [(3, torch.float32), (3, torch.bfloat16), (130, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize(
    ("outputs", "factor"), [(2, 70), (70, 1), (9, 8)], ids=["K above a tile", "K = 1", "K = 8"]
)
def test_trunks_match_float64(
    shim: Shim, multiprocessors: int, dtype: torch.dtype, batch: int, outputs: int, factor: int
) -> None:
    H, C, D, N = 3, 9, 72, outputs * factor
    shim.multiprocessors(multiprocessors)
    inputs = draw(dtype, (batch, H, C), (batch, H, D), (H, C, N), (H, D, N))
    lengths = torch.arange(batch) % (H + 1)
    arguments = {"factor": factor, "lengths": lengths, "dropout": 0.2, "training": True}
    assert_parity(fk.trunk_fbp, inputs, arguments, "native")


@pytest.mark.parametrize("multiprocessors", [1, MANY])
@pytest.mark.parametrize("batch", [5, 130], ids=["small tiles", "large tiles"])
def test_adaptive_with_many_factors_matches_float64(
    shim: Shim, multiprocessors: int, batch: int
) -> None:
    shim.multiprocessors(multiprocessors)
    inputs = draw(torch.float32, (batch, 17), (batch, 40), (17, 3 * 70), (40, 3 * 70))
    assert_parity(fk.fbp, inputs, {"factor": 70, "adaptive": True}, "native")


@pytest.mark.parametrize("multiprocessors", [1, MANY])
@pytest.mark.parametrize("batch", [7, 130], ids=["small tiles", "large tiles"])
def test_am_fbp_is_its_two_parts_bit_by_bit_in_one_launch(
    shim: Shim, multiprocessors: int, batch: int
) -> None:
    def rows(*shape: int) -> Tensor:
        return torch.randn(batch, *shape).bfloat16()

    a, v, a_trunks, v_trunks = rows(24), rows(40), rows(6, 24), rows(6, 40)
    p, q = torch.randn(24, 60).bfloat16(), torch.randn(40, 60).bfloat16()
    p_trunks, q_trunks = torch.randn(6, 24, 30).bfloat16(), torch.randn(6, 40, 30).bfloat16()
    both = [a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks]
    results: list[Tensor] = []
    shim.multiprocessors(multiprocessors)
    launches = shim.launches(
        lambda: results.append(fk.am_fbp(*both, 5, 3, adaptive=True, backend="native"))
    )
    assert launches == 1
    alone = fk.fbp(a, v, p, q, 5, adaptive=True, backend="native")
    trunks = fk.trunk_fbp(a_trunks, v_trunks, p_trunks, q_trunks, 3, backend="native")
    assert torch.equal(results[0], torch.cat([alone, trunks], 1))

    for t in both:
        t.requires_grad_()
    z = fk.am_fbp(*both, 5, 3, adaptive=True, backend="native")
    assert shim.launches(z.float().sum().backward) == 2


def test_float64_is_refused(shim: Shim) -> None:
    a, p = torch.randn(2, 3).double(), torch.randn(3, 4).double()
    with pytest.raises(RuntimeError, match="the CUDA kernels have no float64"):
        fk.fbp(a, a, p, p, 2, backend="native")
