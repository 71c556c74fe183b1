"""Batch normalisation in CUDA, through the shim: shares, planes that begin anywhere, padding, numbers at the edge."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fbp_kernels as fk

from ..checks import assert_parity
from ..test_batch_norm import LAYOUTS, differentiated
from .shim import Shim

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def drawing(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, offset: float = 0.0
) -> Callable[[int], list[Tensor]]:
    """Draws x, weight and bias."""

    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + offset
        weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
        return [x.to(dtype).contiguous(memory_format=layout), weight.to(dtype), bias.to(dtype)]

    return draw


# Shares have 4096 values of float32 at least: these have several, within a plane and over many small ones; planes that
# begin where vectors may not; more channels than a block takes, the last vector of the last block empty and the one
# before it not full; and a number that leaves threads without work.
SHAPES = [(2, 3, 50, 150), (70, 2, 9, 11), (3, 5, 33, 67), (2, 257, 8, 9), (2, 96, 10, 21)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_several_shares(
    shim: Shim, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    lengths = torch.arange(shape[0]) * 7 % (shape[-1] + 1)
    lengths[0] = shape[-1]
    for n in (None, lengths):
        draw = drawing(shape, dtype, layout, offset=3.0)
        assert_parity(fk.batch_norm, draw, {"lengths": n, "relu": n is None}, "native")


@pytest.mark.parametrize(
    ("shape", "layout"), [((1, 600, 1, 4100), LAYOUTS[0]), ((2, 8, 1, 270000), LAYOUTS[1])]
)
def test_shares_of_several_tiles(
    shim: Shim, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    draw = drawing(shape, torch.float32, layout, offset=3.0)
    assert_parity(fk.batch_norm, draw, {"relu": True}, "native")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_that_begins_anywhere(
    shim: Shim, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """The shim's tensors begin where vectors may; views do not."""
    x = torch.randn(2, 16, 5, 8).to(dtype).contiguous(memory_format=layout)
    dy, weight, bias = torch.randn_like(x), torch.rand(16), torch.rand(16)
    mean, variance = (torch.rand(16, dtype=torch.float64) for _ in range(2))

    def moved(tensor: Tensor, by: int) -> Tensor:
        memory = torch.empty(tensor.numel() + by, dtype=dtype)
        return memory.as_strided(tensor.shape, tensor.stride(), by).copy_(tensor)

    def run(x: Tensor, dy: Tensor) -> list[Tensor]:
        forward = torch.ops.fbp_shim.batch_norm_forward(x, weight, bias, None, 1e-5, True)
        arguments = (dy, x, weight, bias, None, mean, variance, 1e-5, True, 7)
        return [*forward, *torch.ops.fbp_shim.batch_norm_backward(*arguments)]

    shim.calls += 1
    want = run(x, dy)
    for by in ((1, 0), (0, 1), (3, 3), (8, 0)):
        # What a thread adds up depends on where vectors begin, by a rounding or two.
        for got, expected in zip(run(moved(x, by[0]), moved(dy, by[1])), want, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stands_after_a_clip_does_not_count(
    shim: Shim, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    lengths = torch.tensor([0, 6, 0, 1, 14, 4])
    x = torch.randn(6, 9, 3, 14).to(dtype)
    outside = (torch.arange(14) >= lengths[:, None])[:, None, None]
    parameters = torch.randn(2, 9)
    results = []
    for padding in (0.0, torch.nan, torch.inf):
        padded = x.masked_fill(outside, padding).contiguous(memory_format=layout)
        found = differentiated(padded, *parameters, lengths=lengths, relu=True, backend="native")
        assert not found[0].masked_select(outside).any()
        assert not found[3].masked_select(outside).any()
        results.append(found)
    for others in results[1:]:
        assert all(map(torch.equal, others, results[0]))
    clips = torch.cat([x[row, ..., :n].flatten(1) for row, n in enumerate(lengths)], 1).double()
    torch.testing.assert_close(results[0][1].double(), clips.mean(1), rtol=1e-6, atol=1e-7)
    var = clips.var(1, correction=0)
    torch.testing.assert_close(results[0][2].double(), var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beginning", [1e5, 0.0])
def test_a_mean_of_many_deviations(
    shim: Shim, layout: torch.memory_format, beginning: float
) -> None:
    """Also where the first values of a channel tell nothing of the others."""
    x = torch.randn(4, 17, 40, 33) + 1e5
    x[:, :, 0] += beginning - 1e5
    x = x.contiguous(memory_format=layout)
    y, mean, var = fk.batch_norm(x, torch.ones(17), torch.zeros(17), backend="native")
    true = x.double()
    dims = (0, 2, 3)
    torch.testing.assert_close(mean.double(), true.mean(dims), rtol=6e-8, atol=0)
    torch.testing.assert_close(var.double(), true.var(dims, correction=0), rtol=1e-6, atol=0)
    want = F.batch_norm(true, None, None, training=True)
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_with_a_mean_of_many_deviations(shim: Shim, layout: torch.memory_format) -> None:
    """What the mean loses when it is rounded to float32, 0.004 deviations, is in none of them."""
    x = (torch.randn(4, 17, 20, 33) + 1e5).contiguous(memory_format=layout)
    true = x.double()
    dims = (0, 2, 3)
    dy = torch.randn_like(x) + 1 + 2 * (x - 1e5)
    leaves = [true, torch.ones(17).double(), torch.zeros(17).double()]
    for leaf in leaves:
        leaf.requires_grad_()
    y = fk.batch_norm(*leaves, backend="reference")[0]
    want = torch.autograd.grad(y, leaves, dy.double())
    statistics = (true.detach().mean(dims), true.detach().var(dims, correction=0))
    arguments = (dy, x, torch.ones(17), torch.zeros(17), None, *statistics, 1e-5, False, 7)
    for got, expected in zip(shim.batch_norm_backward(*arguments), want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_large_means_and_small_variances(
    shim: Shim, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    draw = drawing((3, 20, 13, 17), dtype, layout, offset=-3000.0)
    assert_parity(fk.batch_norm, draw, {"relu": True}, "native", draws=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_cut_exactly_where_the_result_is(
    shim: Shim, layout: torch.memory_format
) -> None:
    # Few different values, and a mean that is one of them: many results are 0 or next to it.
    x = torch.randint(-2, 3, (8, 19, 5, 7)).float() / 3 + 1000
    x = torch.cat([x, 2000 - x]).contiguous(memory_format=layout)
    weight, bias = torch.rand(19) + 0.5, torch.zeros(19)
    y, mean, variance = shim.batch_norm_forward(x, weight, bias, None, 1e-5, True)
    # A gradient so large that no other part of dx comes near it.
    dy = torch.randn_like(y).sign() * 2.0**40
    arguments = (x, weight, bias, None, mean, variance, 1e-5)
    cut, _, d_bias = shim.batch_norm_backward(dy, *arguments, True, 7)
    whole = shim.batch_norm_backward(dy.where(y != 0, 0.0), *arguments, False, 7)
    assert torch.equal(cut, whole[0])
    assert torch.equal(d_bias, whole[2])
    assert 0.3 < (y == 0).float().mean() < 0.8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_that_is_constant_or_has_one_value(
    shim: Shim, layout: torch.memory_format
) -> None:
    parameters = torch.tensor([[1.5] * 3, [0.25, -0.5, 0.0]])
    constant = torch.full((2, 3, 4, 5), 77.5).contiguous(memory_format=layout)
    single = torch.randn(2, 3, 1, 1).contiguous(memory_format=layout)
    for x, lengths in ((constant, None), (single, torch.tensor([0, 1]))):
        y, mean, var, dx, d_weight, _ = differentiated(
            x, *parameters, lengths=lengths, backend="native"
        )
        want = parameters[1][:, None, None].expand_as(x[-1])
        torch.testing.assert_close(y[-1], want, rtol=0, atol=1e-3)
        torch.testing.assert_close(mean, x[-1, :, 0, 0])
        assert (var < 1e-9).all()
        assert dx.abs().max() < 0.1
        torch.testing.assert_close(d_weight, torch.zeros(3), rtol=0, atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_counts(shim: Shim, layout: torch.memory_format) -> None:
    x = torch.full((2, 3, 4, 5), torch.nan).contiguous(memory_format=layout)
    for lengths in (torch.tensor([0, 0]), torch.tensor([0, 0], dtype=torch.int32)):
        results = differentiated(x, torch.ones(3), torch.ones(3), lengths=lengths, backend="native")
        assert not any(t.any() for t in results)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_a_number_and_infinity_stay_in_their_channel(
    shim: Shim, layout: torch.memory_format
) -> None:
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 0, 0], x[1, 2, 0, 0] = torch.nan, torch.inf
    x = x.contiguous(memory_format=layout)
    y, mean, _ = fk.batch_norm(x, torch.ones(4), torch.zeros(4), relu=True, backend="native")
    assert y[:, 1:3].isnan().all()
    assert not mean[1:3].isfinite().any()
    want = F.relu(F.batch_norm(x[:, ::3], None, None, training=True))
    torch.testing.assert_close(y[:, ::3], want)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_in_part_and_from_any_layout(
    shim: Shim, layout: torch.memory_format, wanted: tuple[int, ...]
) -> None:
    x = torch.randn(3, 6, 5, 7).contiguous(memory_format=layout)
    dy = torch.randn(3, 6, 5, 7)

    def gradients(some: tuple[int, ...], dy: Tensor) -> list[Tensor]:
        inputs = [x.clone(), torch.full((6,), 0.7), torch.full((6,), 0.2)]
        for i in some:
            inputs[i].requires_grad_()
        y, _, _ = fk.batch_norm(*inputs, relu=True, backend="native")
        return list(torch.autograd.grad(y, [inputs[i] for i in some], dy))

    everything = gradients((0, 1, 2), dy)
    for given in (dy, dy.contiguous(memory_format=torch.channels_last), dy.mT.contiguous().mT):
        for i, gradient in zip(wanted, gradients(wanted, given), strict=True):
            assert torch.equal(gradient, everything[i])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_device(shim: Shim, layout: torch.memory_format) -> None:
    (x, weight, bias) = drawing((3, 20, 30, 31), torch.float32, layout)(0)
    runs = []
    for multiprocessors in (1, 3, 40):
        shim.multiprocessors(multiprocessors)
        runs.append(differentiated(x, weight, bias, relu=True, backend="native"))
    assert all(
        torch.equal(*pair) for other in runs[1:] for pair in zip(runs[0], other, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_launches_each_way(shim: Shim, layout: torch.memory_format) -> None:
    x, weight, bias = drawing((2, 70, 30, 40), torch.float32, layout)(0)
    parameters = [t.requires_grad_() for t in (weight, bias)]
    results: list[Any] = []

    def forward(x: Tensor) -> None:
        results.append(fk.batch_norm(x, *parameters, relu=True, backend="native")[0])

    assert shim.launches(lambda: forward(x)) == 3
    assert shim.launches(lambda: results[-1].sum().backward()) == 2, "no dx is written"
    assert shim.launches(lambda: forward(x.requires_grad_())) == 3
    assert shim.launches(lambda: results[-1].sum().backward()) == 3
    assert shim.launches(lambda: forward(torch.empty(0, 70, 3))) == 0


def test_float64_is_refused(shim: Shim) -> None:
    x, ones = torch.randn(2, 3, 4).double(), torch.ones(3).double()
    with pytest.raises(RuntimeError, match="the CUDA kernels have no float64"):
        fk.batch_norm(x, ones, ones, backend="native")
