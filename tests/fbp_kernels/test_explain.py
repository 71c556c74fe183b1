"""What `explain` says is what a call does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fbp_kernels as fk
from fbp_kernels import backends
from fbp_kernels.ops._operator import KEEP_LIMIT

from .checks import fused
from .test_arguments import BAD, am_arguments, norm_arguments, trunk_arguments
from .test_backends import CALLS
from .test_registration import Recorder


def test_a_plain_call_of_a_native_kernel() -> None:
    got = fk.explain("am_fbp", **am_arguments())
    assert (got.operator, got.backend, got.dtype) == ("am_fbp", "native", torch.float32)
    assert got.device == torch.device("cpu")
    assert got.because.startswith(
        "the first of native, reference, triton that can run this call; with "
    )
    assert got.kernel == f"C++ for {torch.ops.fbp_native.cpu_isa()}"
    assert got.kept == "not kept: no gradient is due"
    assert got.copies == ()
    assert got.threads == torch.get_num_threads()
    assert not got.autocast
    assert got.others["reference"] == "native comes first"
    assert "triton" in got.others


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize("backend", [None, *backends.BACKENDS])
def test_every_operator_on_every_backend(operator: str, backend: str | None) -> None:
    if backend not in (None, "reference", *fused(operator)):
        with pytest.raises(RuntimeError, match=f"{operator} cannot run on backend '{backend}'"):
            fk.explain(operator, *CALLS[operator], backend=backend)
        return
    got = fk.explain(getattr(fk, operator), *CALLS[operator], backend=backend)
    inputs = [t for t in CALLS[operator] if isinstance(t, torch.Tensor)]
    assert got.backend == backends.resolve(operator, backend, "cpu", torch.float32, inputs)
    assert ("asks for it" in got.because) == (backend is not None)
    assert set(got.others) == set(backends.BACKENDS) - {got.backend}
    text = str(got)
    assert text.startswith(f"{operator}\n  backend")
    assert got.because in text
    if backend == "triton":
        assert f"{operator.replace('am_fbp', 'fbp').replace('trunk_', '')}_forward" in got.kernel
        assert "on interpreter" in got.kernel
    if backend == "reference":
        assert got.kernel == f"fbp_kernels.reference.{operator}"


def test_the_environment_is_given_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBP_BACKEND", "reference")
    assert fk.explain("fbp", *CALLS["fbp"]).because.startswith("the environment variable FBP_BACK")
    assert fk.explain("fbp", *CALLS["fbp"], backend="native").because.startswith("the argument")
    monkeypatch.setenv("FBP_BACKEND", "native")
    monkeypatch.setenv("FBP_CPU_ISA", "portable")
    kernel = fk.explain("fbp", *CALLS["fbp"]).kernel
    assert kernel == "C++ for portable (the environment variable FBP_CPU_ISA)"


@pytest.mark.parametrize(
    ("operator", "arguments", "error", "message"), BAD, ids=[message[:30] for *_, message in BAD]
)
def test_bad_arguments_raise_what_the_operator_raises(
    operator: Callable[..., Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fk.explain(operator, **arguments)


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(ValueError, match="the operator is 'mfb', expected one of am_fbp, "):
        fk.explain("mfb", torch.ones(1))
    with pytest.raises(ValueError, match="expected one of am_fbp, "):
        fk.explain(fk.reference.fbp, *CALLS["fbp"])


def with_gradients(rows: int = 4) -> tuple[Tensor, ...]:
    shapes = (rows, 2), (rows, 3), (2, 5120), (3, 5120)
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


@pytest.mark.parametrize("rows", [4, KEEP_LIMIT // (2 * 4 * 5120) + 1])
@pytest.mark.parametrize("keep", [None, True, False])
def test_projections_are_kept_as_it_says(rows: int, keep: bool | None) -> None:
    inputs = with_gradients(rows)
    got = fk.explain("fbp", *inputs, 5, keep_projections=keep, backend="native").kept
    recorder = Recorder()
    with recorder:
        fk.fbp(*inputs, 5, keep_projections=keep, backend="native")
    kept = recorder.calls[0][1][-2]
    assert got.startswith("kept for the backward" if kept else "recomputed in the backward")
    reason = f"keep_projections is {keep}" if keep is not None else "the two take "
    assert reason in got
    with torch.no_grad():
        assert "no gradient" in fk.explain("fbp", *inputs, 5, keep_projections=keep).kept


@pytest.mark.parametrize("frames", [4, KEEP_LIMIT // (4 * 512) + 1])
@pytest.mark.parametrize("keep", [None, True, False])
def test_the_hidden_layer_is_kept_as_it_says(frames: int, keep: bool | None) -> None:
    shapes = (1, frames, 1), (1, 512), (512,), (512,)
    inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    got = fk.explain("attention_pool", *inputs, 1.0, keep_hidden=keep, backend="native").kept
    expected = frames == 4 if keep is None else keep
    assert got.startswith("kept for the backward" if expected else "recomputed in the backward")
    assert (f"keep_hidden is {keep}" if keep is not None else "it takes ") in got
    with torch.no_grad():
        assert "no gradient" in fk.explain("attention_pool", *inputs, 1.0).kept
    assert not fk.explain("local_response_norm", torch.ones(1, 2, 3, 4)).kept


def test_copies_are_named() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert fk.explain("local_response_norm", x).copies == ()
    assert (
        fk.explain("local_response_norm", x.contiguous(memory_format=torch.channels_last)).copies
        == ()
    )
    strided = fk.explain("local_response_norm", x.transpose(1, 3)).copies
    assert strided == ("x: the kernels do not read its strides",)
    turned = [t.mT if isinstance(t, Tensor) else t for t in trunk_arguments().values()]
    a, v, p, q, factor = turned
    assert fk.explain("trunk_fbp", a.mT, v.mT, p.contiguous().mT, q.mT, factor).copies == ()


def test_autocast_is_told_with_what_it_converts() -> None:
    lengths = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fk.explain("am_fbp", **am_arguments(lengths=lengths))
        norm = fk.explain("batch_norm", **norm_arguments())
    assert (got.dtype, got.autocast) == (torch.bfloat16, True)
    assert got.copies[0] == "a: made bfloat16"
    assert len(got.copies) == 8
    assert (norm.dtype, norm.autocast) == (torch.float32, False)


def test_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: Any) -> Any:
        raise AssertionError("a kernel was called")

    monkeypatch.setattr(backends, "kernel", kernel)
    state = torch.get_rng_state()
    # 2e14 products would take minutes; the inputs are one number each.
    large = [torch.ones(1).expand(shape) for shape in ((2**17, 4096), (2**17, 4096))]
    weights = [torch.ones(1).expand(4096, 2**16) for _ in range(2)]
    for backend in ("native", "reference"):
        got = fk.explain("fbp", *large, *weights, 4, dropout=0.5, training=True, backend=backend)
        assert got.backend == backend
    assert torch.equal(state, torch.get_rng_state())
