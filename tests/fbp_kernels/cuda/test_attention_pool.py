"""Attention over frames in CUDA, through the shim: tiles, shares, and what is asked for in part."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from ..checks import Inputs, assert_parity
from .shim import Shim

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def draw(seed: int, *sizes: int, dtype: torch.dtype, scale: float = 1.5) -> list[Tensor]:
    """Inputs of B, T, C, A."""
    B, T, C, A = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, C), (C, A), (A,), (A,)
    x, weight, bias, query = (torch.randn(s, generator=generator) for s in shapes)
    inputs = (x, weight / math.sqrt(C), bias, query, torch.tensor(scale))
    return [t.to(dtype) for t in inputs]


# Tiles have 64 frames and 64 columns; the last, of each, is not full.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("trunks", [1, 5, 300])
def test_several_tiles(shim: Shim, dtype: torch.dtype, trunks: int) -> None:
    lengths = torch.tensor([150, 0, 64, 65, 1])
    arguments = {"trunks": trunks, "lengths": lengths}

    def values(seed: int) -> Inputs:
        return draw(seed, 5, 150, 70, 67, dtype=dtype)

    assert_parity(fk.attention_pool, values, arguments, "native", draws=6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_lies_between_rows_is_not_read(shim: Shim, dtype: torch.dtype) -> None:
    """Rows begin where wide copies may, and end elsewhere."""

    def padded(tensor: Tensor, width: int) -> Tensor:
        wide = tensor.new_full((*tensor.shape[:-1], width), math.nan)
        wide[..., : tensor.shape[-1]] = tensor
        return wide[..., : tensor.shape[-1]]

    def values(seed: int) -> Inputs:
        x, weight, *vectors = draw(seed, 2, 70, 19, 13, dtype=dtype)
        return [padded(x, 32), padded(weight, 16), *vectors]

    assert_parity(fk.attention_pool, values, {"trunks": 3}, "native", draws=8)


@pytest.mark.parametrize("multiprocessors", [1, 3, 40])
def test_shares_of_the_frames_are_added_up(shim: Shim, multiprocessors: int) -> None:
    shim.multiprocessors(multiprocessors)

    def values(seed: int) -> Inputs:
        return draw(seed, 3, 130, 20, 9, dtype=torch.float32)

    assert_parity(fk.attention_pool, values, {"trunks": 3}, "native", draws=16)


@pytest.mark.parametrize("scale", [-2.0, 0.0, 30.0])
@pytest.mark.parametrize("kind", [float, torch.float64, torch.float16])
def test_any_scale(shim: Shim, scale: float, kind: Any) -> None:
    def values(seed: int) -> Inputs:
        x, weight, bias, query, _ = draw(seed, 2, 70, 9, 6, dtype=torch.float32)
        return [x, weight, bias, query]

    def call(*tensors: Tensor, **arguments: Any) -> Any:
        factor = scale if kind is float else torch.tensor(scale, dtype=kind)
        return fk.attention_pool(*tensors, factor, **arguments)

    call.__name__ = "attention_pool"
    assert_parity(call, values, {"trunks": 2}, "native", draws=16)


def test_the_gradient_of_a_scale_has_its_dtype(shim: Shim) -> None:
    x, weight, bias, query, _ = draw(0, 2, 30, 9, 6, dtype=torch.float32)
    gradients = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        scale = torch.tensor(1.5, dtype=dtype, requires_grad=True)
        pooled = fk.attention_pool(x, weight, bias, query, scale, trunks=2, backend="native")[0]
        pooled.square().sum().backward()
        assert scale.grad is not None
        assert scale.grad.dtype == dtype
        gradients[dtype] = scale.grad.item()
    for dtype, gradient in gradients.items():
        eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        assert gradient == pytest.approx(gradients[torch.float64], rel=2 * eps)


def test_padding_is_not_read(shim: Shim) -> None:
    x, weight, bias, query, scale = draw(0, 3, 100, 20, 9, dtype=torch.float32)
    lengths = torch.tensor([70, 0, 13])
    results = []
    for padding in (0.0, math.nan):
        filled = x.clone()
        for row, n in enumerate(lengths):
            filled[row, n:] = padding
        leaves = [t.clone().requires_grad_() for t in (filled, weight, bias, query, scale)]
        pooled = fk.attention_pool(*leaves, trunks=3, lengths=lengths, backend="native")
        gradients = torch.autograd.grad([t.square().sum() for t in pooled], leaves)
        results.append([*pooled, *gradients])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_single_frame_has_no_gradient_through_its_score(shim: Shim) -> None:
    inputs = [t.requires_grad_() for t in draw(0, 2, 80, 20, 9, dtype=torch.float32)]
    lengths = torch.tensor([1, 1])
    pooled, _, _ = fk.attention_pool(*inputs, trunks=3, lengths=lengths, backend="native")
    gradients = torch.autograd.grad(pooled.square().sum(), inputs)
    assert all(not g.any() for g in gradients[1:])
    assert torch.equal(gradients[0][:, 0], 2 * inputs[0][:, 0])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (4,), (0, 1), (2, 4)])
@pytest.mark.parametrize("used", [(0,), (1,), (2,)])
def test_gradients_asked_for_in_part(
    shim: Shim, wanted: tuple[int, ...], used: tuple[int, ...]
) -> None:
    def gradients(some: tuple[int, ...]) -> list[Tensor]:
        inputs = draw(0, 2, 70, 20, 9, dtype=torch.float32)
        for i in some:
            inputs[i].requires_grad_()
        results = fk.attention_pool(*inputs, trunks=3, backend="native")
        loss = sum(results[i].square().sum() for i in used)
        return list(torch.autograd.grad(loss, [inputs[i] for i in some]))

    everything = gradients((0, 1, 2, 3, 4))
    for i, gradient in zip(wanted, gradients(wanted), strict=True):
        assert torch.equal(gradient, everything[i])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_hidden_layer_is_kept_as_it_is(shim: Shim, dtype: torch.dtype) -> None:
    """Several tiles of frames and of columns, the last ones not full; zeros at frames that do not count."""
    lengths = torch.tensor([100, 0, 64, 13])
    inputs = [t.requires_grad_() for t in draw(0, 4, 100, 20, 70, dtype=dtype)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fk.attention_pool(*inputs, trunks=2, lengths=lengths, backend="native", keep_hidden=True)
    (hidden,) = (t for t in kept if t.shape == (4, 100, 70))
    x, weight, bias = (t.detach().double() for t in inputs[:3])
    want = torch.tanh(x @ weight + bias).where(
        (torch.arange(100) < lengths[:, None])[..., None], torch.zeros((), dtype=torch.float64)
    )
    torch.testing.assert_close(hidden, want.to(dtype))
    assert not hidden[want == 0].any()


@pytest.mark.parametrize("keep", [True, False])
def test_launches(shim: Shim, keep: bool) -> None:
    def forward(T: int, *, backward: bool = False) -> None:
        inputs = [t.requires_grad_() for t in draw(0, 2, T, 9, 6, dtype=torch.float32)]
        pooled, _, _ = fk.attention_pool(*inputs, trunks=2, backend="native", keep_hidden=keep)
        if backward:
            pooled.sum().backward()

    assert shim.launches(lambda: forward(64)) == 1
    assert shim.launches(lambda: forward(65)) == 2
    assert shim.launches(lambda: forward(65, backward=True)) == 2 + 3
