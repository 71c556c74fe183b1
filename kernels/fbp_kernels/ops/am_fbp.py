"""Adaptive, multi-level factorized bilinear pooling: global and per-trunk in one call."""

from torch import Tensor

from . import _bilinear


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


_call = _bilinear.Pooling(
    "am_fbp",
    once=("a", "v", "p", "q"),
    each=("a_trunks", "v_trunks", "p_trunks", "q_trunks"),
)
