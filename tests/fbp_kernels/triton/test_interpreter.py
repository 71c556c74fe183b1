"""The interpreter, mended: bfloat16 is multiplied as numbers and rounded to nearest even, as PyTorch does."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fbp_kernels.triton import interpreter, launch  # noqa: F401 (mends on import)

BFLOAT16_MAX = torch.finfo(torch.bfloat16).max


@triton.jit
def _cast(x, y, n, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < n)


@triton.jit
def _store(x, y, n, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def _dot(a, b, c, start, TILE: tl.constexpr, PRECISION: tl.constexpr):
    r, s = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    at = r * TILE + s
    acc = tl.load(start + at)
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), acc, input_precision=PRECISION))


def edges() -> Tensor:
    """Float32 bit patterns where rounding to bfloat16 decides: ties, neighbours of ties, the ends of the range."""
    halves = [0x3F80, 0x3F81, 0x0001, 0x0080, 0x7F7F, 0x007F, 0x4049, 0x0000]
    tails = [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    words = [h << 16 | t for h in halves for t in tails]
    words += [0x7F800000, 0x7FC00000, 0x7F7FFFFF, 0x00000001, 0x00008000, 0x00008001]
    bits = torch.tensor(words + [w | 0x80000000 for w in words], dtype=torch.int64)
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)


def bits(x: Tensor) -> list[int]:
    return x.view(torch.int16 if x.element_size() == 2 else torch.int32).tolist()


@pytest.mark.parametrize("kernel", [_cast, _store])
def test_rounding_to_bfloat16_is_that_of_pytorch(kernel) -> None:
    random = torch.randint(-(2**31), 2**31 - 1, (400,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([edges(), random.view(torch.float32)])
    y = torch.empty(len(x), dtype=torch.bfloat16)
    kernel[(1,)](x, y, len(x), TILE=512)
    want = x.bfloat16()
    numbers = ~x.isnan()
    assert bits(y[numbers]) == bits(want[numbers])
    assert y[~numbers].isnan().all(), "not a number stays so, and does not become infinite"
    assert (y.float().abs() == torch.inf).any()
    assert ((y.float().abs() > 0) & (y.float().abs() < torch.finfo(torch.bfloat16).tiny)).any()


def test_widening_bfloat16_is_exact_for_every_pattern() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    y = torch.empty(len(every))
    _cast[(1,)](every, y, len(every), TILE=2**16)
    torch.testing.assert_close(y, every.float(), rtol=0, atol=0, equal_nan=True)
    numbers = ~every.isnan()
    assert bits(y[numbers]) == bits(every[numbers].float()), "signs of zeros and subnormals too"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_those_of_the_numbers(dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    start, c = torch.randn(16, 16), torch.empty(16, 16)
    _dot[(1,)](a, b, c, start, TILE=16, PRECISION="ieee")
    want = start.double() + a.double() @ b.double()
    torch.testing.assert_close(c.double(), want, rtol=1e-5, atol=1e-5)


def test_products_of_bfloat16_with_infinity_and_nan() -> None:
    a, b = torch.zeros(16, 16), torch.eye(16)
    a[0, 0], a[1, 1], a[2, 2] = torch.inf, torch.nan, BFLOAT16_MAX
    c = torch.empty(16, 16)
    a, b = a.bfloat16(), b.bfloat16()
    _dot[(1,)](a, b, c, torch.zeros(16, 16), TILE=16, PRECISION="ieee")
    torch.testing.assert_close(c, a.float() @ b.float(), equal_nan=True)


def test_mending_twice_is_mending_once() -> None:
    builder = triton.runtime.interpreter.InterpreterBuilder
    before = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp
    interpreter.mend()
    assert before == (builder.create_dot, builder.cast_impl, builder.create_fp_to_fp)
