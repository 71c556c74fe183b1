"""The bilinear backward by wgmma: every option against float64, what it serves, and equal bits in any order."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from tests.marks import slow

from ..checks import assert_parity, evaluate
from .shim import Shim
from .test_hopper import BATCH, DROPOUT, HALF, LENGTHS, ORDERS, THREADS, Case, fbp, trunks

CASES = {
    "one step": fbp(64, 64, 16, 4),
    "more steps than stages, several tiles": fbp(264, 136, 70, 4),
    "narrow": fbp(8, 16, 2, 4),
    "K = 1": fbp(72, 72, 72, 1),
    "K = 3": fbp(64, 72, 88, 3),
    "K = 5": fbp(72, 136, 24, 5),
    "K = 136": fbp(64, 72, 3, 136),
    "biases": fbp(72, 64, 24, 5, biases=2),
    "adaptive": fbp(200, 72, 40, 4, adaptive=True),
    "dropout": fbp(72, 64, 24, 5, **DROPOUT),
    "all options": fbp(72, 136, 24, 5, biases=2, adaptive=True, **DROPOUT),
    "trunks": trunks(3, 72, 64, 40, 4),
    "trunks, lengths": trunks(3, 72, 64, 24, 5, lengths=LENGTHS),
    "trunks, all lengths 0": trunks(
        2, 72, 64, 24, 5, lengths=torch.zeros(BATCH, dtype=torch.int64)
    ),
    "trunks, lengths, dropout, K = 136": trunks(3, 64, 64, 1, 136, lengths=LENGTHS, **DROPOUT),
}

# Large ones, whose parts others have.
LARGE = (
    "more steps than stages, several tiles",
    "K = 136",
    "trunks",
    "trunks, lengths, dropout, K = 136",
)


def gradients(case: Case, inputs: list[Tensor], keep: bool) -> dict[str, Tensor]:
    """By name, of the native backend."""
    operator = fk.trunk_fbp if inputs[0].dim() == 3 else fk.fbp

    def call(*t: Tensor) -> Tensor:
        biases = dict(zip(("p_bias", "q_bias"), t[4:], strict=False))
        return operator(*t[:4], **biases, **case.arguments, backend="native", keep_projections=keep)  # type: ignore[no-any-return]

    torch.manual_seed(5)  # of dropout
    return evaluate(call, inputs, 5, inputs[0].dtype)


def assert_gradients(shim: Shim, dtype: torch.dtype, case: Case) -> int:
    """Results and gradients are right, with projections kept and computed again; the threads of its blocks."""
    operator = fk.trunk_fbp if len(case.shapes[0]) == 3 else fk.fbp
    names = {"p_bias": 4, "q_bias": 5} if len(case.shapes) > 4 else {}

    def call(*t: Tensor, **arguments: Any) -> Any:
        return operator(*t[:4], **{name: t[i] for name, i in names.items()}, **arguments)

    call.__name__ = operator.__name__
    return shim.threads(
        lambda: assert_parity(call, lambda seed: case.draw(dtype, seed), case.arguments, "native")
    )


def assert_same_bits(
    shim: Shim, case: Case, dtype: torch.dtype = torch.bfloat16, threads: int = THREADS
) -> dict[str, Tensor]:
    """In all orders, and with projections kept: those results and gradients. All by blocks of so many threads."""
    inputs = case.draw(dtype)
    found: list[dict[str, Tensor]] = []
    for shim.fixed_order in ORDERS:
        assert shim.threads(lambda: found.append(gradients(case, inputs, keep=False))) == threads
    found.append(gradients(case, inputs, keep=True))
    for other in found[1:]:
        for name, value in other.items():
            assert torch.equal(value, found[0][name]), name
    return found[0]


def assert_rows_unseen(
    shim: Shim, case: Case, keep: bool, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Neither what stands in rows that do not count nor, by their gradients, what stands in weights not theirs.

    A case of three trunks, with lengths.
    """
    inputs, lengths = case.draw(dtype), case.arguments["lengths"]
    expected = gradients(case, inputs, keep)
    dead = torch.arange(3) >= lengths[:, None]  # (rows, trunks)
    for x in inputs[:2]:
        x[dead] = math.nan
    # Whoever comes to a stage first, the warp that clears or those that multiply.
    for shim.fixed_order in ORDERS:
        got = gradients(case, inputs, keep)
        for name, value in got.items():
            assert torch.equal(value, expected[name]), name
        for i in (0, 1):
            assert (got[f"gradient {i}"][dead] == 0).all()
    for x in inputs[2:]:
        x[2] = math.nan
    got = gradients(case, inputs, keep)
    for i in (0, 1):
        assert (got[f"gradient {i}"][lengths < 3][:, 2] == 0).all()


def assert_two_parts(
    shim: Shim, one: Case, many: Case, keep: bool, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Gradients of `am_fbp` are those of its two parts, bit by bit; the launches of its backward."""
    own = [[t.requires_grad_() for t in case.draw(dtype)] for case in (one, many)]
    (a, v, p, q), (a_trunks, v_trunks, p_trunks, q_trunks) = own
    arguments: dict[str, Any] = {"backend": "native", "keep_projections": keep}
    factors = [case.arguments["factor"] for case in (one, many)]
    z = fk.am_fbp(a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, *factors,
                  adaptive=one.arguments["adaptive"], lengths=many.arguments["lengths"], **arguments)  # fmt: skip
    dz = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    launches = shim.launches(lambda: z.backward(dz))
    outputs = p.shape[1] // factors[0]
    for case, leaves, part in zip(
        (one, many), own, (dz[:, :outputs], dz[:, outputs:]), strict=True
    ):
        alone = [t.detach().requires_grad_() for t in leaves]
        operator = fk.fbp if case is one else fk.trunk_fbp
        operator(*alone, **case.arguments, **arguments).backward(part)
        for x, y in zip(leaves, alone, strict=True):
            assert x.grad is not None
            assert y.grad is not None
            assert torch.equal(x.grad, y.grad)
    return launches


@pytest.mark.parametrize(
    ("dtype", "name"), slow(product(HALF, CASES), *product([torch.float16], LARGE))
)
def test_gradients_are_right(shim: Shim, dtype: torch.dtype, name: str) -> None:
    """With projections kept, and computed again."""
    shim.fixed_capability = 9
    shim.multiprocessors(3)
    assert assert_gradients(shim, dtype, CASES[name]) == THREADS


@pytest.mark.parametrize("name", slow(CASES, *LARGE, "K = 1", "K = 3"))
def test_bits_do_not_follow_the_order_nor_what_is_kept(shim: Shim, name: str) -> None:
    """Whatever lands when: copies and products early, late, and drawn; and projections are the same in both ways."""
    shim.fixed_capability = 9
    shim.multiprocessors(3)
    assert_same_bits(shim, CASES[name])


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed again"])
def test_rows_that_do_not_count_are_not_seen(shim: Shim, keep: bool) -> None:
    shim.fixed_capability = 9
    assert_rows_unseen(shim, CASES["trunks, lengths"], keep)


def test_am_fbp_is_its_two_parts_bit_by_bit(shim: Shim) -> None:
    """In two launches where projections are kept, and one more where not."""
    shim.fixed_capability = 9
    one, many = fbp(72, 64, 40, 4, adaptive=True), trunks(3, 64, 72, 24, 5, lengths=LENGTHS)
    for count, keep, launches in ((1, True, 2), (3, False, 3)):
        shim.multiprocessors(count)
        assert assert_two_parts(shim, one, many, keep) == launches


def test_kept_projections_stay_as_they_are(shim: Shim) -> None:
    """Gradients take the place of those that the backward computes for itself, and of no others."""
    shim.fixed_capability = 9
    case = CASES["trunks"]
    inputs = case.draw(torch.bfloat16)
    _, u, w = shim.trunk_fbp_forward(*inputs, None, None, None, None, 4, 0.0, True)
    before = u.clone(), w.clone()
    dz = torch.ones(BATCH, 40).bfloat16()
    # Without copies of the tensors.
    torch.ops.fbp_shim.trunk_fbp_backward(dz, *inputs, None, None, None, None, u, w, 4, 0.0, 0b1111)
    assert torch.equal(u, before[0])
    assert torch.equal(w, before[1])


NEEDED = [(0,), (3,), (1, 2), (4,), (0, 5)]


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_only_what_is_needed_is_computed(shim: Shim, needed: tuple[int, ...]) -> None:
    shim.fixed_capability = 9
    case = fbp(72, 64, 24, 5, biases=2, adaptive=True)
    inputs = case.draw(torch.bfloat16)
    everything = gradients(case, inputs, keep=False)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(inputs)]
    z = fk.fbp(*leaves[:4], 5, p_bias=leaves[4], q_bias=leaves[5], adaptive=True,
               backend="native", keep_projections=False)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    z.backward(torch.randn(z.shape, generator=generator, dtype=torch.float64).bfloat16())
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if leaf.grad is not None:
            assert torch.equal(leaf.grad, everything[f"gradient {i}"])


def test_gradients_of_results_may_have_any_strides(shim: Shim) -> None:
    shim.fixed_capability = 9
    case = CASES["K = 5"]
    a, v, p, q = case.draw(torch.bfloat16)
    g = torch.randn(BATCH, 1, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for dz in (g.expand(BATCH, 24), g.repeat(1, 24), g.repeat(1, 24).t().contiguous().t()):
        leaves = [t.detach().requires_grad_() for t in (a, v, p, q)]
        fk.fbp(*leaves, 5, backend="native").backward(dz)
        found.append([t.grad for t in leaves])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            assert x is not None
            assert y is not None
            assert torch.equal(x, y)


def _plain(
    dtype: torch.dtype = torch.bfloat16, batch: int = BATCH, **change: Callable[[Tensor], Tensor]
) -> Callable[[], list[Tensor]]:
    """Inputs of a plain case, with something about them that is told."""

    def make() -> list[Tensor]:
        inputs = CASES["one step"].draw(dtype)
        inputs[:2] = [x[:batch] for x in inputs[:2]]
        return [change.get(name, lambda t: t)(t) for name, t in zip("avpq", inputs, strict=True)]

    return make


def _padded(x: Tensor, by: int) -> Tensor:
    """The same numbers, rows further apart."""
    wide = torch.full((x.shape[0], x.shape[1] + by), math.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


SERVED = {
    "contiguous": (_plain(), True),
    "rows apart by a multiple of 16 bytes": (
        _plain(a=lambda x: _padded(x, 8), q=lambda x: _padded(x, 16)), True,
    ),
    "rows apart by something else": (_plain(v=lambda x: _padded(x, 4)), False),
    "rows along the batch": (_plain(a=lambda x: x.t().contiguous().t()), False),
    "one row for all": (_plain(a=lambda x: x[:1].expand(BATCH, -1)), False),
    "columns that are no multiple of 8": (
        _plain(p=lambda x: _padded(x[:, :60], 4), q=lambda x: _padded(x[:, :60], 4)), False,
    ),
    "a width that is no multiple of 8": (
        _plain(a=lambda x: x[:, :60], p=lambda x: x[:60]), True,
    ),
    "a small batch": (_plain(batch=128), False),
    "float32": (_plain(dtype=torch.float32), False),
}  # fmt: skip


@pytest.mark.parametrize(("make", "served"), SERVED.values(), ids=SERVED.keys())
def test_what_it_serves(shim: Shim, make: Callable[[], list[Tensor]], served: bool) -> None:
    """The rest is served by the tile kernels, and as right."""
    shim.fixed_capability = 9
    threads = shim.threads(lambda: assert_parity(fk.fbp, lambda _: make(), {"factor": 4}, "native"))
    assert (threads == THREADS) == served


@pytest.mark.parametrize("capability", [8, 10])
def test_other_architectures_have_other_kernels(shim: Shim, capability: int) -> None:
    shim.fixed_capability = capability
    case = CASES["one step"]
    inputs = case.draw(torch.bfloat16)
    assert shim.threads(lambda: gradients(case, inputs, keep=True)) != THREADS
