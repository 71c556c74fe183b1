"""What is particular to local response normalisation in Triton: layouts, any window, numbers at the edge."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels.triton import launch, tuning
from fbp_kernels.triton import local_response_norm as module
from tests.marks import slow

from ..checks import assert_parity
from .guard import guarded, reversed_programs

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def draw(
    *shape: int, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]
) -> Callable[[int], list[Tensor]]:
    def values(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=generator) * 3
        return [x.to(dtype).contiguous(memory_format=layout)]

    return values


# Of 11 channels in tiles of 8: windows that leave half of a tile, that do not, and that hold all channels and more.
@pytest.mark.parametrize("size", slow([1, 2, 4, 5, 6, 9, 21, 1000], 1000))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_of_any_size(size: int, layout: torch.memory_format) -> None:
    arguments = {"size": size, "alpha": 0.5, "beta": 0.75, "k": 1.0, "relu": False}
    sample = draw(1, 11, 3, 5, layout=layout)
    assert_parity(fk.local_response_norm, sample, arguments, "triton", draws=2)


@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_tiles_meet_without_a_gap_and_without_an_overlap(size: int) -> None:
    """Of 20 channels in tiles of 8, whose ends other programs compute too."""

    def run(x: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        y = fk.local_response_norm(leaf, size, 0.5, backend="triton")
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]

    x = torch.randn(2, 20, 5)
    with guarded("local_response_norm") as guards:
        first = run(guards.embed(x))
    with reversed_programs():
        again = run(x)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert all(t.isfinite().all() for t in first)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 2.5, 0.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_any_power_of_sums_of_any_magnitude(beta: float, scale: float) -> None:
    arguments = {"size": 5, "alpha": 0.7, "beta": beta, "k": 1.5, "relu": False}
    sample = draw(1, 9, 11)
    scaled = lambda seed: [t * scale for t in sample(seed)]  # noqa: E731
    assert_parity(fk.local_response_norm, scaled, arguments, "triton", draws=4)


def test_channels_that_leave_some_of_the_last_tile_empty_and_positions_of_every_alignment() -> None:
    for channels, positions in ((7, 1), (8, 16), (9, 17), (17, 18), (23, 20), (24, 24)):
        arguments = {"size": 3, "alpha": 0.5, "beta": 0.75, "k": 1.0, "relu": True}
        sample = draw(2, channels, positions, dtype=torch.bfloat16)
        assert_parity(fk.local_response_norm, sample, arguments, "triton", draws=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_and_gradient_have_the_layout_of_x_whatever_that_of_dy(
    layout: torch.memory_format,
) -> None:
    x = torch.randn(2, 9, 4, 5).contiguous(memory_format=layout).requires_grad_()
    y = fk.local_response_norm(x, relu=True, backend="triton")
    assert y.stride() == x.stride()
    dy = torch.randn(2, 9, 4, 5)
    gradients = [
        torch.autograd.grad(y, x, given, retain_graph=True)[0]
        for given in (
            dy.contiguous(memory_format=layout),
            dy.contiguous(memory_format=LAYOUTS[0]),
            dy.contiguous(memory_format=LAYOUTS[1]),
            dy.transpose(0, 3).contiguous().transpose(0, 3),
        )
    ]
    for gradient in gradients:
        assert gradient.stride() == x.stride()
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=0)
    (expanded,) = torch.autograd.grad(y.sum(), x)
    want = torch.autograd.grad(fk.local_response_norm(x, relu=True, backend="native").sum(), x)
    torch.testing.assert_close(expanded, want[0])


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("relu", [False, True])
def test_numbers_at_the_edge(relu: bool, beta: float, layout: torch.memory_format) -> None:
    x = torch.randn(2, 20, 37, 1)
    x[0, 3, 5], x[0, 9, 7], x[1, 4, 2] = float("nan"), float("inf"), 1e25
    x[1, 15, 3], x[1, 0, 0], x[0, 11, 20] = 1e-38, 0.0, -float("inf")
    x = x.contiguous(memory_format=layout)
    got = fk.local_response_norm(x, 5, 0.1, beta, 0.5, relu=relu, backend="triton")
    want = fk.reference.local_response_norm(x, 5, 0.1, beta, 0.5, relu=relu)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert 5 <= got.isnan().sum() <= 7, "no further than the windows"


def test_the_relu_cuts_the_gradient_where_x_is_not_above_0() -> None:
    x = torch.tensor([1.0, 0.0, -0.0, -1.0, 2.0]).view(1, 5, 1).requires_grad_()
    y = fk.local_response_norm(x, relu=True, backend="triton")
    assert y.flatten()[1:4].tolist() == [0.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (gradient.flatten() != 0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("size", tuning.SIZES)
def test_samples_launch_every_kernel_that_has_candidates(size: str) -> None:
    """On meta tensors, as the compiler takes them."""
    keys = []

    def choose(key: tuning.Key, architecture: str, call: tuning.Call) -> None:
        keys.append(key)
        call(tuning.lookup(key, architecture))

    with tuning.choosing(choose), launch.instead(lambda *_: None):
        for sample in module.samples(size, torch.bfloat16, "meta"):
            sample()
    assert {k.kernel for k in keys} == set(module.CANDIDATES)
    assert {(k.dtype, k.size) for k in keys} == {("half", size)}
    for key in keys:
        for architecture in ("sm80", "sm90", "sm100"):
            assert tuning.lookup(key, architecture) in module.CANDIDATES[key.kernel]


COMPILE = """
import torch
from fbp_kernels.triton import ahead, launch, local_response_norm as module
ahead.target(90)
with launch.instead(lambda kernel, grid, args, options: kernel.warmup(*args, grid=grid, **options)):
    for rows in (1, 3, 16, 64):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(rows, 96, 3, 16, device="meta").contiguous(memory_format=layout)
            module.forward(x, 5, 1e-4, 0.75, 1.0, True)
print(sum(len(c[0]) for c in module.local_response_norm_forward_kernel.device_caches.values()))
"""


@pytest.mark.slow
def test_a_changing_batch_compiles_nothing_new() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["2"], "one for each layout"


@pytest.mark.parametrize(("positions", "wide"), [(2**27 - 1, False), (2**27, True)])
def test_offsets_are_wide_where_a_row_of_the_batch_needs_it(positions: int, wide: bool) -> None:
    seen = []
    with launch.instead(lambda kernel, grid, arguments, options: seen.append((grid, options))):
        x = torch.empty(2, 16, positions, device="meta")
        module.backward(x, x, 5, 1e-4, 0.75, 1.0, False, 1)
    ((grid, options),) = seen
    assert options["WIDE"] == wide
    assert grid[0] == 2 * -(-16 // (options["BC"] - 4)) * -(-positions // options["BP"])
