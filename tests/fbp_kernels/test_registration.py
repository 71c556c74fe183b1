"""The operators as PyTorch sees them: opcheck, compile, export, autocast, what is kept, dropout."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import fbp_kernels as fk
from tests.marks import slow

from .checks import fused, pairs


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def call_fbp(backend: str, **options: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [leaf(5, 6), leaf(5, 7), leaf(6, 12), leaf(7, 12), leaf(12), leaf(12)]

    def call(a: Tensor, v: Tensor, p: Tensor, q: Tensor, pb: Tensor, qb: Tensor) -> Tensor:
        return fk.fbp(
            a, v, p, q, 3, p_bias=pb, q_bias=qb, adaptive=True, backend=backend, **options
        )

    return call, inputs


def call_trunk_fbp(backend: str, **options: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [leaf(5, 4, 6), leaf(5, 4, 7), leaf(4, 6, 12), leaf(4, 7, 12)]
    lengths = torch.tensor([4, 0, 2, 1, 3])

    def call(a: Tensor, v: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return fk.trunk_fbp(a, v, p, q, 4, lengths=lengths, backend=backend, **options)

    return call, inputs


def call_am_fbp(backend: str, **options: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [
        leaf(5, 6), leaf(5, 7), leaf(5, 4, 6), leaf(5, 4, 7),
        leaf(6, 10), leaf(7, 10), leaf(4, 6, 12), leaf(4, 7, 12),
    ]  # fmt: skip

    def call(*tensors: Tensor) -> Tensor:
        return fk.am_fbp(*tensors, 5, 3, backend=backend, **options)

    return call, inputs


def call_local_response_norm(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda x: fk.local_response_norm(x, relu=True, backend=backend), [leaf(2, 7, 3, 4)]


def call_power_normalize(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda z: fk.power_normalize(z, backend=backend).cumsum(-1), [leaf(3, 8)]


def call_attention_pool(backend: str, **options: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    lengths = torch.tensor([5, 0, 3])

    def call(*tensors: Tensor) -> Tensor:
        pooled, trunk_pooled, weights = fk.attention_pool(
            *tensors, trunks=2, lengths=lengths, backend=backend, **options
        )
        return pooled + trunk_pooled[:, 1] + weights.square().sum(1, keepdim=True)

    return call, [leaf(3, 5, 4), leaf(4, 2), leaf(2), leaf(2), leaf()]


def call_batch_norm(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    lengths = torch.tensor([4, 2])

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, mean, var = fk.batch_norm(x, weight, bias, lengths=lengths, relu=True, backend=backend)
        return y + (mean * var)[:, None, None]

    return call, [leaf(2, 7, 3, 4), leaf(7), leaf(7)]


def call_dropout(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    state = torch.Generator().manual_seed(2).get_state().view(torch.int64)
    return lambda x: fk.dropout(x, 0.3, state=state, backend=backend), [leaf(5, 7)]


def call_conv2d(backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    inputs = [leaf(2, 3, 6, 5), leaf(4, 3, 3, 3), leaf(4)]
    return lambda *t: fk.conv2d(*t, stride=(2, 1), padding=1, backend=backend), inputs


BILINEAR = {"fbp": call_fbp, "trunk_fbp": call_trunk_fbp, "am_fbp": call_am_fbp}
OPERATORS = {
    **BILINEAR,
    "conv2d": call_conv2d,
    "dropout": call_dropout,
    "local_response_norm": call_local_response_norm,
    "batch_norm": call_batch_norm,
    "attention_pool": call_attention_pool,
    "power_normalize": call_power_normalize,
}
# The interpreter takes seconds for these, and `fbp` goes the same way.
INTERPRETED = [pair for pair in pairs(("trunk_fbp", "am_fbp")) if pair[1] == "triton"]


def results(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    z = call(*inputs)
    return [z, *torch.autograd.grad(z.square().sum(), inputs)]


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the calls of the registered operators, as they reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fbp_kernels" and func.name() != "fbp_kernels::check_lengths":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("operator", "backend"), slow(pairs(OPERATORS), *INTERPRETED))
def test_opcheck(operator: str, backend: str) -> None:
    call, inputs = OPERATORS[operator](backend)
    recorder = Recorder()
    with recorder:
        call(*inputs).sum().backward()
    assert [func.name() for func, _ in recorder.calls] == [
        f"fbp_kernels::{operator}_forward",
        f"fbp_kernels::{operator}_backward",
    ]
    # What tracers record with differentiable inputs; the raw operators, which have no formula of their own, without.
    (_, arguments), *raw = recorder.calls
    again = [
        t.detach().clone().requires_grad_()
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for t in arguments
    ]
    torch.library.opcheck(getattr(torch.ops.fbp_kernels, operator).default, tuple(again))
    for func, arguments in raw:
        detached = [t.detach().clone() if isinstance(t, Tensor) else t for t in arguments]
        torch.library.opcheck(
            func,
            tuple(detached),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "backend"), pairs(OPERATORS, torch.float32, "reference"))
def test_compiles_without_a_graph_break(operator: str, backend: str) -> None:
    torch.compiler.reset()
    call, inputs = OPERATORS[operator](backend)
    compiled = torch.compile(call, fullgraph=True)
    dtype = torch.float32 if backend == "triton" else torch.float64
    inputs = [t.detach().to(dtype).requires_grad_() for t in inputs]
    for got, want in zip(results(compiled, inputs), results(call, inputs), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("backend", fused("fbp"))
def test_a_compiled_call_serves_changing_batch_sizes(backend: str) -> None:
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    p, q = leaf(6, 12), leaf(7, 12)
    compiled = torch.compile(
        lambda a, v: fk.fbp(a, v, p, q, 3, backend=backend), fullgraph=True, backend=counter
    )
    for B in (5, 9, 17, 33):
        a, v = torch.randn(B, 6), torch.randn(B, 7)
        torch.testing.assert_close(compiled(a, v), fk.fbp(a, v, p, q, 3, backend="reference"))
    assert counter.frame_count <= 2, "one static graph, then one for any batch size"


@pytest.mark.parametrize("backend", [*fused("am_fbp"), "reference"])
def test_exports(backend: str) -> None:
    module = fk.AdaptiveMultiLevelFBP(6, 7, 2, 5, 4, 3, 4, backend=backend).eval()
    inputs = tuple(t.detach() for t in call_am_fbp(backend)[1][:4])
    exported = torch.export.export(module, inputs)
    torch.testing.assert_close(exported.module()(*inputs), module(*inputs))


@pytest.mark.parametrize(("operator", "backend"), pairs(BILINEAR, torch.float32, "reference"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_a_call_in_the_low_dtype(
    operator: str, backend: str, dtype: torch.dtype
) -> None:
    call, inputs = BILINEAR[operator](backend)
    with torch.autocast("cpu", dtype=dtype):
        got = results(call, inputs)
    assert got[0].dtype == dtype
    assert all(g.dtype == torch.float32 for g in got[1:])
    low = [t.detach().to(dtype).requires_grad_() for t in inputs]
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(got[0], call(*low), **tolerance)


@pytest.mark.parametrize("backend", [*fused("attention_pool"), "reference"])
def test_autocast_leaves_the_scale_of_attention_alone(backend: str) -> None:
    """Which may be of any dtype, and loses 0.9 in bfloat16."""
    *inputs, _ = (t.detach() for t in call_attention_pool(backend)[1])
    scale = torch.tensor(300.9)
    with torch.autocast("cpu", torch.bfloat16):
        got = fk.attention_pool(*inputs, scale, trunks=2, backend=backend)
    low = [t.bfloat16() for t in inputs]
    want = fk.attention_pool(*low, scale, trunks=2, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def saved_bytes(call: Callable[..., Tensor], inputs: list[Tensor]) -> int:
    """Bytes kept for the backward beyond the inputs themselves."""
    own = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call(*inputs)
    return sum(kept.values())


@pytest.mark.parametrize(("operator", "backend"), slow(pairs(BILINEAR), *INTERPRETED))
def test_what_is_kept_for_the_backward_is_what_was_chosen(operator: str, backend: str) -> None:
    projections = {"fbp": 2 * 5 * 12, "trunk_fbp": 2 * 5 * 4 * 12, "am_fbp": 2 * 5 * (10 + 4 * 12)}
    call, inputs = BILINEAR[operator](backend, keep_projections=True)
    assert saved_bytes(call, inputs) == 4 * projections[operator]
    call, _ = BILINEAR[operator](backend, keep_projections=False)
    assert saved_bytes(call, inputs) == 0
    kept = call_results = results(BILINEAR[operator](backend, keep_projections=True)[0], inputs)
    for got, want in zip(results(call, inputs), kept, strict=True):
        torch.testing.assert_close(got, want)
    assert call_results[0].requires_grad


@pytest.mark.parametrize("backend", fused("attention_pool"))
def test_the_hidden_layer_is_kept_where_that_was_chosen(backend: str) -> None:
    weights, hidden = 4 * 3 * 5, 4 * 3 * 5 * 2
    found = []
    torch.manual_seed(0)
    inputs = call_attention_pool(backend)[1]
    for keep, expected in ((None, weights + hidden), (True, weights + hidden), (False, weights)):
        call, _ = call_attention_pool(backend, keep_hidden=keep)
        assert saved_bytes(call, inputs) == expected
        found.append(results(call, inputs))
    for kept, recomputed in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_the_default_computes_a_large_hidden_layer_again() -> None:
    limit = fk.ops._operator.KEEP_LIMIT
    for frames, kept in ((64, True), (limit // (4 * 512) + 1, False)):
        inputs = [leaf(1, frames, 1), leaf(1, 512), leaf(512), leaf(512)]
        call = lambda *t: fk.attention_pool(*t, 1.0, backend="native")[0]  # noqa: E731
        assert saved_bytes(call, inputs) == 4 * frames * (1 + 512 * kept)


def test_the_default_keeps_small_projections_and_recomputes_large_ones() -> None:
    """Chosen before the backend is called, so one backend shows it; the quick one."""
    limit = fk.ops._operator.KEEP_LIMIT
    for rows, expected in ((64, True), (limit // (2 * 4 * 5120) + 1, False)):
        inputs = [leaf(rows, 2), leaf(rows, 2), leaf(2, 5120), leaf(2, 5120)]
        call = lambda *t: fk.fbp(*t, 5, backend="native")  # noqa: E731
        assert (saved_bytes(call, inputs) > 0) == expected


@pytest.mark.parametrize("backend", fused("fbp"))
def test_only_the_gradients_that_are_due_are_computed(backend: str) -> None:
    inputs = [torch.randn(4, 3), leaf(4, 5), torch.randn(3, 6), leaf(5, 6)]
    recorder = Recorder()
    with recorder:
        fk.fbp(*inputs, 2, backend=backend).sum().backward()
    needs = recorder.calls[-1][1][-2]
    assert needs == 0b1010
    assert inputs[0].grad is None
    assert inputs[1].grad is not None


@pytest.mark.parametrize("backend", fused("fbp"))
def test_no_gradient_no_projections(backend: str) -> None:
    call, inputs = call_fbp(backend)
    recorder = Recorder()
    with recorder, torch.no_grad():
        call(*inputs)
    assert recorder.calls[0][1][-2] is False, "keep"


@pytest.mark.parametrize(
    ("operator", "backend"), slow(pairs(BILINEAR, torch.float32, "reference"), *INTERPRETED)
)
def test_dropout_follows_the_generator_and_rests_in_evaluation(operator: str, backend: str) -> None:
    def run(seed: int, training: bool = True) -> list[Tensor]:
        torch.manual_seed(seed)
        return results(BILINEAR[operator](backend, dropout=0.5, training=training)[0], inputs)

    inputs = BILINEAR[operator](backend)[1]
    same = zip(run(1), run(1), strict=True)
    assert all(torch.equal(x, y) for x, y in same)
    assert not torch.equal(run(1)[0], run(2)[0])
    plain = results(BILINEAR[operator](backend)[0], inputs)
    assert all(torch.equal(x, y) for x, y in zip(run(1, training=False), plain, strict=True))
    resting, _ = BILINEAR[operator](backend, dropout=0.5, training=False)
    state = torch.get_rng_state()
    resting(*inputs)
    assert torch.equal(state, torch.get_rng_state()), "evaluation draws nothing"


def test_a_call_does_not_infer_what_arguments_there_are() -> None:
    """`torch.autograd.Function.apply` would in every call, which took a third of it."""
    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")

    x = torch.randn(1, 2, 3, requires_grad=True)
    fk.local_response_norm(x)
    sys.setprofile(note)
    try:
        fk.local_response_norm(x).sum().backward()
    finally:
        sys.setprofile(None)
    assert {"inspect.signature", "function.apply", "_operator.bind"} <= entered
    assert not {"inspect._signature_from_function", "inspect._bind"} & entered
