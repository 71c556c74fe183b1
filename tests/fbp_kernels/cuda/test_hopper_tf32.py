"""The bilinear forward by wgmma in TF32: every option against float64, what it serves, and equal bits in any order."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import correct

from .shim import Shim
from .test_hopper import BATCH, DROPOUT, LENGTHS, ORDERS, THREADS, Case, assert_right, fbp, trunks

CASES = {
    "one step": fbp(32, 32, 32, 4),
    "more steps than stages, several tiles": fbp(200, 164, 40, 4),
    "narrow": fbp(4, 8, 2, 2),
    "K = 1": fbp(36, 32, 132, 1),
    "K = 2": fbp(36, 32, 70, 2),
    "K = 3": fbp(32, 36, 44, 3),
    "K = 5": fbp(36, 68, 28, 5),
    "K = 16": fbp(36, 32, 9, 16),
    "K = 23": fbp(32, 36, 4, 23),
    "K = 40": fbp(32, 36, 9, 40),
    "biases": fbp(36, 32, 28, 5, biases=2),
    "biases, in chunks": fbp(36, 32, 9, 40, biases=2),
    "adaptive": fbp(100, 36, 40, 4, adaptive=True),
    "adaptive, several tiles": fbp(4, 8, 140, 4, adaptive=True),
    "dropout": fbp(36, 32, 28, 5, **DROPOUT),
    "everything is dropped": fbp(36, 32, 28, 5, dropout=1.0, training=True),
    "all options": fbp(36, 68, 28, 5, biases=2, adaptive=True, **DROPOUT),
    "trunks": trunks(3, 36, 32, 40, 4),
    "trunks, lengths": trunks(3, 36, 32, 28, 5, lengths=LENGTHS),
    "trunks, all lengths 0": trunks(
        2, 36, 32, 28, 5, lengths=torch.zeros(BATCH, dtype=torch.int64)
    ),
    "trunks, lengths, dropout, K = 40": trunks(3, 32, 32, 1, 40, lengths=LENGTHS, **DROPOUT),
}


@pytest.fixture(autouse=True)
def hopper(shim: Shim) -> None:
    shim.fixed_capability = 9
    shim.tf32(True)


def rounded(tensor: Tensor) -> Tensor:
    """To the nearest number of TF32, of two the even one."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def as_multiplied(inputs: list[Tensor]) -> list[Tensor]:
    """As the reference rounds what it multiplies in TF32; biases are not."""
    return [*(rounded(t) for t in inputs[:4]), *inputs[4:]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_are_right_and_their_bits_do_not_follow_the_order(shim: Shim, case: Case) -> None:
    """Whatever lands when: copies and products early, late, and drawn."""
    shim.multiprocessors(3)
    inputs = case.draw(torch.float32)
    results: list[Tensor] = []
    for shim.fixed_order in ORDERS:
        assert shim.threads(lambda: results.append(case.run(inputs, "native"))) == THREADS
        assert torch.equal(results[-1], results[0])
    assert_right(results[0], case, inputs, as_multiplied(inputs))


@pytest.mark.parametrize("name", ["one step", "all options", "trunks"])
def test_numbers_that_tf32_has_are_multiplied_exactly(shim: Shim, name: str) -> None:
    """By the rule for float32; of few terms, since the tensor cores truncate their sums."""
    case = CASES[name]
    inputs = case.draw(torch.float32)
    inputs = as_multiplied(inputs)
    truth = case.run([t.double() for t in inputs], "reference")
    reference, got = (case.run(inputs, backend) for backend in ("reference", "native"))
    unit = correct.unit(torch.float32)
    allowed = correct.allowed(correct.error(reference, truth), correct.scale(truth), unit)
    assert correct.error(got, truth) <= allowed


@pytest.mark.parametrize("which", range(4))
def test_numbers_that_tf32_has_not_are_rounded_to_the_nearest(shim: Shim, which: int) -> None:
    """The tensor cores by themselves would make 1 of this one."""
    case = CASES["one step"]
    inputs = [torch.ones(shape) for shape in case.shapes]
    inputs[which] *= 1 + 3 * 2**-12
    assert (case.run(inputs, "native") == 4 * 32 * 32 * (1 + 2**-10)).all()


def test_blocks_share_the_trunks_of_a_tile(shim: Shim) -> None:
    """Of two tiles four blocks each, in any order; and beside another part, with one block for each tile."""
    shim.multiprocessors(8)
    one = fbp(36, 32, 12, 4, adaptive=True)
    many = trunks(5, 36, 32, 24, 5, lengths=2 * LENGTHS % 6, **DROPOUT)
    a, v, p, q = one.draw(torch.float32)
    a_trunks, v_trunks, p_trunks, q_trunks = inputs = many.draw(torch.float32)
    results: list[Tensor] = []
    for shim.fixed_order in ORDERS:
        assert shim.blocks(lambda: results.append(many.run(inputs, "native"))) == 8
        assert torch.equal(results[-1], results[0])
    assert_right(results[0], many, inputs, as_multiplied(inputs))
    torch.manual_seed(5)
    both = (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, 4, 5)
    call = functools.partial(fk.am_fbp, *both, lengths=many.arguments["lengths"], **DROPOUT)
    assert shim.blocks(lambda: results.append(call(backend="native"))) == 8 + 4
    assert torch.equal(results[-1][:, 12:], results[0])


def test_rows_that_do_not_count_are_not_seen(shim: Shim) -> None:
    case = CASES["trunks, lengths"]
    inputs = case.draw(torch.float32)
    expected = case.run(inputs, "native")
    for x in inputs[:2]:
        for h in range(3):
            x[h >= LENGTHS, h] = math.nan
    assert torch.equal(case.run(inputs, "native"), expected)


@pytest.mark.parametrize(
    ("outputs", "K"), [(28, 5), (27, 5), (28, 20)], ids=["even", "odd", "in chunks"]
)
def test_kept_projections_are_right(shim: Shim, outputs: int, K: int) -> None:
    """Those of rows that do not count are 0; rows of an odd number of columns begin anywhere."""
    H, C, D = 3, 36, 32
    a, v, p, q = trunks(H, C, D, 28, K).draw(torch.float32)
    p, q = p[..., : outputs * K], q[..., : outputs * K]
    raw = (a, v, p, q, None, None, LENGTHS, None, K, 0.0)
    z, u, w = shim.trunk_fbp_forward(*raw, True)
    assert shim.threads(lambda: shim.trunk_fbp_forward(*raw, True)) == THREADS
    assert torch.equal(z, shim.trunk_fbp_forward(*raw, False)[0])
    alive = (torch.arange(H)[:, None] < LENGTHS)[..., None]
    for kept, x, weight in ((u, a, p), (w, v, q)):
        truth = torch.einsum("bhc,hcn->hbn", x.double(), weight.double()) * alive
        rough = torch.einsum("bhc,hcn->hbn", rounded(x).double(), rounded(weight).double()) * alive
        assert correct.error(kept, rough) <= 4 * correct.unit(kept.dtype) * correct.scale(truth)
        assert (kept[(~alive).expand_as(kept)] == 0).all()


def test_am_fbp_is_its_two_parts_bit_by_bit_in_one_launch(shim: Shim) -> None:
    one, many = fbp(36, 32, 40, 4, adaptive=True), trunks(3, 32, 36, 28, 5, lengths=LENGTHS)
    a, v, p, q = one.draw(torch.float32)
    a_trunks, v_trunks, p_trunks, q_trunks = many.draw(torch.float32)
    both = (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, 4, 5)
    parts = torch.cat(
        [one.run([a, v, p, q], "native"), many.run(many.draw(torch.float32), "native")], 1
    )
    results: list[Tensor] = []
    for count in (1, 3):
        shim.multiprocessors(count)
        blocks = shim.blocks(
            lambda: results.append(
                fk.am_fbp(*both, adaptive=True, lengths=LENGTHS, backend="native")
            )
        )
        assert blocks == count
        assert torch.equal(results[-1], parts)


def _columns(first: int, last: int) -> Callable[[Tensor], Tensor]:
    """Some columns of a wider tensor, of which the others are NaN."""

    def of(x: Tensor) -> Tensor:
        wide = torch.full((x.shape[0], last), math.nan)
        wide[:, first : first + x.shape[1]] = x
        return wide[:, first : first + x.shape[1]]

    return of


SERVED: dict[str, tuple[dict[int, Callable[[Tensor], Tensor]], bool]] = {
    "contiguous": ({}, True),
    "rows apart by a multiple of 16 bytes": ({0: _columns(0, 36), 3: _columns(0, 132)}, True),
    "rows apart by something else": ({0: _columns(0, 34)}, False),
    "weights apart by something else": ({2: _columns(0, 130)}, False),
    "rows along the batch": ({0: lambda x: x.t().contiguous().t()}, False),
    "a width that is no multiple of 4": ({0: lambda x: x[:, :30], 2: lambda x: x[:30]}, True),
    "a small batch": ({0: lambda x: x[:128], 1: lambda x: x[:128]}, False),
}


@pytest.mark.parametrize(("changes", "served"), SERVED.values(), ids=SERVED.keys())
def test_what_it_serves(
    shim: Shim, changes: dict[int, Callable[[Tensor], Tensor]], served: bool
) -> None:
    """The rest is served by the tile kernels, and as right."""
    case = CASES["one step"]
    inputs = case.draw(torch.float32)
    for i, change in changes.items():
        inputs[i] = change(inputs[i])
    results: list[Tensor] = []
    threads = shim.threads(lambda: results.append(case.run(inputs, "native")))
    assert (threads == THREADS) == served
    assert_right(results[0], case, inputs, as_multiplied(inputs))


@pytest.mark.parametrize(
    ("allowed", "capability"), [(False, 9), (True, 8), (True, 10)], ids=["IEEE", "sm_80", "sm_100"]
)
def test_float32_and_other_architectures_have_other_kernels(
    shim: Shim, allowed: bool, capability: int
) -> None:
    shim.tf32(allowed)
    shim.fixed_capability = capability
    case = CASES["one step"]
    inputs, results = case.draw(torch.float32), []
    assert shim.threads(lambda: results.append(case.run(inputs, "native"))) != THREADS
    assert_right(results[0], case, inputs, as_multiplied(inputs))


def test_the_backward_goes_with_what_the_forward_keeps(shim: Shim) -> None:
    """Whichever kernels have it."""
    case: Any = CASES["trunks, lengths"]
    inputs = [t.requires_grad_() for t in case.draw(torch.float32)]
    dz = torch.randn(BATCH, 28, generator=torch.Generator().manual_seed(3))

    def gradients(inputs: list[Tensor], dz: Tensor, backend: str) -> tuple[Tensor, ...]:
        z = fk.trunk_fbp(*inputs, **case.arguments, backend=backend)
        return torch.autograd.grad(z, inputs, dz)

    truth = gradients(
        [t.detach().double().requires_grad_() for t in inputs], dz.double(), "reference"
    )
    rough = gradients(
        [rounded(t.detach()).requires_grad_() for t in inputs], rounded(dz), "reference"
    )
    for got, reference, exact in zip(gradients(inputs, dz, "native"), rough, truth, strict=True):
        unit = correct.unit(torch.float32)
        allowed = correct.allowed(correct.error(reference, exact), correct.scale(exact), unit)
        assert correct.error(got, exact) <= allowed
