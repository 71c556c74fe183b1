"""Global factorized bilinear pooling."""

from torch import Tensor

from . import _bilinear


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


_call = _bilinear.Pooling("fbp", once=_bilinear.NAMES)
