"""Local response normalisation in CUDA, through the shim."""

from collections.abc import Callable

import pytest
import torch

import fbp_kernels as fk

from ..checks import assert_parity
from .shim import Shim

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 1000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_of_any_size(shim: Shim, size: int, layout: torch.memory_format) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((2, 35, 3, 13), generator=generator) * 3
        return [x.contiguous(memory_format=layout)]

    arguments = {"size": size, "alpha": 0.5, "beta": 0.75, "k": 1.0, "relu": False}
    assert_parity(fk.local_response_norm, draw, arguments, "native", draws=2)


def test_long_windows_leave_room_for_fewer_threads(shim: Shim) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        return [torch.randn((1, 300, 21), generator=torch.Generator().manual_seed(seed))]

    arguments = {"size": 700, "alpha": 0.5}
    assert_parity(fk.local_response_norm, draw, arguments, "native")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_launch_each_way(shim: Shim, layout: torch.memory_format) -> None:
    x = torch.randn(2, 300, 5, 7).contiguous(memory_format=layout).requires_grad_()
    results: list[torch.Tensor] = []

    def run(call: Callable[[], torch.Tensor]) -> None:
        results.append(call())

    assert shim.launches(lambda: run(lambda: fk.local_response_norm(x, backend="native"))) == 1
    assert shim.launches(lambda: results[0].sum().backward()) == 1


@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_numbers_at_the_edge(shim: Shim, beta: float) -> None:
    """Infinity and NaN go no further than their windows, and as they do in the reference."""
    x = torch.randn(1, 40, 2, 3) * 3
    x[0, 7, 0, 0], x[0, 20, 1, 1], x[0, 30, 0, 2] = torch.inf, torch.nan, -torch.inf
    options = {"beta": beta, "relu": True}
    found = []
    for backend in ("native", "reference"):
        leaf = x.clone().requires_grad_()
        y = fk.local_response_norm(leaf, backend=backend, **options)
        y.sum().backward()
        found += [y.detach(), leaf.grad]
    y, gradient, y_reference, gradient_reference = found
    torch.testing.assert_close(y, y_reference, equal_nan=True)
    torch.testing.assert_close(gradient, gradient_reference, equal_nan=True)


def test_a_window_that_does_not_fit_is_refused(shim: Shim) -> None:
    x = torch.randn(1, 70000, 1)
    with pytest.raises(RuntimeError, match="a window of 70000 channels does not fit"):
        fk.local_response_norm(x, 70000, backend="native")


def test_float64_is_refused(shim: Shim) -> None:
    with pytest.raises(RuntimeError, match="no float64"):
        fk.local_response_norm(torch.randn(1, 3, 2, dtype=torch.float64), backend="native")
