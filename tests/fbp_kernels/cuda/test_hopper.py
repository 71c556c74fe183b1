"""The bilinear forward by wgmma: every option against float64, what it serves, and equal bits in any order."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import correct

from .shim import Shim

THREADS = 384  # of its blocks, and of no other kernel's
BATCH = 130  # two tiles of rows, the second of two
HALF = (torch.bfloat16, torch.float16)
ORDERS = (("forward", 0), ("reverse", 0), *(("shuffled", seed) for seed in (1, 2, 3)))


@dataclass(frozen=True)
class Case:
    """A call, whose weights are scaled by their widths.

    Attributes:
        shapes: of a, v, p, q, and of biases.
        arguments: everything else.
        dtypes: those that the kernel serves.
    """

    shapes: tuple[tuple[int, ...], ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = HALF

    def draw(self, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = [torch.randn(shape, generator=generator) for shape in self.shapes]
        for i in (2, 3):
            inputs[i] *= inputs[i].shape[-2] ** -0.5
        return [t.to(dtype) for t in inputs]

    def run(self, inputs: list[Tensor], backend: str, **more: Any) -> Tensor:
        operator = fk.trunk_fbp if inputs[0].dim() == 3 else fk.fbp
        biases = dict(zip(("p_bias", "q_bias"), inputs[4:], strict=False))
        torch.manual_seed(5)  # of dropout
        with torch.no_grad():
            z: Tensor = operator(*inputs[:4], **biases, **self.arguments, **more, backend=backend)
        return z


def fbp(
    C: int, D: int, O: int, K: int, *, biases: int = 0, dtypes: Any = HALF, **more: Any
) -> Case:
    N = O * K
    shapes = ((BATCH, C), (BATCH, D), (C, N), (D, N), *[(N,)] * biases)
    return Case(shapes, {"factor": K, **more}, dtypes)


def trunks(H: int, C: int, D: int, O: int, K: int, **more: Any) -> Case:
    N = O * K
    shapes = ((BATCH, H, C), (BATCH, H, D), (H, C, N), (H, D, N))
    return Case(shapes, {"factor": K, **more})


LENGTHS = torch.arange(BATCH) % 4
DROPOUT = {"dropout": 0.3, "training": True}
BF16 = (torch.bfloat16,)

CASES = {
    "one step": fbp(64, 64, 64, 4),
    "more steps than stages, several tiles": fbp(200, 136, 68, 4),
    "narrow": fbp(8, 16, 2, 4),
    "K = 1": fbp(72, 72, 72, 1),
    "K = 2": fbp(72, 64, 40, 2),
    "K = 3": fbp(64, 72, 88, 3),
    "K = 5": fbp(72, 136, 104, 5),
    "K = 64": fbp(72, 64, 5, 64),
    "K = 70": fbp(64, 72, 8, 70),
    "K = 136": fbp(64, 72, 3, 136),
    "biases": fbp(72, 64, 24, 5, biases=2, dtypes=BF16),
    "adaptive": fbp(200, 72, 40, 4, adaptive=True),
    "dropout": fbp(72, 64, 24, 5, **DROPOUT),
    "everything is dropped": fbp(72, 64, 24, 5, dropout=1.0, training=True),
    "all options": fbp(72, 136, 24, 5, biases=2, adaptive=True, **DROPOUT, dtypes=BF16),
    "trunks": trunks(3, 72, 64, 40, 4),
    "trunks, lengths": trunks(3, 72, 64, 24, 5, lengths=LENGTHS),
    "trunks, all lengths 0": trunks(
        2, 72, 64, 24, 5, lengths=torch.zeros(BATCH, dtype=torch.int64)
    ),
    "trunks, lengths, dropout, K = 136": trunks(3, 64, 64, 1, 136, lengths=LENGTHS, **DROPOUT),
}


def assert_right(
    got: Tensor, case: Case, inputs: list[Tensor], rough: list[Tensor] | None = None
) -> None:
    """By the rule; `rough`: the inputs as the reference rounds them, where that is not how they come."""
    truth = case.run([t.double() for t in inputs], "reference")
    reference = case.run(rough or inputs, "reference")
    assert got.isfinite().all()
    error = correct.error(got, truth)
    allowed = correct.allowed(
        correct.error(reference, truth), correct.scale(truth), correct.unit(got.dtype)
    )
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_results_are_right_and_their_bits_do_not_follow_the_order(shim: Shim, case: Case) -> None:
    """Whatever lands when: copies and products early, late, and drawn."""
    shim.fixed_capability = 9
    shim.multiprocessors(3)
    for dtype in case.dtypes:
        inputs = case.draw(dtype)
        results = []
        for shim.fixed_order in ORDERS:
            threads = shim.threads(lambda: results.append(case.run(inputs, "native")))  # noqa: B023
            assert threads == THREADS
        assert_right(results[0], case, inputs)
        for other in results[1:]:
            assert torch.equal(results[0], other)


def test_blocks_share_the_trunks_of_a_tile(shim: Shim) -> None:
    """Of two tiles four blocks each, in any order; and beside another part, with one block for each tile."""
    shim.fixed_capability = 9
    shim.multiprocessors(8)
    one, many = fbp(72, 64, 8, 4), trunks(5, 72, 64, 24, 5, lengths=2 * LENGTHS % 6, **DROPOUT)
    a, v, p, q = one.draw(torch.bfloat16)
    a_trunks, v_trunks, p_trunks, q_trunks = inputs = many.draw(torch.bfloat16)
    results: list[Tensor] = []
    for shim.fixed_order in ORDERS:
        assert shim.blocks(lambda: results.append(many.run(inputs, "native"))) == 8
        assert torch.equal(results[-1], results[0])
    assert_right(results[0], many, inputs)
    torch.manual_seed(5)
    both = (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, 4, 5)
    call = functools.partial(
        fk.am_fbp, *both, adaptive=False, lengths=many.arguments["lengths"], **DROPOUT
    )
    assert shim.blocks(lambda: results.append(call(backend="native"))) == 8 + 4
    assert torch.equal(results[-1][:, 8:], results[0])


def test_rows_that_do_not_count_are_not_seen(shim: Shim) -> None:
    shim.fixed_capability = 9
    case = CASES["trunks, lengths"]
    inputs = case.draw(torch.bfloat16)
    expected = case.run(inputs, "native")
    for x in inputs[:2]:
        for h in range(3):
            x[h >= LENGTHS, h] = math.nan
    assert torch.equal(case.run(inputs, "native"), expected)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("outputs", [24, 21], ids=["in pairs", "one by one"])
def test_kept_projections_are_right(shim: Shim, dtype: torch.dtype, outputs: int) -> None:
    """Those of rows that do not count are 0; an odd number of columns is written number by number."""
    shim.fixed_capability = 9
    H, C, D, K = 3, 72, 64, 8 if outputs == 21 else 5
    case = trunks(H, C, D, outputs, K)
    a, v, p, q = case.draw(dtype)
    raw = (a, v, p, q, None, None, LENGTHS, None, K, 0.0)
    z, u, w = shim.trunk_fbp_forward(*raw, True)
    assert shim.threads(lambda: shim.trunk_fbp_forward(*raw, True)) == THREADS
    assert torch.equal(z, shim.trunk_fbp_forward(*raw, False)[0])
    alive = (torch.arange(H)[:, None] < LENGTHS)[..., None]
    for kept, x, weight in ((u, a, p), (w, v, q)):
        truth = torch.einsum("bhc,hcn->hbn", x.double(), weight.double()) * alive
        near = correct.unit(dtype) * truth.abs().max()
        assert (kept - truth).abs().max() <= near
        assert (kept[(~alive).expand_as(kept)] == 0).all()


def test_am_fbp_is_its_two_parts_bit_by_bit_in_one_launch(shim: Shim) -> None:
    shim.fixed_capability = 9
    one, many = fbp(72, 64, 40, 4, adaptive=True), trunks(3, 64, 72, 24, 5, lengths=LENGTHS)
    a, v, p, q = one.draw(torch.bfloat16)
    a_trunks, v_trunks, p_trunks, q_trunks = many.draw(torch.bfloat16)
    both = (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, 4, 5)
    results: list[Tensor] = []
    parts = torch.cat(
        [one.run([a, v, p, q], "native"), many.run(many.draw(torch.bfloat16), "native")], 1
    )
    for count in (1, 3):
        shim.multiprocessors(count)
        blocks = shim.blocks(
            lambda: results.append(
                fk.am_fbp(*both, adaptive=True, lengths=LENGTHS, backend="native")
            )
        )
        assert blocks == count
        assert torch.equal(results[-1], parts)


def _plain(**changes: Any) -> Callable[[], list[Tensor]]:
    """Inputs of the case "one step", with something about them that is told."""

    def make() -> list[Tensor]:
        inputs = CASES["one step"].draw(changes.get("dtype", torch.bfloat16))
        batch = changes.get("batch", BATCH)
        inputs[0], inputs[1] = inputs[0][:batch], inputs[1][:batch]
        for i, change in changes.get("inputs", {}).items():
            inputs[i] = change(inputs[i])
        return inputs

    return make


def _padded(x: Tensor, by: int) -> Tensor:
    """The same numbers, rows further apart."""
    wide = torch.full((x.shape[0], x.shape[1] + by), math.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


SERVED = {
    "contiguous": (_plain(), True),
    "rows apart by a multiple of 16 bytes": (
        _plain(inputs={0: lambda x: _padded(x, 8), 3: lambda x: _padded(x, 16)}), True,
    ),
    "rows apart by something else": (_plain(inputs={0: lambda x: _padded(x, 4)}), False),
    "weights apart by something else": (_plain(inputs={2: lambda x: _padded(x, 4)}), False),
    "rows along the batch": (_plain(inputs={0: lambda x: x.t().contiguous().t()}), False),
    "one row for all": (_plain(inputs={0: lambda x: x[:1].expand(BATCH, -1)}), False),
    "a width that is no multiple of 8": (
        _plain(inputs={0: lambda x: x[:, :60], 2: lambda x: x[:60]}), True,
    ),
    "a small batch": (_plain(batch=128), False),
    "float32": (_plain(dtype=torch.float32), False),
}  # fmt: skip


@pytest.mark.parametrize(("make", "served"), SERVED.values(), ids=SERVED.keys())
def test_what_it_serves(shim: Shim, make: Callable[[], list[Tensor]], served: bool) -> None:
    """The rest is served by the tile kernels, and as right."""
    shim.fixed_capability = 9
    case, inputs, results = CASES["one step"], make(), []
    threads = shim.threads(lambda: results.append(case.run(inputs, "native")))
    assert (threads == THREADS) == served
    assert_right(results[0], case, inputs)


def test_an_address_that_is_no_multiple_of_16_bytes(shim: Shim) -> None:
    """A copy would be aligned: the operator is called without what the shim does to its tensors."""
    shim.fixed_capability = 9
    case = CASES["one step"]
    a, v, p, q = case.draw(torch.bfloat16)
    expected = case.run([a, v, p, q], "native")
    run = torch.ops.fbp_shim.fbp_forward
    for offset, served in ((0, True), (4, False), (8, True)):
        memory = torch.empty(p.numel() + 8, dtype=p.dtype)
        moved = memory[offset : offset + p.numel()].view_as(p).copy_(p)
        results: list[Tensor] = []
        threads = shim.threads(
            lambda: results.append(  # noqa: B023
                run(a, v, moved, q, None, None, None, 4, False, 0.0, False)[0]  # noqa: B023
            )
        )
        assert (threads == THREADS) == served
        assert_right(results[0], case, [a, v, p, q])
        assert not served or torch.equal(results[0], expected)


@pytest.mark.parametrize("capability", [8, 10])
def test_other_architectures_have_other_kernels(shim: Shim, capability: int) -> None:
    shim.fixed_capability = capability
    case = CASES["one step"]
    assert shim.threads(lambda: case.run(case.draw(torch.bfloat16), "native")) != THREADS


def test_widths_and_biases_that_it_does_not_serve(shim: Shim) -> None:
    shim.fixed_capability = 9
    cases = (
        (fbp(72, 64, 24, 5, biases=2), torch.float16),
        (fbp(71, 64, 24, 5), torch.bfloat16),
        (fbp(72, 64, 25, 5), torch.bfloat16),
    )
    for case, dtype in cases:
        inputs, results = case.draw(dtype), []
        threads = shim.threads(lambda: results.append(case.run(inputs, "native")))  # noqa: B023
        assert threads != THREADS
        assert_right(results[0], case, inputs)
