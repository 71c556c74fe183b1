"""What is particular to power normalisation in Triton: widths, strides, zeros and the least norm."""

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels.triton import launch, tuning
from fbp_kernels.triton import power_normalize as module

from ..checks import assert_parity, strided


def differentiated(z: Tensor, dy: Tensor, backend: str, **options: float) -> list[Tensor]:
    leaf = z.detach().requires_grad_()
    y = fk.power_normalize(leaf, backend=backend, **options)
    return [y.detach(), *torch.autograd.grad(y, leaf, dy)]


# Blocks hold 16, 32 and 64 columns by class of width: whole rows, one block and some, many blocks.
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 64, 65, 130, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_width(width: int, dtype: torch.dtype) -> None:
    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(3, width, generator=generator).to(dtype)]

    assert_parity(fk.power_normalize, draw, {}, "triton", draws=4)


def test_rows_in_any_memory() -> None:
    z, dy = torch.randn(6, 10, 20), torch.randn(6, 10, 20)
    whole = differentiated(z, dy, "triton")
    for layout in ("transposed", "sliced", "batch_last"):
        for other in (layout, "contiguous"):
            got = differentiated(strided(z, layout), strided(dy, other), "triton")
            for have, want in zip(got, whole, strict=True):
                assert have.is_contiguous()
                torch.testing.assert_close(have, want, rtol=0, atol=0)
    parts = differentiated(z[..., 3:14], dy[..., 3:14], "triton")
    torch.testing.assert_close(parts, differentiated(z[..., 3:14], dy[..., 3:14], "reference"))
    expanded = torch.ones(()).expand(6, 10, 20)
    torch.testing.assert_close(
        differentiated(z, expanded, "triton"), differentiated(z, expanded, "reference")
    )


@pytest.mark.filterwarnings("ignore:.*encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("width", [7, 100])
def test_zeros_have_a_gradient_of_zero_and_rows_of_zeros_are_finite(width: int) -> None:
    z, dy = torch.randn(5, width), torch.randn(5, width)
    z[0] = 0
    z[1, ::2] = 0
    z[2, 0], z[3] = -0.0, 1e-30
    got, want = (differentiated(z, dy, b) for b in ("triton", "reference"))
    for have, expected in zip(got, want, strict=True):
        assert have.isfinite().all()
        torch.testing.assert_close(have, expected)
    assert not got[0][0].any()
    assert not got[1][z == 0].any()


@pytest.mark.parametrize("width", [7, 100])
def test_below_eps_the_divisor_is_a_constant(width: int) -> None:
    z, dy = torch.randn(4, width), torch.randn(4, width)
    z[:2] *= 1e-5
    eps = 0.1
    norms = z.abs().sum(1).sqrt()
    assert (norms[:2] < eps).all()
    assert (norms[2:] > eps).all()
    y, dz = differentiated(z, dy, "triton", eps=eps)
    root = z.abs().sqrt()
    torch.testing.assert_close(y[:2], (z.sign() * root / eps)[:2])
    torch.testing.assert_close(dz[:2], (dy / (2 * eps * root))[:2])
    for have, want in zip((y, dz), differentiated(z, dy, "reference", eps=eps), strict=True):
        torch.testing.assert_close(have, want)


def test_a_row_of_one_column_has_no_gradient_exactly() -> None:
    z, dy = torch.randn(200, 1), torch.randn(200, 1)
    y, dz = differentiated(z, dy, "triton")
    assert torch.equal(y, z.sign())
    assert not dz.any()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_not_a_number_stays_in_its_row() -> None:
    z = torch.randn(3, 20)
    z[1, 4] = torch.nan
    dy = torch.randn(3, 20)
    y, dz = differentiated(z, dy, "triton")
    assert y[1].isnan().all()
    assert dz[1].isnan().all()
    for have, want in zip((y, dz), differentiated(z[::2], dy[::2], "reference"), strict=True):
        torch.testing.assert_close(have[::2], want)


@pytest.mark.parametrize("size", tuning.SIZES)
def test_samples_launch_every_kernel_that_has_candidates(size: str) -> None:
    keys = []

    def choose(key: tuning.Key, architecture: str, call: tuning.Call) -> None:
        keys.append(key)
        call(tuning.lookup(key, architecture))

    with tuning.choosing(choose), launch.instead(lambda *_: None):
        for sample in module.samples(size, torch.float32, "meta"):
            sample()
    assert {k.kernel for k in keys} == set(module.CANDIDATES)
    assert {(k.dtype, k.size) for k in keys} == {("float32", size)}
    for key in keys:
        for architecture in ("sm80", "sm90", "sm100"):
            candidates = module.CANDIDATES[key.kernel](key)
            assert tuning.lookup(key, architecture) in candidates
