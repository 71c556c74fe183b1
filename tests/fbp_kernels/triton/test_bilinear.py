"""What only the bilinear Triton kernels have: splits, wide factors, overflow, far offsets, workspace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fbp_kernels as fk
from fbp_kernels import backends
from fbp_kernels.triton import launch, tuning
from tests.marks import slow

from ..checks import assert_parity


def recorded(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The compile-time options of the launches of a call, which are made."""
    found: list[dict[str, Any]] = []

    def run(kernel: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
        found.append(options)
        kernel[grid](*arguments, **options)

    with launch.instead(run):
        call()
    return found


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).mul_(shape[-2] ** -0.25).to(dtype) for shape in shapes]


def draws(*shapes: tuple[int, ...], dtype: torch.dtype) -> Callable[[int], list[Tensor]]:
    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return leaves(*shapes, dtype=dtype)

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("K", [33, 70])
def test_a_factor_wider_than_a_tile(K: int) -> None:
    block = tuning.lookup(tuning.Key("fbp_forward", "float32", "small"), "interpreter").blocks
    assert block["BLOCK_N"] < K, "or this tests nothing"
    draw = draws((5, 8), (5, 6), (8, 3 * K), (6, 3 * K), dtype=torch.float32)
    arguments = {"factor": K, "adaptive": True, "dropout": 0.2, "training": True}
    assert_parity(fk.fbp, draw, arguments, "triton", draws=4)


@pytest.mark.parametrize("dtype", slow([torch.float32, torch.bfloat16], torch.bfloat16))
def test_trunks_split_over_programs_are_added_up_in_order(dtype: torch.dtype) -> None:
    shapes = (7, 9, 8), (7, 9, 6), (9, 8, 20), (9, 6, 20)
    lengths = torch.tensor([9, 0, 4, 5, 1, 8, 2])
    inputs = leaves(*shapes, dtype=dtype)

    def call(*tensors: Tensor, **options: Any) -> Tensor:
        return fk.trunk_fbp(*tensors, 5, lengths=lengths, **options)

    (options,) = recorded(lambda: call(*inputs, backend="triton"))
    assert options["SPLIT"], "or this tests nothing"
    first = call(*inputs, backend="triton")
    assert torch.equal(first, call(*inputs, backend="triton"))
    call.__name__ = "trunk_fbp"
    assert_parity(call, draws(*shapes, dtype=dtype), {}, "triton", draws=4)


def test_counters_are_zero_again_after_a_launch() -> None:
    given: list[Tensor] = []

    def run(kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel[grid](*arguments, **options)
        given.extend(t for t in arguments if isinstance(t, Tensor) and t.dtype == torch.int32)

    with launch.instead(run):
        fk.trunk_fbp(*leaves((20, 6, 4), (20, 6, 4), (6, 4, 12), (6, 4, 12)), 3, backend="triton")
    (counters,) = given
    assert counters.numel() >= 2, "two tiles of rows"
    assert not counters.any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_overflows_stays_in_its_own_output(dtype: torch.dtype) -> None:
    a, v, p, q = leaves((5, 8), (5, 8), (8, 42), (8, 42), dtype=dtype)
    p[0, 4] = p[2, 21] = q[2, 22] = float("inf")
    q[1, 20] = float("-inf")
    v[2, 3] = float("nan")
    z = fk.fbp(a, v, p, q, 3, backend="triton").double()
    truth = fk.fbp(*(t.double() for t in (a, v, p, q)), 3, backend="reference")
    assert truth.isinf().any()
    assert truth.isnan().any()
    finite = truth.isfinite()
    assert finite.sum() > 40
    assert torch.equal(z.isfinite(), finite)
    assert torch.equal(z[~finite], truth[~finite]) or torch.equal(
        z[~finite].nan_to_num(0.5), truth[~finite].nan_to_num(0.5)
    )
    torch.testing.assert_close(z[finite], truth[finite], rtol=0.02, atol=0.02)


def test_elements_past_two_to_the_31() -> None:
    # Rows so far apart that their offsets need 64 bits; memory that is not touched costs nothing.
    step = 2**29 + 8
    far = torch.empty(4 * step + 16, dtype=torch.bfloat16)
    a = far.as_strided((5, 16), (step, 1))
    a.copy_(torch.randn(5, 16))
    v, p, q = leaves((5, 8), (16, 12), (8, 12), dtype=torch.bfloat16)
    near = a.contiguous()
    (options,) = recorded(lambda: fk.fbp(a, v, p, q, 3, backend="triton"))
    assert options["OFFSET"] is tl.int64
    got, want = ([t.detach().requires_grad_() for t in (x, v, p, q)] for x in (a, near))
    results = []
    for tensors in (got, want):
        z = fk.fbp(*tensors, 3, adaptive=True, backend="triton")
        results.append([z, *torch.autograd.grad(z.square().sum(), tensors)])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("wanted", [(4,), (5,), (2, 5), (0,), (0, 4)])
def test_any_choice_of_gradients(wanted: tuple[int, ...]) -> None:
    inputs = leaves((6, 5), (6, 7), (5, 12), (7, 12), (1, 12), (1, 12))

    def gradients(backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        tensors = [t.to(dtype).requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        z = fk.fbp(
            *tensors[:4], 4, p_bias=tensors[4][0], q_bias=tensors[5][0], adaptive=True,
            backend=backend,
        )  # fmt: skip
        return torch.autograd.grad(z.square().sum(), [tensors[i] for i in wanted])

    truth = gradients("reference", torch.float64)
    for got, want in zip(gradients("triton", torch.float32), truth, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


class Allocations(TorchDispatchMode):
    """Counts the numbers for which memory is asked."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "empty" in func.overloadpacket.__name__ and not made.is_meta:
            self.numbers += made.numel()
        return made


@pytest.mark.slow
def test_a_forward_allocates_its_result_and_the_splits_sums() -> None:
    inputs = leaves((600, 8), (600, 8), (600, 4, 8), (600, 4, 8), (8, 20), (8, 20), (4, 8, 20), (4, 8, 20))  # fmt: skip
    forward = backends.kernel("am_fbp", "triton").forward
    options = None, None, 5, 5, True, 0.0, False
    with Allocations() as made:
        forward(*inputs, *options)
    assert made.numbers == 600 * 8, "many tiles: nothing is split"
    with Allocations() as made:
        forward(*(t[:5] if t.shape[0] == 600 else t for t in inputs), *options)
    blocks = tuning.lookup(tuning.Key("fbp_forward", "float32", "small"), "interpreter").blocks
    most = launch.multiprocessors(inputs[0].device) * blocks["BLOCK_M"] * blocks["BLOCK_N"]
    assert 5 * 8 < made.numbers <= 5 * 8 + most, "a tile for each multiprocessor at most"


def test_no_rows() -> None:
    inputs = [t.requires_grad_() for t in leaves((0, 3, 4), (0, 3, 5), (3, 4, 6), (3, 5, 6))]
    z = fk.trunk_fbp(*inputs, 2, backend="triton")
    assert z.shape == (0, 3)
    gradients = torch.autograd.grad(z.sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)
