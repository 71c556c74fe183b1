"""The bilinear backward of small batches by wgmma: every option against float64, what it serves, bits in any order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk

from ..checks import assert_parity
from .shim import Shim
from .test_hopper import DROPOUT, HALF, Case, fbp, trunks
from .test_hopper_backward import (
    NEEDED,
    assert_gradients,
    assert_rows_unseen,
    assert_same_bits,
    assert_two_parts,
    gradients,
)
from .test_hopper_split import few

THREADS = 544  # of its blocks, and of no other kernel's

LENGTHS = torch.arange(128) % 4
CASES = {
    "one step": few(fbp(64, 64, 16, 4)),
    "one row, narrow": few(fbp(8, 16, 2, 4), 1),
    "more steps than stages": few(fbp(72, 136, 150, 4)),
    "64 rows": few(fbp(200, 136, 24, 5, adaptive=True), 64),
    "128 rows": few(fbp(72, 64, 24, 5, biases=2, adaptive=True, **DROPOUT), 128),
    "65 rows": few(trunks(3, 72, 64, 72, 4, lengths=LENGTHS), 65),
    "K = 1": few(fbp(72, 72, 72, 1)),
    "K = 2": few(fbp(64, 72, 44, 2), 33),
    "K = 3": few(fbp(64, 72, 24, 3)),
    "K = 136": few(fbp(64, 72, 3, 136)),
    "biases": few(fbp(72, 64, 24, 5, biases=2)),
    "adaptive": few(fbp(264, 72, 40, 4, adaptive=True)),
    "dropout": few(fbp(72, 64, 24, 5, **DROPOUT), 40),
    "everything is dropped": few(fbp(72, 64, 8, 5, dropout=1.0, training=True)),
    "all options": few(fbp(72, 136, 24, 5, biases=2, adaptive=True, **DROPOUT)),
    "trunks": few(trunks(3, 72, 64, 40, 4)),
    "trunks, lengths": few(trunks(3, 72, 64, 24, 5, lengths=LENGTHS)),
    "trunks, all lengths 0": few(
        trunks(2, 72, 64, 24, 5, lengths=torch.zeros(128, dtype=torch.int64))
    ),
    "trunks, lengths, dropout, K = 136": few(
        trunks(3, 64, 64, 1, 136, lengths=LENGTHS, **DROPOUT), 50
    ),
}  # fmt: skip


@pytest.fixture
def hopper(shim: Shim) -> Shim:
    shim.fixed_capability = 9
    shim.multiprocessors(3)
    return shim


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_are_right(hopper: Shim, dtype: torch.dtype, case: Case) -> None:
    """With projections kept, and computed again."""
    assert assert_gradients(hopper, dtype, case) == THREADS


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bits_do_not_follow_the_order_nor_what_is_kept(hopper: Shim, case: Case) -> None:
    """Whatever lands when: copies and products early, late, and drawn; and projections are the same in both ways."""
    assert_same_bits(hopper, case, threads=THREADS)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_rows_that_do_not_count_are_not_seen(hopper: Shim, keep: bool) -> None:
    assert_rows_unseen(hopper, CASES["trunks, lengths"], keep)


def test_am_fbp_is_its_two_parts_bit_by_bit(hopper: Shim) -> None:
    """In one launch where projections are kept, and one more where not."""
    one = few(fbp(72, 64, 40, 4, adaptive=True), 40)
    many = few(trunks(3, 64, 72, 24, 5, lengths=LENGTHS), 40)
    for keep, launches in ((True, 1), (False, 2)):
        assert assert_two_parts(hopper, one, many, keep) == launches


def test_kept_projections_stay_as_they_are(hopper: Shim) -> None:
    """Though gradients take their place where a block has them."""
    inputs = CASES["trunks"].draw(torch.bfloat16)
    _, u, w = hopper.trunk_fbp_forward(*inputs, None, None, None, None, 4, 0.0, True)
    before = u.clone(), w.clone()
    dz = torch.ones(30, 40).bfloat16()
    # Without copies of the tensors.
    torch.ops.fbp_shim.trunk_fbp_backward(dz, *inputs, None, None, None, None, u, w, 4, 0.0, 0b1111)
    assert torch.equal(u, before[0])
    assert torch.equal(w, before[1])


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_only_what_is_needed_is_computed(hopper: Shim, needed: tuple[int, ...]) -> None:
    """Of 3 tiles of 64 lines, those of sides of which something is needed."""
    case = few(fbp(72, 64, 24, 5, biases=2, adaptive=True))
    inputs = case.draw(torch.bfloat16)
    everything = gradients(case, inputs, keep=False)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    z = fk.fbp(*leaves[:4], 5, p_bias=leaves[4], q_bias=leaves[5], adaptive=True,
               backend="native", keep_projections=True)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    dz = torch.randn(z.shape, generator=generator, dtype=torch.float64).bfloat16()
    tiles = {0: (2, 0), 2: (2, 0), 4: (1, 0), 1: (0, 1), 3: (0, 1), 5: (0, 1)}
    expected = sum(max(tiles[i][side] for i in needed) for side in (0, 1))
    assert hopper.blocks(lambda: z.backward(dz)) == expected
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if leaf.grad is not None:
            assert torch.equal(leaf.grad, everything[f"gradient {i}"])


def test_gradients_of_results_may_have_any_strides(hopper: Shim) -> None:
    a, v, p, q = few(fbp(72, 136, 24, 5)).draw(torch.bfloat16)
    g = torch.randn(30, 1, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for dz in (g.expand(30, 24), g.repeat(1, 24), g.repeat(1, 24).t().contiguous().t()):
        leaves = [t.detach().requires_grad_() for t in (a, v, p, q)]
        fk.fbp(*leaves, 5, backend="native").backward(dz)
        found.append([t.grad for t in leaves])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert x is not None
            assert y is not None
            assert torch.equal(x, y)


def _padded(x: Tensor, by: int) -> Tensor:
    """The same numbers, rows further apart."""
    wide = torch.full((x.shape[0], x.shape[1] + by), math.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def _plain(
    case: Case, dtype: torch.dtype = torch.bfloat16, **change: Callable[[Tensor], Tensor]
) -> Callable[[], list[Tensor]]:
    """Inputs of a case, with something about them that is told."""

    def make() -> list[Tensor]:
        inputs = case.draw(dtype)
        return [change.get(name, lambda t: t)(t) for name, t in zip("avpq", inputs, strict=True)]

    return make


PLAIN = few(fbp(64, 64, 16, 4))
NARROW: dict[str, Callable[[Tensor], Tensor]] = {
    "a": lambda x: _padded(x[:, :60], 4), "p": lambda x: x[:60],
}  # fmt: skip
SERVED = {
    "contiguous": (_plain(PLAIN), {}, True),
    "rows apart by a multiple of 16 bytes": (
        _plain(PLAIN, a=lambda x: _padded(x, 8), q=lambda x: _padded(x, 16)), {}, True,
    ),
    "rows apart by something else": (_plain(PLAIN, v=lambda x: _padded(x, 4)), {}, False),
    "columns that are no multiple of 8": (
        _plain(PLAIN, p=lambda x: _padded(x[:, :60], 4), q=lambda x: _padded(x[:, :60], 4)), {},
        False,
    ),
    "a width that is no multiple of 8": (_plain(PLAIN, **NARROW), {}, True),
    "the same, of rows that are measured": (_plain(PLAIN, **NARROW), {"adaptive": True}, False),
    "128 rows": (_plain(few(fbp(64, 64, 16, 4), 128)), {}, True),
    "129 rows": (_plain(few(fbp(64, 64, 16, 4), 129)), {}, False),
    "float32": (_plain(PLAIN, torch.float32), {}, False),
}  # fmt: skip


@pytest.mark.parametrize(("make", "more", "served"), SERVED.values(), ids=SERVED.keys())
def test_what_it_serves(
    hopper: Shim, make: Callable[[], list[Tensor]], more: dict[str, Any], served: bool
) -> None:
    """The rest is served by other kernels, and as right."""
    threads = hopper.threads(
        lambda: assert_parity(fk.fbp, lambda _: make(), {"factor": 4, **more}, "native")
    )
    assert (threads == THREADS) == served


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_it_serves_what_the_forward_can_project_again(hopper: Shim, keep: bool) -> None:
    """Which has no room for so many projections; kept ones it takes."""
    case = few(trunks(40, 8, 8, 8, 4))
    inputs = case.draw(torch.bfloat16)
    assert (hopper.threads(lambda: gradients(case, inputs, keep)) == THREADS) == keep


@pytest.mark.parametrize("capability", [8, 10])
def test_other_architectures_have_other_kernels(hopper: Shim, capability: int) -> None:
    hopper.fixed_capability = capability
    inputs = PLAIN.draw(torch.bfloat16)
    assert hopper.threads(lambda: gradients(PLAIN, inputs, keep=True)) != THREADS
