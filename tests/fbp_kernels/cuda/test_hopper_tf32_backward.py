"""The bilinear backward by wgmma in TF32: every option against float64, what it serves, and equal bits in any order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fbp_kernels as fk
from tests.marks import slow

from ..checks import Errors, error, evaluate
from .shim import Shim
from .test_hopper import BATCH, DROPOUT, LENGTHS, THREADS, Case, fbp, trunks
from .test_hopper_backward import (
    LARGE,
    NEEDED,
    assert_rows_unseen,
    assert_same_bits,
    assert_two_parts,
    gradients,
)
from .test_hopper_tf32 import rounded

CASES = {
    "one step": fbp(32, 32, 8, 4),
    "more steps than stages, several tiles": fbp(264, 136, 70, 4),
    "narrow": fbp(4, 8, 2, 2),
    **{f"K = {K}": fbp(36, 32, O, K) for K, O in enumerate((36, 18, 12, 9, 8, 6, 4, 5, 4), 1)},
    "K = 136": fbp(32, 36, 3, 136),
    "biases": fbp(36, 32, 28, 5, biases=2),
    "adaptive": fbp(200, 36, 40, 4, adaptive=True),
    "dropout": fbp(36, 32, 28, 5, **DROPOUT),
    "all options": fbp(36, 132, 28, 5, biases=2, adaptive=True, **DROPOUT),
    "trunks": trunks(3, 36, 32, 40, 4),
    "trunks, lengths": trunks(3, 36, 32, 28, 5, lengths=LENGTHS),
    "trunks, all lengths 0": trunks(
        2, 36, 32, 28, 5, lengths=torch.zeros(BATCH, dtype=torch.int64)
    ),
    "trunks, lengths, dropout, K = 136": trunks(3, 32, 32, 1, 136, lengths=LENGTHS, **DROPOUT),
}


@pytest.fixture(autouse=True)
def hopper(shim: Shim) -> None:
    shim.fixed_capability = 9
    shim.multiprocessors(3)
    shim.tf32(True)


class _RoundedProducts(TorchDispatchMode):
    """Within it products of matrices of float32, those of derivatives too, are of numbers that TF32 has."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(rounded(t) if t.dtype == torch.float32 else t for t in args)
        return func(*args, **(kwargs or {}))


def _reference(case: Case, inputs: list[Tensor]) -> dict[str, Tensor]:
    """The results and gradients, by name."""
    operator = fk.trunk_fbp if inputs[0].dim() == 3 else fk.fbp

    def call(*t: Tensor) -> Tensor:
        biases = dict(zip(("p_bias", "q_bias"), t[4:], strict=False))
        z: Tensor = operator(*t[:4], **biases, **case.arguments, backend="reference")
        return z

    torch.manual_seed(5)  # of dropout
    with _RoundedProducts():
        return evaluate(call, inputs, 5, torch.float32)


def _assert_right(case: Case, inputs: list[Tensor], got: dict[str, Tensor]) -> None:
    """By the rule."""
    truth, rough = _reference(case, [t.double() for t in inputs]), _reference(case, inputs)
    for name, value in got.items():
        errors = Errors()
        errors.add(value, truth[name], error(rough[name], truth[name]))
        errors.assert_within_rule(name)


@pytest.mark.parametrize("name", slow(CASES, *LARGE))
def test_gradients_are_right_and_their_bits_follow_neither_order_nor_what_is_kept(
    shim: Shim, name: str
) -> None:
    case = CASES[name]
    found = assert_same_bits(shim, case, torch.float32)
    _assert_right(case, case.draw(torch.float32), found)


@pytest.mark.parametrize("name", ["one step", "K = 7", "trunks, lengths"])
def test_whole_numbers_are_multiplied_exactly(shim: Shim, name: str) -> None:
    """As long as TF32 has the digits of all operands, and float32 those of all sums."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randint(-1, 2, s, generator=generator).float() for s in case.shapes]
    dz = torch.randint(-2, 3, (BATCH, case.shapes[2][-1] // case.arguments["factor"]),
                       generator=generator).float()  # fmt: skip

    def found(wide: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        leaves = [t.to(wide).requires_grad_() for t in inputs]
        operator = fk.trunk_fbp if leaves[0].dim() == 3 else fk.fbp
        z = operator(*leaves, **case.arguments, backend=backend)
        return torch.autograd.grad(z, leaves, dz.to(wide))

    for got, truth in zip(
        found(torch.float32, "native"), found(torch.float64, "reference"), strict=True
    ):
        assert torch.equal(got.double(), truth)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_rows_that_do_not_count_are_not_seen(shim: Shim, keep: bool) -> None:
    assert_rows_unseen(shim, CASES["trunks, lengths"], keep, torch.float32)


def test_am_fbp_is_its_two_parts_bit_by_bit(shim: Shim) -> None:
    """In two launches where projections are kept, and one more where not."""
    one, many = fbp(36, 32, 40, 4, adaptive=True), trunks(3, 32, 36, 28, 5, lengths=LENGTHS)
    for count, keep, launches in ((1, True, 2), (3, False, 3)):
        shim.multiprocessors(count)
        assert assert_two_parts(shim, one, many, keep, torch.float32) == launches


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_only_what_is_needed_is_computed(shim: Shim, needed: tuple[int, ...]) -> None:
    case = fbp(36, 32, 28, 5, biases=2, adaptive=True)
    inputs = case.draw(torch.float32)
    everything = gradients(case, inputs, keep=False)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    z = fk.fbp(*leaves[:4], 5, p_bias=leaves[4], q_bias=leaves[5], adaptive=True,
               backend="native", keep_projections=False)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    z.backward(torch.randn(z.shape, generator=generator, dtype=torch.float64).float())
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if leaf.grad is not None:
            assert torch.equal(leaf.grad, everything[f"gradient {i}"])


def _columns(last: int) -> Callable[[Tensor], Tensor]:
    """The same numbers in rows of `last` numbers, of which the others are NaN."""

    def of(x: Tensor) -> Tensor:
        wide = torch.full((x.shape[0], last), math.nan)
        wide[:, : x.shape[1]] = x
        return wide[:, : x.shape[1]]

    return of


def _some(of: Callable[[Tensor], Tensor], last: int) -> Callable[[Tensor], Tensor]:
    return lambda x: _columns(last)(of(x))


SERVED: dict[str, tuple[dict[int, Callable[[Tensor], Tensor]], bool]] = {
    "contiguous": ({}, True),
    "rows apart by a multiple of 16 bytes": ({0: _columns(36), 3: _columns(44)}, True),
    "rows apart by something else": ({1: _columns(34)}, False),
    "rows along the batch": ({0: lambda x: x.t().contiguous().t()}, False),
    "an odd number of columns": (
        {i: _some(lambda x: x[:, :25], 28) for i in (2, 3)}, True,
    ),
    "a width that is no multiple of 4": ({0: _some(lambda x: x[:, :29], 32), 2: lambda x: x[:29]}, True),
    "a small batch": ({0: lambda x: x[:128], 1: lambda x: x[:128]}, False),
    "a batch of an odd number": ({0: lambda x: x[:129], 1: lambda x: x[:129]}, True),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "served"), SERVED.values(), ids=SERVED.keys())
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_what_it_serves(
    shim: Shim, changes: dict[int, Callable[[Tensor], Tensor]], served: bool, keep: bool
) -> None:
    """The rest is served by the tile kernels, and as right."""
    case = fbp(32, 32, 32, 1)
    inputs = case.draw(torch.float32)
    for i, change in changes.items():
        inputs[i] = change(inputs[i])
    found: list[dict[str, Tensor]] = []
    threads = shim.threads(lambda: found.append(gradients(case, inputs, keep)))
    assert (threads == THREADS) == served
    _assert_right(case, inputs, found[0])


@pytest.mark.parametrize(
    ("allowed", "capability"), [(False, 9), (True, 8), (True, 10)], ids=["IEEE", "sm_80", "sm_100"]
)
def test_float32_and_other_architectures_have_other_kernels(
    shim: Shim, allowed: bool, capability: int
) -> None:
    shim.tf32(allowed)
    shim.fixed_capability = capability
    case = CASES["one step"]
    found: list[dict[str, Tensor]] = []
    inputs = case.draw(torch.float32)
    assert shim.threads(lambda: found.append(gradients(case, inputs, keep=True))) != THREADS
    _assert_right(case, inputs, found[0])
