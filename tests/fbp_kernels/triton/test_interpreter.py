"""The interpreter, mended: what it computes of bfloat16 is what PyTorch does, and what would be wrong is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter as triton_interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import TensorHandle, interpreter_builder

from fbp_kernels.triton import interpreter, launch  # noqa: F401 (mends on import)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of infinities and NaN

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


@triton.jit
def _apply(x, y, z, n, NAME: tl.constexpr, TILE: tl.constexpr):
    """z = NAME(x, y): a function of Triton's language, or a method of its tensors."""
    at = tl.arange(0, TILE)
    a = tl.load(x + at, mask=at < n, other=1.0)
    b = tl.load(y + at, mask=at < n, other=1.0)
    tl.store(z + at, FUNCTIONS[NAME](a, b), mask=at < n)


@triton.jit
def _reduce(x, y, NAME: tl.constexpr, TILE: tl.constexpr):
    tl.store(y, getattr(tl, NAME)(tl.load(x + tl.arange(0, TILE)), 0))


@triton.jit
def _own_sum(a, b):
    return a + b


@triton.jit
def _own_reduce(x, y, TILE: tl.constexpr):
    tl.store(y, tl.reduce(tl.load(x + tl.arange(0, TILE)), 0, _own_sum))


@triton.jit
def _own_scan(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, tl.associative_scan(tl.load(x + at), 0, _own_sum))


@triton.jit
def _atomic(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.atomic_add(y + at, tl.load(x + at))


@triton.jit
def _fma(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    a = tl.load(x + at)
    tl.store(y + at, tl.fma(a, a, a))


@triton.jit
def _towards_zero(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    a = tl.load(x + at).to(tl.float32).to(tl.bfloat16, fp_downcast_rounding="rtz")
    tl.store(y + at, a)


@triton.jit
def _eight_bits(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, tl.load(x + at).to(tl.float8e5).to(tl.float32))


@triton.jit
def _described(x, y, TILE: tl.constexpr):
    block = tl.make_tensor_descriptor(x, [TILE], [1], [TILE])
    tl.store(y + tl.arange(0, TILE), block.load([0]))


@triton.jit
def _sort(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, tl.sort(tl.load(x + at)))


@triton.jit
def _scan(x, y, NAME: tl.constexpr, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    tl.store(y + at, getattr(tl, NAME)(tl.load(x + at), 0))


@triton.jit
def _chained(x, y, z, n, TILE: tl.constexpr):
    """Comparisons that meet, a selection, a constant, and what only moves numbers in between."""
    at = tl.arange(0, TILE)
    a = tl.load(x + at, mask=at < n, other=1.0)
    b = tl.load(y + at, mask=at < n, other=1.0)
    inside = (a > b) & (a < 2.0) | (b == a)
    moved = tl.trans(tl.reshape(tl.join(a, b), (TILE // 2, 4)))
    one, other = tl.split(tl.reshape(tl.trans(moved), (TILE, 2)))
    chosen = tl.where(inside, one + other * 0.5, -(one - other))
    tl.store(z + at, chosen * tl.full((TILE,), 0.1, tl.bfloat16), mask=at < n)


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


OPERATIONS = {  # by the name of what PyTorch computes in bfloat16 for the same
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fmod": lambda a, b: a % b,
    "maximum": lambda a, b: tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL),
    "minimum": lambda a, b: tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "abs": lambda a, b: tl.abs(a),
    "neg": lambda a, b: -a,
    "where": lambda a, b: tl.where(a > b, a, b),
    "clamp": lambda a, b: tl.clamp(a, -b, b),
}
WANTED = {  # where PyTorch's function of that name takes other arguments
    "fmod": lambda a, b: torch.fmod(a.double(), b.double()).bfloat16(),  # PyTorch's own overflows
    "where": lambda a, b: torch.where(a > b, a, b),
    "clamp": lambda a, b: torch.clamp(a, -b, b),
    **{name: lambda a, b, name=name: getattr(torch, name)(a) for name in ("abs", "neg")},
}


def pairs(count: int = 1000) -> tuple[Tensor, Tensor]:
    """Numbers of all sizes, near and equal ones among them, and the edges of bfloat16; no NaN."""
    x = torch.cat([torch.randn(count) * torch.randn(count).mul(4).exp2(), edges()]).bfloat16()
    y = x.roll(1)
    near = torch.rand(len(x)) < 0.3
    y[near] = (x * (1 + torch.randint(-3, 4, (len(x),)) / 128)).bfloat16()[near]
    numbers = ~(x.isnan() | y.isnan())
    return x[numbers], y[numbers]


@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_is_that_of_pytorch(name: str) -> None:
    x, y = pairs()
    if name == "clamp":
        y = y.abs()
    want = WANTED.get(name, getattr(torch, name, None))(x, y)
    got = torch.empty_like(want)
    _apply[(1,)](x, y, got, len(x), name, TILE=2048)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert want.unique().numel() > (1 if want.dtype == torch.bool else 100)


EXTREMES = {  # without being asked for NaN
    "fmax": lambda a, b: tl.maximum(a, b),
    "fmin": lambda a, b: tl.minimum(a, b),
    "clipped": lambda a, b: tl.clamp(a, b, b + 1.0),
}
ASKED = {
    "clipped, NaN asked for": lambda a, b: tl.clamp(
        a, b, b + 1.0, propagate_nan=tl.PropagateNan.ALL
    )
}
FUNCTIONS = OPERATIONS | EXTREMES | ASKED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_leave_out_what_is_no_number_as_a_gpu_does(name: str, dtype: torch.dtype) -> None:
    """PTX's max and min do, and the compiler emits no others unless it is asked to."""
    x = torch.tensor([torch.nan, -3.0, 5.0, torch.nan, 1.5], dtype=dtype)
    y = torch.tensor([2.0, 0.5, 4.0, torch.nan, 1.0], dtype=dtype)
    if name == "clipped":
        y = y.nan_to_num(7.0)
        want = torch.tensor([2.0, 0.5, 5.0, 7.0, 1.5], dtype=dtype)
    else:
        want = getattr(torch, name)(x, y)
    got = torch.empty_like(x)
    _apply[(1,)](x, y, got, len(x), name, TILE=8)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_where_it_is_asked_for(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.nan, -3.0, 5.0, 1.5], dtype=dtype)
    y = torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=dtype)
    got = torch.empty_like(x)
    _apply[(1,)](x, y, got, len(x), *ASKED, TILE=8)
    torch.testing.assert_close(got, x.clamp(y, y + 1), rtol=0, atol=0, equal_nan=True)
    assert got[0].isnan()


def test_what_was_wrong_is_right() -> None:
    got = torch.empty(1, dtype=torch.bfloat16)
    one = torch.ones(1, dtype=torch.bfloat16)
    _apply[(1,)](one * 256, one, got, 1, "add", TILE=1)
    assert got.item() == 256, "not -4e-37"
    _apply[(1,)](one * 256, one * 3, got, 1, "add", TILE=1)
    assert got.item() == 260, "to the even neighbour"


def test_operations_after_each_other_are_those_of_pytorch() -> None:
    x, y = pairs(500)
    got = torch.empty_like(x)
    _chained[(1,)](x, y, got, len(x), TILE=1024)
    inside = (x > y) & (x < 2) | (x == y)
    want = torch.where(inside, x + y * 0.5, -(x - y)) * torch.tensor(0.1, dtype=torch.bfloat16)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@contextmanager
def refused_at_worst() -> Iterator[None]:
    """Of what some versions of Triton widen before, and others do not."""
    try:
        yield
    except InterpreterError as error:
        if "bfloat16 would be wrong" not in str(error):
            raise


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_the_largest_and_the_smallest_are_found(name: str) -> None:
    x = pairs()[0][:256].contiguous()
    want = getattr(x, name)().item()
    got = torch.empty(())
    with refused_at_worst():
        _reduce[(1,)](x, got, name, TILE=256)
        assert got.item() == want or x[int(got.item())] == x[want]


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_scans_that_triton_widens_are_those_of_float32(name: str) -> None:
    x, got = (1 + torch.randn(64) / 16).bfloat16(), torch.empty(64)
    with refused_at_worst():
        _scan[(1,)](x, got, name, TILE=64)
        torch.testing.assert_close(got, getattr(x.float(), name)(0))


def test_sorting_compares_numbers() -> None:
    x = pairs()[0][:64].contiguous()
    got = torch.empty_like(x)
    _sort[(1,)](x, got, TILE=64)
    torch.testing.assert_close(got, x.sort().values, rtol=0, atol=0)


@pytest.mark.parametrize(
    "kernel",
    [_own_reduce, _own_scan, _atomic, _fma, _towards_zero, _eight_bits, _described],
    ids=lambda kernel: kernel.fn.__name__,
)
def test_what_would_be_wrong_is_refused(kernel: Any) -> None:
    x, y = torch.ones(64, dtype=torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match="bfloat16 would be wrong in Triton's interpreter"):
        kernel[(1,)](x, y, TILE=64)
    assert not y.any(), "nothing is written"
    wide = torch.zeros(64)
    kernel[(1,)](x.float(), wide, TILE=64) if kernel is not _towards_zero else wide.fill_(1)
    assert wide.any(), "what is refused can be had in float32"


def test_a_sum_in_bfloat16_is_refused_and_one_in_float32_is_right() -> None:
    x, y = torch.ones(1024, dtype=torch.bfloat16), torch.zeros(())
    with pytest.raises(InterpreterError, match="a reduction or scan of bfloat16 would be wrong"):
        _reduce[(1,)](x, y, "sum", TILE=1024)
    _reduce[(1,)](x.float(), y, "sum", TILE=1024)
    assert y.item() == 1024, "not 0"


METHODS = [n for n in dir(interpreter_builder) if n.startswith("create_")]


def handles(count: int, wide: bool) -> list[TensorHandle]:
    x = pairs()[0].abs()
    values = [x, x.roll(1), x.roll(2)][:count]
    if wide:
        return [TensorHandle(v.float().numpy(), tl.float32) for v in values]
    words = [v.view(torch.int16).numpy().view(np.uint16) for v in values]
    return [TensorHandle(word, tl.bfloat16) for word in words]


@pytest.mark.parametrize("method", METHODS)
def test_whatever_the_interpreter_can_create_is_right_or_refused(method: str) -> None:
    """Called with one, two and three operands: it moves them, is what float32 gives, rounded, or raises."""
    name = method.removeprefix("create_")
    for count in (1, 2, 3):
        torch.manual_seed(count)
        narrow = handles(count, wide=False)
        words = [handle.data.copy() for handle in narrow]
        try:
            got = getattr(interpreter_builder, method)(*narrow)
        except Exception:  # refused, or of another number or kind of operands
            continue
        if name in interpreter._RIGHT or not isinstance(got, TensorHandle):
            assert name in interpreter._RIGHT | {"print", "assert", "assume", "barrier"}
            continue
        torch.manual_seed(count)
        want = getattr(interpreter_builder, method)(*handles(count, wide=True)).data
        if want.dtype == bool:
            assert got.dtype == tl.int1
            assert (got.data == want).all()
        else:
            assert got.dtype == tl.bfloat16
            rounded = torch.from_numpy(want).bfloat16().view(torch.int16).tolist()
            assert got.data.view(np.int16).tolist() == rounded
        for handle, word in zip(narrow, words, strict=True):
            assert (handle.data == word).all(), "operands are kept"


def test_what_is_known_is_there() -> None:
    """No name is misspelt: each is a method of some version that is supported."""
    other = {"atomic_load", "atomic_store", "fneg"}  # of Triton 3.8 and later
    known = interpreter._RIGHT | interpreter._ROUNDED | interpreter._WIDENED
    assert {f"create_{name}" for name in known - other} <= set(METHODS)


def test_mending_twice_is_mending_once() -> None:
    builder = triton.runtime.interpreter.InterpreterBuilder
    before = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp
    interpreter.mend()
    assert before == (builder.create_dot, builder.cast_impl, builder.create_fp_to_fp)


@triton.jit
def _twice(a):
    return _own_sum(a, a)


@triton.jit
def _many_calls(x, y, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    value = tl.load(x + at)
    for _ in range(5):
        value = _twice(value) - tl.sum(value, 0) / TILE
    tl.store(y + at, value)


def test_the_language_is_patched_once_a_launch_and_module_and_itself_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patched: list[str] = []
    builtins = triton_interpreter._patch_builtin

    def counting(package: Any, *rest: Any) -> None:
        patched.append(package.__name__)
        builtins(package, *rest)

    monkeypatch.setattr(triton_interpreter, "_patch_builtin", counting)
    x, y = torch.randn(8), torch.empty(8)
    truth = x.double()
    for _ in range(5):
        truth = 2 * truth - truth.mean()
    for launched in (1, 2):
        _many_calls[(3,)](x, y, TILE=8)
        torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
        # For this module and for that of `tl.sum`, whatever the number of programs and calls.
        assert patched.count("tensor") <= 3 * launched, (
            "they see two of the language's modules or one"
        )
        assert tl.core.is_builtin(tl.load), "as before the launch"
    monkeypatch.setattr(triton_interpreter, "_patch_builtin", builtins)
    with pytest.raises(InterpreterError):
        _reduce[(1,)](x, y, NAME="no such", TILE=8)
    assert tl.core.is_builtin(tl.load), "after a launch that failed, too"
    _many_calls[(1,)](x, y, TILE=8)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-5)
