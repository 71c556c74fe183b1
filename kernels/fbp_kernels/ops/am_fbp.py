"""Adaptive, multi-level factorized bilinear pooling: global and per-trunk in one call."""

from typing import Any

from torch import Tensor

from .. import backends, native, reference, triton
from ..triton.levels import Level, Levels
from . import _bilinear, _check, _operator


def am_fbp(
    a: Tensor,
    v: Tensor,
    a_trunks: Tensor,
    v_trunks: Tensor,
    p: Tensor,
    q: Tensor,
    p_trunks: Tensor,
    q_trunks: Tensor,
    factor: int,
    trunk_factor: int,
    *,
    adaptive: bool = True,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
    backend: str | None = None,
    keep_projections: bool | None = None,
) -> Tensor:
    """Adaptive, multi-level FBP: `fbp` and `trunk_fbp` side by side.

    AM-FBP of Zhou, Du et al. 2021 (https://arxiv.org/abs/2111.08910).

    Args:
        a: (B, C), float32, float64, bfloat16 or float16, as all tensors here; any strides.
        v: (B, D).
        a_trunks: (B, H, C'), usually C' = C.
        v_trunks: (B, H, D').
        p: (C, O_G * K_G).
        q: (D, O_G * K_G).
        p_trunks: (H, C', O_M * K_M).
        q_trunks: (H, D', O_M * K_M).
        factor: K_G.
        trunk_factor: K_M.
        adaptive: as in `fbp`, for the global part.
        lengths: as in `trunk_fbp`.
        dropout: as in `fbp`; one draw from the generator gives the masks of both parts.
        training: whether dropout applies.
        backend: as in `fbp`.
        keep_projections: as in `fbp`, the limit applying to the projections of both parts together.

    Returns:
        (B, O_G + O_M), of the inputs' dtype; accumulated in float32 at least.

    Raises:
        TypeError: dtypes that are not supported or differ; lengths that are no integers.
        ValueError: shapes, devices, factors, lengths, dropout or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    return _call(
        (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks), (lengths,),
        (factor, trunk_factor, adaptive, dropout), training, backend, keep_projections,
    )  # fmt: skip


_INPUTS = ("a", "v", "a_trunks", "v_trunks", "p", "q", "p_trunks", "q_trunks")


def _check_arguments(inputs: Any, lengths: Any, attributes: Any) -> tuple[Tensor | None]:
    _check.tensors("am_fbp", **dict(zip(_INPUTS, inputs, strict=True)))
    a, v, a_trunks, _, p, q, p_trunks, _ = inputs
    factor, trunk_factor, _, dropout = attributes
    _bilinear.check_global("am_fbp", a, v, p, q)
    trunk_inputs = zip(_INPUTS[2:4] + _INPUTS[6:], inputs[2:4] + inputs[6:], strict=True)
    _bilinear.check_trunks("am_fbp", a.shape[0], *trunk_inputs)
    _check.factor("am_fbp", "factor", factor, p.shape[1])
    _check.factor("am_fbp", "trunk_factor", trunk_factor, p_trunks.shape[2])
    _check.probability("am_fbp", dropout)
    return (_check.lengths("am_fbp", lengths[0], a.shape[0], a_trunks.shape[1], a.device),)


def _reference(*arguments: Any) -> Tensor:
    a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, *rest = arguments
    lengths, seed, factor, trunk_factor, adaptive, dropout = rest
    return reference.am_fbp(
        a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, factor, trunk_factor,
        adaptive=adaptive, lengths=lengths, dropout=dropout, seed=seed,
    )  # fmt: skip


def _elements(a: Tensor, *rest: Any) -> int:
    _, _, _, p, _, p_trunks, _ = rest
    H, _, N = p_trunks.shape
    return a.shape[0] * (p.shape[1] + H * N)


def _work(a: Tensor, v: Tensor, *rest: Any) -> int:
    a_trunks, v_trunks, p, _, p_trunks, *_ = rest
    each = (a_trunks.numel() + v_trunks.numel()) * p_trunks.shape[-1]
    return (a.numel() + v.numel()) * p.shape[-1] + each


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    *inputs, lengths, _, factor, trunk_factor, adaptive, dropout, keep = arguments
    _check_arguments(inputs, (lengths,), (factor, trunk_factor, adaptive, dropout))
    a, _, _, _, p, _, p_trunks, _ = inputs
    N, (H, _, N_trunks) = p.shape[1], p_trunks.shape
    return (
        a.new_empty(a.shape[0], N // factor + N_trunks // trunk_factor),
        *_bilinear.projections(a, 1, N, keep),
        *_bilinear.projections(a, H, N_trunks, keep),
    )


_pool, _pool_backward = triton.late("bilinear")


def _levels(*arguments: Any) -> Levels:
    *inputs, lengths, factor, trunk_factor, adaptive = arguments
    a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks = inputs
    return Levels(
        Level(a, v, p, q, None, None, None, factor, adaptive),
        Level(a_trunks, v_trunks, p_trunks, q_trunks, None, None, lengths, trunk_factor, False),
    )


def _triton(*arguments: Any) -> Any:
    *inputs, lengths, seed, factor, trunk_factor, adaptive, dropout, keep = arguments
    levels = _levels(*inputs, lengths, factor, trunk_factor, adaptive)
    return _pool(levels, seed, dropout, keep)


def _triton_backward(dz: Tensor, *arguments: Any) -> Any:
    *tensors, factor, trunk_factor, adaptive, dropout, needs = arguments
    inputs, (lengths, seed), projections = tensors[:8], tensors[8:10], tensors[10:]
    levels = _levels(*inputs, lengths, factor, trunk_factor, adaptive)
    a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks = _bilinear.due(needs, 8)
    due = ((a, v, p, q, False, False), (a_trunks, v_trunks, p_trunks, q_trunks, False, False))
    kept = () if projections[0] is None else tuple(projections)
    once, each = _pool_backward(dz, levels, seed, kept, dropout, due)
    return (*once[:2], *each[:2], *once[2:4], *each[2:4])


_registered = _operator.Operator(
    "am_fbp",
    inputs=tuple(f"Tensor {name}" for name in _INPUTS),
    extras=("Tensor? lengths", "Tensor? seed"),
    attributes=("SymInt factor", "SymInt trunk_factor", "bool adaptive", "float dropout"),
    kept=4,
    kept_rows=1,
    fake=_fake,
    work=_work,
    reference=_reference,
    rows=(0, 1, 2, 3, 8),
    seed=9,
    tangent=_bilinear.tangent(tuple(((i, i + 2), ()) for i in (0, 1, 4, 5)), adaptive=2),
).register(
    native=backends.Kernel(native.raw("am_fbp_forward"), native.raw("am_fbp_backward")),
    triton=backends.Kernel(_triton, _triton_backward),
)
_call = _bilinear.Pooling(_registered, _check_arguments, _reference, _elements)
