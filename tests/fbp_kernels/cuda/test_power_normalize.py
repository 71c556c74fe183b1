"""Signed square roots and normalised rows in CUDA, through the shim."""

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from ..checks import assert_parity, strided
from .shim import Shim

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def differentiated(z: Tensor, dy: Tensor, backend: str, **options: float) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    y = fk.power_normalize(leaf, backend=backend, **options)
    return y.detach(), torch.autograd.grad(y, leaf, dy)[0]


# A warp takes rows of up to 512 columns, eight of them to a block; a block those above.
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (19, 33), (9, 512), (3, 513), (2, 520), (2, 9001)])
def test_rows_of_any_width(shim: Shim, shape: tuple[int, int], dtype: torch.dtype) -> None:
    def draw(seed: int) -> list[Tensor]:
        return [(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)]

    assert_parity(fk.power_normalize, draw, {}, "native", draws=4)


def test_long_rows_are_added_up_well(shim: Shim) -> None:
    """One sum in float32 over all would be off by far more than a rounding."""
    z = torch.full((1, 2**18), 0.1)
    assert_parity(fk.power_normalize, lambda _: [z], {}, "native")
    y = fk.power_normalize(z, backend="native")
    torch.testing.assert_close(y, torch.full_like(z, 2.0**-9), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [20, 32, 600])
def test_rows_in_any_memory(shim: Shim, dtype: torch.dtype, width: int) -> None:
    z, dy = torch.randn(2, 2, 3, width).to(dtype)
    whole = differentiated(z, dy, "native")
    for layout in ("transposed", "sliced", "batch_last"):
        for other in (layout, "contiguous"):
            got = differentiated(strided(z, layout), strided(dy, other), "native")
            for have, want in zip(got, whole, strict=True):
                assert have.is_contiguous()
                torch.testing.assert_close(have, want)
    # Rows whose ends are no ends of vectors, and memory that begins where vectors may not.
    for rows, slopes in (
        (z[0], dy[0]),
        (z[0, :, 1:17], dy[0, :, 1:17]),
        (z[0, :, :13], dy[0, :, 4:17]),
    ):
        shim.calls += 1
        y = torch.ops.fbp_shim.power_normalize_forward(rows, 1e-12)
        dz = torch.ops.fbp_shim.power_normalize_backward(slopes, rows, 1e-12)
        want = differentiated(rows.contiguous(), slopes.contiguous(), "native")
        torch.testing.assert_close((y, dz), want)
    # Every second column, in rows that begin where vectors may; and whole vectors, in rows that do not.
    for spaced in (torch.randn(3, 64).to(dtype)[:, ::2], torch.randn(3, 33).to(dtype)[:, :32]):
        got = differentiated(spaced, spaced, "native")
        torch.testing.assert_close(got, differentiated(*[spaced.contiguous()] * 2, "native"))
    expanded = torch.ones((), dtype=dtype).expand(2, 3, width)
    torch.testing.assert_close(
        differentiated(z, expanded, "native"), differentiated(z, expanded.contiguous(), "native")
    )


@pytest.mark.parametrize("width", [7, 1000])
def test_zeros_have_a_gradient_of_zero_and_rows_of_zeros_are_finite(shim: Shim, width: int) -> None:
    z, dy = torch.randn(5, width), torch.randn(5, width)
    z[0] = 0
    z[1, ::2] = 0
    z[2, 0], z[3] = -0.0, 1e-30
    got, want = (differentiated(z, dy, b) for b in ("native", "reference"))
    for have, expected in zip(got, want, strict=True):
        assert have.isfinite().all()
        torch.testing.assert_close(have, expected)
    assert not got[0][0].any()
    assert not got[1][z == 0].any()


@pytest.mark.parametrize("width", [7, 1000])
def test_below_eps_the_divisor_is_a_constant(shim: Shim, width: int) -> None:
    z, dy = torch.randn(4, width), torch.randn(4, width)
    z[:2] *= 1e-5
    eps = z[2:].abs().sum(1).sqrt().min().item() / 2
    assert (z[:2].abs().sum(1).sqrt() < eps).all()
    y, dz = differentiated(z, dy, "native", eps=eps)
    root = z.abs().sqrt()
    torch.testing.assert_close(y[:2], (z.sign() * root / eps)[:2])
    torch.testing.assert_close(dz[:2], (dy / (2 * eps * root))[:2])
    for have, want in zip((y, dz), differentiated(z, dy, "reference", eps=eps), strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_of_one_column_has_no_gradient_exactly(shim: Shim, dtype: torch.dtype) -> None:
    z, dy = torch.randn(2, 200, 1).to(dtype)
    y, dz = differentiated(z, dy, "native")
    assert torch.equal(y, z.sign())
    assert not dz.any()


@pytest.mark.parametrize("width", [20, 700])
def test_not_a_number_stays_in_its_row(shim: Shim, width: int) -> None:
    z = torch.randn(3, width)
    z[1, 4] = torch.nan
    y = fk.power_normalize(z, backend="native")
    assert y[1].isnan().all()
    torch.testing.assert_close(y[::2], fk.power_normalize(z[::2], backend="reference"))


@pytest.mark.parametrize("width", [20, 700])
def test_one_launch_each_way(shim: Shim, width: int) -> None:
    z = torch.randn(70, width, requires_grad=True)
    results: list[Tensor] = []
    forward = lambda: results.append(fk.power_normalize(z, backend="native"))  # noqa: E731
    assert shim.launches(forward) == 1
    assert shim.launches(lambda: results[0].sum().backward()) == 1


def test_float64_is_refused(shim: Shim) -> None:
    with pytest.raises(RuntimeError, match="the CUDA kernels have no float64"):
        fk.power_normalize(torch.randn(2, 3).double(), backend="native")
