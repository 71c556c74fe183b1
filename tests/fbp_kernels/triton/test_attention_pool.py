"""The Triton kernels of `attention_pool`: what the tests over all operators do not reach."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels.triton import attention_pool as kernels
from fbp_kernels.triton import launch

from ..checks import Inputs, assert_parity, strided
from ..test_registration import Recorder

RESULTS = ("pooled", "trunk_pooled", "weights")
INPUTS = ("x", "weight", "bias", "query", "scale")
FORWARD = ["forward_kernel"]
BACKWARD = ["weights_backward_kernel", "inputs_backward_kernel", "parameters_backward_kernel"]


def draw(
    B: int,
    T: int,
    C: int,
    A: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    padding: Tensor | None = None,
) -> list[Tensor]:
    """x, weight, bias, query and scale; NaN from the frame on that `padding` says."""
    generator = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(B, T, C), (C, A), (A,), (A,), ()]
    x, weight, bias, query, scale = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes
    )
    if padding is not None:
        x[torch.arange(T) >= padding[:, None]] = torch.nan
    scale = (1 + scale.abs()) * (-1) ** seed  # of both signs
    tensors = [t.to(dtype) for t in (x, weight * C**-0.5, bias, query, scale)]
    return [strided(t, layout) if t.dim() > 1 else t for t in tensors]


def using(*names: str) -> Callable[..., Any]:
    """The operator, of whose results only those named can be differentiated."""

    def call(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
        results = fk.attention_pool(*tensors, **options)
        return tuple(
            t if name in names else t.detach() for name, t in zip(RESULTS, results, strict=True)
        )

    call.__name__ = f"attention_pool {names}"
    return call


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


# The interpreter's tiles have 16 frames, 16 channels, 16 columns and 16 trunks.


@pytest.mark.slow
@settings(
    max_examples=4,
    phases=[Phase.generate],  # shrinking takes the interpreter many minutes
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_any_shape_over_several_tiles_with_nan_in_the_padding(data: st.DataObject) -> None:
    B, T = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 16, 17, 35]))
    C = data.draw(st.sampled_from([1, 5, 17]))
    A = data.draw(st.sampled_from([3, 5, 17]))  # a gradient of one number would be luck
    H = data.draw(st.sampled_from([1, 2, 3, 19]))
    lengths = None
    if data.draw(st.booleans(), label="ragged"):
        values = st.lists(st.integers(0, T), min_size=B, max_size=B)
        lengths = torch.tensor(data.draw(values))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    layout = data.draw(st.sampled_from(["contiguous", "transposed", "sliced", "batch_last"]))
    used = data.draw(st.sets(st.sampled_from(RESULTS), min_size=1))

    def sample(seed: int) -> Inputs:
        return draw(B, T, C, A, seed, dtype, layout, lengths)

    assert_parity(using(*used), sample, {"trunks": H, "lengths": lengths}, "triton", draws=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("used", "dtype"), [*((used, torch.float32) for used in RESULTS), ("weights", torch.bfloat16)]
)
def test_gradients_through_one_result_alone(used: str, dtype: torch.dtype) -> None:
    # Many draws, for the gradient of the scale is one number.
    assert_parity(
        using(used),
        lambda seed: draw(2, 17, 5, 5, seed, dtype),
        {"trunks": 3, "lengths": torch.tensor([17, 13])},
        "triton",
        draws=16,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scale_as_a_number_is_not_rounded_to_the_dtype(dtype: torch.dtype) -> None:
    def call(*tensors: Tensor, **options: Any) -> Any:
        return fk.attention_pool(*tensors, 3.0 + 2.0**-9, **options)

    assert_parity(call, lambda seed: draw(2, 16, 5, 3, seed, dtype)[:4], {"trunks": 2}, "triton", 4)


@pytest.mark.parametrize("scale", [40.0, 1e4])
def test_attention_on_few_frames(scale: float) -> None:
    """Weights down to 0: what is left of the gradient of the scores is a difference of near equals."""

    def sample(seed: int) -> Inputs:
        *tensors, _ = draw(3, 20, 9, 7, seed)
        return [*tensors, torch.tensor(scale)]

    assert_parity(fk.attention_pool, sample, {"trunks": 3}, "triton", draws=4)


def test_one_frame_takes_all_weight_and_its_score_has_no_gradient() -> None:
    inputs = leaves(draw(2, 21, 5, 3))
    lengths = torch.tensor([1, 1])
    results = fk.attention_pool(*inputs, trunks=2, lengths=lengths, backend="triton")
    assert results[2].tolist() == [[1.0] + [0.0] * 20] * 2
    assert torch.equal(results[0], inputs[0][:, 0])
    gradients = torch.autograd.grad([t.square().sum() for t in results], inputs)
    for name, gradient in zip(INPUTS[1:], gradients[1:], strict=True):
        assert not gradient.any(), name


def test_padding_and_empty_rows_are_exactly_0_whatever_they_hold() -> None:
    lengths = torch.tensor([0, 5, 16, 17, 33])
    dead = torch.arange(33) >= lengths[:, None]
    found = []
    for filler in (0.0, torch.nan, torch.inf):
        tensors = draw(5, 33, 6, 4)
        tensors[0][dead] = filler
        inputs = leaves(tensors)
        results = fk.attention_pool(*inputs, trunks=3, lengths=lengths, backend="triton")
        # NaN as the gradient of a weight that is 0 by definition must not count either.
        cotangents = [torch.ones_like(t) for t in results]
        cotangents[2] = torch.where(dead, torch.nan, torch.linspace(0, 1, 33))
        found.append([*results, *torch.autograd.grad(results, inputs, cotangents)])
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
    pooled, trunk_pooled, weights, dx = found[0][:4]
    assert not pooled[0].any()
    assert not trunk_pooled[0].any()
    assert not weights[dead].any()
    assert not dx[dead].any()
    torch.testing.assert_close(weights.sum(1), (lengths > 0).float())


def test_a_batch_of_none_and_clips_of_no_frames() -> None:
    for B, T in ((0, 5), (2, 0)):
        inputs = leaves(draw(B, T, 3, 2))
        with launch.counted() as names:
            results = fk.attention_pool(*inputs, trunks=2, backend="triton")
        assert [t.shape for t in results] == [(B, 3), (B, 2, 3), (B, T)]
        assert not any(t.any() for t in results)
        gradients = torch.autograd.grad([t.sum() for t in results], inputs)
        assert [g.shape for g in gradients] == [t.shape for t in inputs]
        assert not any(g.any() for g in gradients)
        assert names == (FORWARD if B else [])


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("used", [("pooled",), RESULTS])
def test_all_is_written_and_the_same_bits_again(used: tuple[str, ...]) -> None:
    assert torch.empty(3).isnan().all()
    lengths = torch.tensor([33, 0, 15, 16, 17])

    def run() -> list[Tensor]:
        inputs = leaves(draw(5, 40, 18, 17))
        results = using(*used)(*inputs, trunks=9, lengths=lengths, backend="triton")
        total = sum(t.square().sum() for t in results if t.requires_grad)
        return [*results, *torch.autograd.grad(total, inputs)]

    for first, second in zip(run(), run(), strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("due", "launched"),
    [
        (INPUTS, BACKWARD),
        (("x",), BACKWARD[:2]),
        (("weight",), BACKWARD),
        (("bias", "scale"), BACKWARD),
        (("query",), BACKWARD),
    ],
)
def test_only_what_is_due_is_computed(due: tuple[str, ...], launched: list[str]) -> None:
    tensors = draw(2, 20, 5, 17)
    inputs = [
        t.detach().requires_grad_(name in due) for name, t in zip(INPUTS, tensors, strict=True)
    ]
    wanted = [t for t in inputs if t.requires_grad]
    with launch.counted() as names:
        results = fk.attention_pool(*inputs, trunks=3, backend="triton")
    assert names == FORWARD
    with launch.counted() as names:
        got = torch.autograd.grad(results[1].sum() + results[2].square().sum(), wanted)
    assert names == launched
    reference = fk.attention_pool(*inputs, trunks=3, backend="reference")
    want = torch.autograd.grad(reference[1].sum() + reference[2].square().sum(), wanted)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_is_the_hidden_layer_or_nothing(keep: bool) -> None:
    lengths = torch.tensor([20, 7])
    kept: list[Tensor] = []
    inputs = leaves(draw(2, 20, 5, 3, padding=lengths))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        results = fk.attention_pool(
            *inputs, trunks=3, lengths=lengths, backend="triton", keep_hidden=keep
        )
    own = {t.data_ptr() for t in (*inputs, lengths, results[2])}
    hidden = [t for t in kept if t.data_ptr() not in own]
    if keep:
        x, weight, bias = (t.detach() for t in inputs[:3])
        want = torch.tanh(x @ weight + bias)
        want[1, 7:] = 0
        torch.testing.assert_close(hidden, [want])
    else:
        assert not hidden
    with torch.no_grad():
        results = fk.attention_pool(*inputs, backend="triton", keep_hidden=keep)
        assert not results[0].requires_grad


def test_gradients_of_any_strides() -> None:
    inputs = leaves(draw(3, 20, 5, 4))
    results = fk.attention_pool(*inputs, trunks=2, backend="triton")
    plain = [torch.randn(t.shape) for t in results]
    spread = [plain[0].t().contiguous().t(), plain[1].transpose(0, 2).contiguous().transpose(0, 2)]
    want = torch.autograd.grad(results, inputs, plain, retain_graph=True)
    got = torch.autograd.grad(results, inputs, [*spread, strided(plain[2], "sliced")])
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


@triton.jit
def _apply_tanh(x, y, slope, TILE: tl.constexpr):
    at = tl.arange(0, TILE)
    value, derivative = kernels._tanh(tl.load(x + at))
    tl.store(y + at, value)
    tl.store(slope + at, derivative)


def test_tanh_is_right_to_a_unit_in_the_last_place() -> None:
    magnitudes = torch.cat([torch.logspace(-30, 1.5, 4096), torch.linspace(0, 3, 4096)])
    x = torch.cat([magnitudes, -magnitudes])
    y, slope = torch.empty_like(x), torch.empty_like(x)
    _apply_tanh[(1,)](x, y, slope, TILE=x.numel())
    eps = torch.finfo(torch.float32).eps
    truth = x.double().tanh()
    assert ((y.double() - truth).abs() <= eps * truth.abs()).all()
    derivative = x.double().cosh().square().reciprocal()
    # Relative, where 1 - tanh^2 has no digit left too.
    allowed = 4 * eps * derivative
    assert ((slope.double() - derivative).abs() <= allowed).all()
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    y, slope = torch.empty(4), torch.empty(4)
    _apply_tanh[(1,)](special, y, slope, TILE=4)
    assert y[:3].tolist() == [0.0, 1.0, -1.0]
    assert slope[:3].tolist() == [1.0, 0.0, 0.0]
    assert y[3].isnan()


# As PyTorch sees it


def record(used: tuple[str, ...]) -> list[tuple[Any, tuple[Any, ...]]]:
    inputs = leaves(draw(2, 5, 4, 3))
    recorder = Recorder()
    with recorder:
        results = using(*used)(*inputs, lengths=torch.tensor([5, 2]), backend="triton")
        sum(t.sum() for t in results).backward()
    return recorder.calls


@pytest.mark.parametrize("used", [RESULTS, ("trunk_pooled",)])
def test_opcheck(used: tuple[str, ...]) -> None:
    (forward, arguments), (backward, backward_arguments) = record(used)
    absent = [g is None for g in backward_arguments[:3]]
    assert absent == [name not in used for name in RESULTS]
    again = [
        t.detach().clone().requires_grad_()
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for t in arguments
    ]
    torch.library.opcheck(forward, tuple(again))
    detached = [t.detach().clone() if isinstance(t, Tensor) else t for t in backward_arguments]
    torch.library.opcheck(
        backward,
        tuple(detached),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("used", [RESULTS, ("pooled",)])
def test_compiles_without_a_graph_break(used: tuple[str, ...]) -> None:
    torch.compiler.reset()
    inputs = leaves(draw(3, 20, 5, 4))
    lengths = torch.tensor([20, 0, 7])

    def call(*tensors: Tensor) -> Tensor:
        results = fk.attention_pool(*tensors, trunks=3, lengths=lengths, backend="triton")
        parts = [t.square().sum() for n, t in zip(RESULTS, results, strict=True) if n in used]
        return torch.stack(parts).sum()

    compiled = torch.compile(call, fullgraph=True)
    want, got = call(*inputs), compiled(*inputs)
    torch.testing.assert_close(got, want)
    for x, y in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_exports() -> None:
    module = fk.AttentionPool(5, 3, trunks=2, scale=1.5, backend="triton")
    x, lengths = torch.randn(2, 20, 5), torch.tensor([20, 3])
    exported = torch.export.export(module, (x, lengths))
    for got, want in zip(exported.module()(x, lengths), module(x, lengths), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_a_call_in_the_low_dtype(dtype: torch.dtype) -> None:
    inputs = leaves(draw(2, 20, 5, 4))  # scale stays as it is: it is no operand of a product
    low = [t.detach().to(dtype).requires_grad_() for t in inputs[:4]] + leaves(inputs[4:])
    with torch.autocast("cpu", dtype=dtype):
        got = fk.attention_pool(*inputs, trunks=2, backend="triton")
    want = fk.attention_pool(*low, trunks=2, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    gradients = torch.autograd.grad([t.sum() for t in got], inputs)
    expected = torch.autograd.grad([t.sum() for t in want], low)
    assert all(g.dtype == torch.float32 for g in gradients)
    assert all(torch.equal(x, y.float()) for x, y in zip(gradients, expected, strict=True))


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (torch.ones(1), ValueError, r"scale has shape \(1,\), expected \(\)"),
        (torch.tensor(1), TypeError, "scale is torch.int64, expected one of"),
        (torch.ones((), device="meta"), ValueError, "scale is on meta, expected cpu"),
    ],
)
def test_a_scale_that_does_not_fit(scale: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fk.attention_pool(*draw(2, 5, 3, 2)[:4], scale)
