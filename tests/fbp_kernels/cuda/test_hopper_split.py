"""The bilinear forward of small batches by wgmma: every option against float64, what it serves, bits in any order."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import correct

from .shim import Shim
from .test_hopper import DROPOUT, HALF, ORDERS, Case, assert_right, fbp, trunks

THREADS = 160  # of its blocks, and of no other kernel's
MULTIPROCESSORS = 16  # two blocks each


def few(case: Case, batch: int = 30) -> Case:
    """The same with so many rows."""
    shapes = tuple((batch, *shape[1:]) if i < 2 else shape for i, shape in enumerate(case.shapes))
    arguments = dict(case.arguments)
    if "lengths" in arguments:
        arguments["lengths"] = arguments["lengths"][:batch]
    return replace(case, shapes=shapes, arguments=arguments)


LENGTHS = torch.arange(128) % 4
CASES = {
    "one step of each": few(fbp(64, 64, 8, 4)),
    "one row, narrow": few(fbp(8, 16, 2, 4), 1),
    "shares begin and end anywhere": few(fbp(200, 136, 24, 4, adaptive=True)),
    "64 rows": few(fbp(200, 136, 8, 5, adaptive=True), 64),
    "two tiles of rows, the second of one": few(fbp(72, 136, 8, 3, **DROPOUT), 65),
    "K = 1": few(fbp(72, 64, 40, 1)),
    "K = 32": few(fbp(72, 64, 3, 32)),
    "K = 40": few(fbp(136, 72, 3, 40, adaptive=True)),
    "K = 136": few(fbp(64, 72, 1, 136), 33),
    "biases": few(fbp(72, 64, 16, 5, biases=2)),
    "all options": few(fbp(72, 136, 8, 5, biases=2, adaptive=True, **DROPOUT)),
    "everything is dropped": few(fbp(72, 64, 8, 5, dropout=1.0, training=True)),
    "trunks": few(trunks(3, 72, 136, 16, 4)),
    "trunks, lengths, dropout": few(trunks(5, 72, 64, 8, 5, lengths=LENGTHS, **DROPOUT), 40),
    "trunks, all lengths 0": few(
        trunks(2, 72, 64, 8, 5, lengths=torch.zeros(128, dtype=torch.int64))
    ),
    "trunks, K = 40": few(trunks(3, 72, 64, 1, 40, lengths=LENGTHS)),
}  # fmt: skip


@pytest.fixture
def hopper(shim: Shim) -> Shim:
    shim.fixed_capability = 9
    shim.multiprocessors(MULTIPROCESSORS)
    return shim


def assert_right_in_any_order(hopper: Shim, case: Case, dtype: torch.dtype) -> None:
    """And the same bits, whatever lands when: copies and products early, late, and drawn."""
    inputs, results = case.draw(dtype), []
    for hopper.fixed_order in ORDERS:
        threads = hopper.threads(lambda: results.append(case.run(inputs, "native")))
        assert threads == THREADS
    assert_right(results[0], case, inputs)
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_are_right_and_their_bits_do_not_follow_the_order(hopper: Shim, case: Case) -> None:
    for dtype in case.dtypes:
        assert_right_in_any_order(hopper, case, dtype)


@pytest.mark.parametrize("batch", [32, 64])
def test_more_steps_than_stages(hopper: Shim, batch: int) -> None:
    """One tile of two shares, of 10 steps each."""
    hopper.multiprocessors(1)
    assert_right_in_any_order(hopper, few(fbp(1096, 72, 8, 4), batch), torch.bfloat16)


def test_rows_count_once_in_norms(hopper: Shim) -> None:
    """Though three chunks of an output have them, and shares a part of one of these and the whole of another."""
    hopper.multiprocessors(1)
    case = few(fbp(64, 192, 1, 72, adaptive=True))
    assert_right_in_any_order(hopper, case, torch.bfloat16)


@pytest.mark.parametrize("shares", [1, 2, 4, 8])
def test_any_number_of_shares(hopper: Shim, shares: int) -> None:
    """Four tiles, as many shares of each as fill the device."""
    case = few(fbp(200, 264, 24, 5, adaptive=True))
    inputs = case.draw(torch.bfloat16)
    hopper.multiprocessors(4 * shares // 2)
    results: list[Tensor] = []
    assert hopper.blocks(lambda: results.append(case.run(inputs, "native"))) == 4 * shares
    assert hopper.threads(lambda: case.run(inputs, "native")) == THREADS
    assert_right(results[0], case, inputs)


def test_rows_that_do_not_count_are_not_seen(hopper: Shim) -> None:
    case = CASES["trunks, K = 40"]
    inputs = case.draw(torch.bfloat16)
    expected = case.run(inputs, "native")
    lengths = case.arguments["lengths"]
    for x in inputs[:2]:
        for h in range(3):
            x[h >= lengths, h] = math.nan
    assert torch.equal(case.run(inputs, "native"), expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_kept_projections_are_right(hopper: Shim, dtype: torch.dtype) -> None:
    """Those of rows that do not count are 0, also of trunks that no row has."""
    H, C, D, K = 5, 72, 136, 5
    case = few(trunks(H, C, D, 8, K), 40)
    a, v, p, q = case.draw(dtype)
    lengths = LENGTHS[:40]
    raw = (a, v, p, q, None, None, lengths, None, K, 0.0)
    z, u, w = hopper.trunk_fbp_forward(*raw, True)
    assert hopper.threads(lambda: hopper.trunk_fbp_forward(*raw, True)) == THREADS
    assert torch.equal(z, hopper.trunk_fbp_forward(*raw, False)[0])
    alive = (torch.arange(H)[:, None] < lengths)[..., None]
    for kept, x, weight in ((u, a, p), (w, v, q)):
        truth = torch.einsum("bhc,hcn->hbn", x.double(), weight.double()) * alive
        assert (kept - truth).abs().max() <= correct.unit(dtype) * truth.abs().max()
        assert (kept[(~alive).expand_as(kept)] == 0).all()


def test_am_fbp_is_its_two_parts_bit_by_bit_in_one_launch(hopper: Shim) -> None:
    """Though the part of fewer shares has several tiles in a cluster, and not all blocks have one."""
    one, many = few(fbp(200, 64, 40, 4, adaptive=True)), few(trunks(3, 264, 72, 8, 5))
    inputs = one.draw(torch.bfloat16), many.draw(torch.bfloat16)
    (a, v, p, q), (a_trunks, v_trunks, p_trunks, q_trunks) = inputs
    both = (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, 4, 5)
    hopper.multiprocessors(10)  # so 5 tiles of 4 shares, and 2 of 8
    parts = torch.cat([one.run(inputs[0], "native"), many.run(inputs[1], "native")], 1)
    results: list[Tensor] = []
    call: Any = lambda: results.append(fk.am_fbp(*both, adaptive=True, backend="native"))  # noqa: E731
    assert hopper.blocks(call) == 2 * 8 + 3 * 8
    assert hopper.launches(call) == 1
    assert hopper.threads(call) == THREADS
    assert torch.equal(results[0], parts)


def test_what_it_serves(hopper: Shim) -> None:
    """Large batches have a kernel of their own; the rest is served by the tile kernels, and as right."""
    narrow = few(trunks(40, 8, 8, 8, 4))
    for case, dtype, served in (
        (few(fbp(64, 64, 8, 4), 128), torch.bfloat16, True),
        (few(fbp(64, 64, 8, 4), 129), torch.bfloat16, False),
        (few(fbp(64, 64, 8, 4)), torch.float32, False),
        (few(fbp(63, 64, 8, 4)), torch.bfloat16, False),
        (few(fbp(64, 64, 5, 5)), torch.bfloat16, False),
        (narrow, torch.bfloat16, False),  # 80 projections of a step each
        (few(trunks(36, 8, 8, 8, 4)), torch.bfloat16, True),
    ):
        inputs, results = case.draw(dtype), []
        threads = hopper.threads(lambda: results.append(case.run(inputs, "native")))  # noqa: B023
        assert (threads == THREADS) == served, case
        assert_right(results[0], case, inputs)
    hopper.fixed_capability = 10
    case = CASES["one step of each"]
    assert hopper.threads(lambda: case.run(case.draw(torch.bfloat16), "native")) != THREADS
