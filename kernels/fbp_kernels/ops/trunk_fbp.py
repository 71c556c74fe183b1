"""Per-trunk factorized bilinear pooling."""

from typing import Any

from torch import Tensor

from .. import backends, native, reference, triton
from ..triton.levels import Level, Levels
from . import _bilinear, _check, _operator


def trunk_fbp(
    a: Tensor,
    v: Tensor,
    p: Tensor,
    q: Tensor,
    factor: int,
    *,
    p_bias: Tensor | None = None,
    q_bias: Tensor | None = None,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    keep_projections: bool | None = None,
) -> Tensor:
    """Per-trunk factorized bilinear pooling: over trunks h, the sum of SumPool_K((a_h p_h) * (v_h q_h)).

    M-FBP of Zhou, Du et al. 2021 (https://arxiv.org/abs/2111.08910). Every trunk has weights of its own.

    Args:
        a: (B, H, C), float32, float64, bfloat16 or float16, as all tensors here; any strides.
        v: (B, H, D).
        p: (H, C, N), N = O * K.
        q: (H, D, N).
        factor: K.
        p_bias: (H, N), added to the projections of a.
        q_bias: (H, N), added to the projections of v.
        lengths: int64 or int32 (B,): only the first lengths[b] trunks of row b count, whatever the others
            hold; None counts all.
        dropout: as in `fbp`.
        training: whether dropout applies.
        backend: as in `fbp`.
        keep_projections: as in `fbp`.

    Returns:
        (B, O), of the inputs' dtype; accumulated in float32 at least.

    Raises:
        TypeError: dtypes that are not supported or differ; lengths that are no integers.
        ValueError: shapes, devices, factor, lengths, dropout or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    return _call(
        (a, v, p, q, p_bias, q_bias), (lengths,), (factor, dropout),
        training, backend, keep_projections,
    )  # fmt: skip


def _check_arguments(inputs: Any, lengths: Any, attributes: Any) -> tuple[Tensor | None]:
    a, v, p, q, p_bias, q_bias = inputs
    factor, dropout = attributes
    _check.tensors("trunk_fbp", a=a, v=v, p=p, q=q, p_bias=p_bias, q_bias=q_bias)
    _bilinear.check_trunks(
        "trunk_fbp", None, ("a", a), ("v", v), ("p", p), ("q", q),
        ("p_bias", p_bias), ("q_bias", q_bias),
    )  # fmt: skip
    _check.factor("trunk_fbp", "factor", factor, p.shape[2])
    _check.probability("trunk_fbp", dropout)
    return (_check.lengths("trunk_fbp", lengths[0], a.shape[0], a.shape[1], a.device),)


def _reference(*arguments: Any) -> Tensor:
    a, v, p, q, p_bias, q_bias, lengths, seed, factor, dropout = arguments
    return reference.trunk_fbp(
        a, v, p, q, factor,
        p_bias=p_bias, q_bias=q_bias, lengths=lengths, dropout=dropout, seed=seed,
    )  # fmt: skip


def _elements(a: Tensor, _: Tensor, p: Tensor, *__: Any) -> int:
    return a.shape[0] * p.shape[0] * p.shape[2]


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, lengths, _, factor, dropout, keep = arguments
    _check_arguments(inputs, (lengths,), (factor, dropout))
    a, _, p, *_ = inputs
    H, _, N = p.shape
    return a.new_empty(a.shape[0], N // factor), *_bilinear.projections(a, H, N, keep)


_pool, _pool_backward = triton.late("bilinear")


def _levels(*arguments: Any) -> Levels:
    a, v, p, q, p_bias, q_bias, lengths, factor = arguments
    return Levels(None, Level(a, v, p, q, p_bias, q_bias, lengths, factor, False))


def _triton(*arguments: Any) -> Any:
    *tensors, seed, factor, dropout, keep = arguments
    return _pool(_levels(*tensors, factor), seed, dropout, keep)


def _triton_backward(dz: Tensor, *arguments: Any) -> Any:
    *tensors, seed, u, w, factor, dropout, needs = arguments
    kept = () if u is None else (u, w)
    levels = _levels(*tensors, factor)
    (gradients,) = _pool_backward(dz, levels, seed, kept, dropout, (_bilinear.due(needs, 6),))
    return gradients


_registered = _operator.Operator(
    "trunk_fbp",
    inputs=("Tensor a", "Tensor v", "Tensor p", "Tensor q", "Tensor? p_bias", "Tensor? q_bias"),
    extras=("Tensor? lengths", "Tensor? seed"),
    attributes=("SymInt factor", "float dropout"),
    kept=2,
    kept_rows=1,
    fake=_fake,
    work=_bilinear.work,
    reference=_reference,
    rows=(0, 1, 6),
    seed=7,
    tangent=_bilinear.tangent(_bilinear.ONE_LEVEL),
).register(
    native=backends.Kernel(native.raw("trunk_fbp_forward"), native.raw("trunk_fbp_backward")),
    triton=backends.Kernel(_triton, _triton_backward),
)
_call = _bilinear.Pooling(_registered, _check_arguments, _reference, _elements)
