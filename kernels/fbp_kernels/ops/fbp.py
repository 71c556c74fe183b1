"""Global factorized bilinear pooling."""

from typing import Any

from torch import Tensor

from .. import backends, native, reference, triton
from ..triton.levels import Level, Levels
from . import _bilinear, _check, _operator


def fbp(
    a: Tensor,
    v: Tensor,
    p: Tensor,
    q: Tensor,
    factor: int,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    adaptive: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    keep_projections: bool | None = None,
) -> Tensor:
    """Global factorized bilinear pooling: the sum over K of (a p + p_bias) * (v q + q_bias).

    MFB of Yu et al. 2017 (https://arxiv.org/abs/1708.01471); `adaptive` is AG-FBP of Zhou, Du et al. 2021
    (https://arxiv.org/abs/2111.08910). With N = O * K, column o * K + k is factor k of output o.

    Args:
        a: (B, C), float32, float64, bfloat16 or float16, as all tensors here; any strides.
        v: (B, D).
        p: (C, N).
        q: (D, N).
        factor: K.
        p_bias: (N,), added to the projection of a.
        q_bias: (N,), added to the projection of v.
        adaptive: replace a by mu a and v by eta v, where mu = |a| / (|a| + |v|) and
            eta = |v| / (|a| + |v|) by rows; gradients flow through both.
        dropout: probability with which an element of the product is dropped before the sum over K, in
            training; the rest is scaled by 1 / (1 - dropout). The mask follows from torch's generator.
        training: whether dropout applies.
        backend: "native", "triton", "reference", or None for the environment variable FBP_BACKEND, else the
            best that is there.
        keep_projections: keep both projections for the backward (True), recompute them there (False), or
            None for the default, which keeps them up to 64 MiB. The reference leaves this to PyTorch.

    Returns:
        (B, O), of the inputs' dtype; accumulated in float32 at least.

    Raises:
        TypeError: dtypes that are not supported or differ.
        ValueError: shapes, devices, factor, dropout or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    return _call(
        (a, v, p, q, p_bias, q_bias), (), (factor, adaptive, dropout),
        training, backend, keep_projections,
    )  # fmt: skip


def _check_arguments(inputs: Any, lengths: Any, attributes: Any) -> tuple[()]:
    a, v, p, q, p_bias, q_bias = inputs
    factor, _, dropout = attributes
    _check.tensors("fbp", a=a, v=v, p=p, q=q, p_bias=p_bias, q_bias=q_bias)
    _bilinear.check_global("fbp", a, v, p, q, ("p_bias", p_bias), ("q_bias", q_bias))
    _check.factor("fbp", "factor", factor, p.shape[1])
    _check.probability("fbp", dropout)
    return ()


def _reference(*arguments: Any) -> Tensor:
    a, v, p, q, p_bias, q_bias, seed, factor, adaptive, dropout = arguments
    return reference.fbp(
        a, v, p, q, factor,
        p_bias=p_bias, q_bias=q_bias, adaptive=adaptive, dropout=dropout, seed=seed,
    )  # fmt: skip


def _elements(a: Tensor, _: Tensor, p: Tensor, *__: Any) -> int:
    return a.shape[0] * p.shape[1]


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, _, factor, adaptive, dropout, keep = arguments
    _check_arguments(inputs, (), (factor, adaptive, dropout))
    a, _, p, *_ = inputs
    N = p.shape[1]
    return a.new_empty(a.shape[0], N // factor), *_bilinear.projections(a, 1, N, keep)


_pool, _pool_backward = triton.late("bilinear")


def _levels(*arguments: Any) -> Levels:
    a, v, p, q, p_bias, q_bias, factor, adaptive = arguments
    return Levels(Level(a, v, p, q, p_bias, q_bias, None, factor, adaptive), None)


def _triton(*arguments: Any) -> Any:
    *inputs, seed, factor, adaptive, dropout, keep = arguments
    return _pool(_levels(*inputs, factor, adaptive), seed, dropout, keep)


def _triton_backward(dz: Tensor, *arguments: Any) -> Any:
    *inputs, seed, u, w, factor, adaptive, dropout, needs = arguments
    kept = () if u is None else (u, w)
    levels = _levels(*inputs, factor, adaptive)
    (gradients,) = _pool_backward(dz, levels, seed, kept, dropout, (_bilinear.due(needs, 6),))
    return gradients


_registered = _operator.Operator(
    "fbp",
    inputs=("Tensor a", "Tensor v", "Tensor p", "Tensor q", "Tensor? p_bias", "Tensor? q_bias"),
    extras=("Tensor? seed",),
    attributes=("SymInt factor", "bool adaptive", "float dropout"),
    kept=2,
    kept_rows=1,
    fake=_fake,
    work=_bilinear.work,
    reference=_reference,
    rows=(0, 1),
    seed=6,
    tangent=_bilinear.tangent(_bilinear.ONE_LEVEL, adaptive=1),
).register(
    native=backends.Kernel(native.raw("fbp_forward"), native.raw("fbp_backward")),
    triton=backends.Kernel(_triton, _triton_backward),
)
_call = _bilinear.Pooling(_registered, _check_arguments, _reference, _elements)
