"""Every kernel writes every element of its results and nothing else, reads nothing else, and gives the same bits again.

Again, with its programs in the reverse order: what two of them write differently, or add up as they come, shows.
"""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import backends

from ..cases import Case, over_examples
from ..checks import evaluate, kept_by, pairs
from .guard import Guards, guarded, reversed_programs

OPERATORS = [o for o, backend in pairs() if backend == "triton"]


def run(case: Case, inputs: list[Tensor | None], keep: bool) -> dict[str, Tensor]:
    name = kept_by(case.operator)
    options = {name: keep} if name else {}
    torch.manual_seed(0)
    call = lambda *t: case.operator(*t, **case.arguments, **options, backend="triton")  # noqa: E731
    return evaluate(call, inputs, 0, case.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_element_is_written_nothing_outside_and_the_same_bits_again(
    operator: str, keep: bool
) -> None:
    if not keep and not kept_by(getattr(fk, operator)):
        pytest.skip("keeps nothing")

    def check(case: Case) -> None:
        inputs = case.draw(0)
        with guarded(operator) as guards:
            held = [None if t is None else guards.embed(t) for t in inputs]
            got = run(case, held, keep)
        for given, now in zip(inputs, held, strict=True):
            if given is not None and now is not None:
                torch.testing.assert_close(now, given, rtol=0, atol=0)
        with reversed_programs():
            again = run(case, inputs, keep)
        for name, value in got.items():
            assert value.isfinite().all(), f"{name} is written in part, or made of what was not"
            torch.testing.assert_close(value, again[name], rtol=0, atol=0)

    over_examples(operator, "triton", check, examples=4)


# Kernels with the faults that the check is there for.


@triton.jit
def _copy(x, y, first, end, TILE: tl.constexpr):
    at = first + tl.arange(0, TILE)
    tl.store(y + at, tl.load(x + at), mask=at < end)


@pytest.mark.parametrize(
    ("first", "end", "fault"),
    [
        (0, 30, None),
        (0, 29, "written in part"),
        (0, 31, "margin"),
        (-1, 30, "margin"),
    ],
)
def test_the_check_finds_faults(first: int, end: int, fault: str | None) -> None:
    def forward(z: Tensor, eps: float) -> Tensor:
        y = torch.empty_like(z)
        _copy[(1,)](z, y, first, end, TILE=32)
        return y

    operator = "power_normalize"
    before = backends._kernels[operator]
    backends._kernels[operator] = {"triton": backends.Kernel(forward, forward)}
    found = None
    try:
        with guarded(operator) as guards:
            x = guards.embed(torch.randn(5, 6))
            y = backends.kernel(operator, "triton").forward(x, 0.0)
        if not y.isfinite().all():
            found = "written in part"
    except AssertionError:
        found = "margin"
    finally:
        backends._kernels[operator] = before
    assert found == fault


@triton.jit
def _overlap(y, TILE: tl.constexpr):
    at = tl.program_id(0) * (TILE - 1) + tl.arange(0, TILE)
    tl.store(y + at, tl.program_id(0) + tl.zeros([TILE], tl.float32))


def test_programs_that_write_the_same_element_show_in_the_reverse_order() -> None:
    y = torch.empty(7)
    _overlap[(2,)](y, TILE=4)
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 1]
    with reversed_programs():
        _overlap[(2,)](y, TILE=4)
    assert y.tolist() == [0, 0, 0, 0, 1, 1, 1]
    _overlap[(2,)](y, TILE=4)
    assert y.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_allocations_keep_shape_strides_and_alignment() -> None:
    with Guards() as guards:
        x = torch.empty(3, 4, 5, dtype=torch.bfloat16)
        last = torch.empty_like(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
        zero = x.new_zeros(4)
        words = torch.empty(3, dtype=torch.int32)
    assert x.isnan().all()
    assert x.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not zero.any()
    assert (words == 2**31 - 1).all()
    assert all(t.data_ptr() % 64 == 0 for t in (x, last, zero, words))
    guards.assert_whole()
    x.as_strided((1,), (1,), x.storage_offset() - 1).zero_()
    with pytest.raises(AssertionError):
        guards.assert_whole()


def test_the_kernels_come_back_after_a_failure() -> None:
    def fail(operator: str) -> None:
        with guarded(operator):
            assert backends.kernel(operator, "triton") is not kernel
            raise ZeroDivisionError

    for operator in OPERATORS:
        kernel = backends.kernel(operator, "triton")
        with pytest.raises(ZeroDivisionError):
            fail(operator)
        assert backends.kernel(operator, "triton") is kernel
