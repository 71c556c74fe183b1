"""Self-attention over frames, pooled over the whole clip and over each trunk of it."""

import torch
from torch import Tensor

from .. import backends, reference
from . import _check, _operator


def attention_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: float | Tensor,
    *,
    trunks: int = 1,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighs the frames by softmax(scale * tanh(x weight + bias) query) and sums them up.

    The attention of Zhou, Du et al. 2021 (https://arxiv.org/abs/2111.08910). Trunk h of a row of n frames has the
    frames floor(h n / H) to floor((h + 1) n / H), so the trunks share the frames out and their sums add up to
    the sum over the clip.

    Args:
        x: (B, T, C), float32, float64, bfloat16 or float16, as all tensors here; any strides.
        weight: (C, A).
        bias: (A,).
        query: (A,).
        scale: factor of the scores (lambda), a number or a scalar tensor.
        trunks: H.
        lengths: int64 or int32 (B,), n of each row, whatever the frames after hold; None means T.
        backend: as in `fbp`.

    Returns:
        The sum over the clip (B, C), the sums over the trunks (B, H, C) and the weights (B, T), which are 0 from
        frame n on and everywhere in a row without frames.

    Raises:
        TypeError: dtypes that are not supported or differ; lengths that are no integers.
        ValueError: shapes, devices, trunks, lengths or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    x, weight, bias, query = _operator.autocast(x, weight, bias, query)
    _check.tensors("attention_pool", x=x, weight=weight, bias=bias, query=query)
    _check.shape("attention_pool", "x", x, B=None, T=None, C=None)
    _check.shape("attention_pool", "weight", weight, C=x.shape[2], A=None)
    _check.shape("attention_pool", "bias", bias, A=weight.shape[1])
    _check.shape("attention_pool", "query", query, A=weight.shape[1])
    lengths = _check.lengths("attention_pool", lengths, x.shape[0], x.shape[1], x.device)
    if trunks < 1:
        raise ValueError(f"attention_pool: trunks is {trunks}, expected at least 1")
    backends.resolve("attention_pool", backend, x.device.type, x.dtype)
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=x.dtype, device=x.device)
    results: tuple[Tensor, Tensor, Tensor] = _call(x, weight, bias, query, scale, trunks, lengths)
    return results


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: Tensor,
    trunks: int,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.attention_pool(x, weight, bias, query, scale, trunks=trunks, lengths=lengths)


_call = _operator.register_composite(
    "attention_pool(Tensor x, Tensor weight, Tensor bias, Tensor query, Tensor scale,"
    " SymInt trunks, Tensor? lengths) -> (Tensor, Tensor, Tensor)",
    _reference,
)
