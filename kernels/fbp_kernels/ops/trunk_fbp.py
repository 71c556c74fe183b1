"""Per-trunk factorized bilinear pooling."""

from torch import Tensor

from . import _bilinear


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


_call = _bilinear.Pooling("trunk_fbp", each=_bilinear.NAMES)
