"""Batch normalisation with the statistics of the batch, for padded clips too, with an optional ReLU after it."""

from typing import Any

import torch
from torch import Tensor

from .. import backends, native, reference
from . import _check, _layout, _operator


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    lengths: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) * weight + bias of every channel, then a ReLU if asked for.

    Ioffe and Szegedy 2015 (https://arxiv.org/abs/1502.03167), in training. With `lengths`, only the first
    lengths[n] of the last dimension count in row n, whatever stands after them; there the result is 0 and so is
    the gradient. So a row's result does not depend on how far it is padded.

    Args:
        x: (N, C, *), at least one dimension after the channels; float32, float64, bfloat16 or float16.
        weight: (C,), float32 (float64 for a float64 x), or the dtype of x.
        bias: likewise.
        lengths: int64 or int32 (N,), from 0 to the size of the last dimension; None means that all counts.
        eps: added to the variance.
        relu: end with a ReLU.
        backend: as in `fbp`.

    Returns:
        The result, like x, memory format included; and the mean and the variance (divided by the number of
        values, not by one less) of every channel, (C,), float32 (float64 for float64), without gradients. Both
        are 0 where nothing counts.

    Raises:
        TypeError: a dtype that is not supported; lengths that are no integers.
        ValueError: shapes, devices, lengths or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check.tensors("batch_norm", x=x)
    _check.tensors("batch_norm", weight=weight, bias=bias)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if weight.dtype not in (x.dtype, wide):
        expected = f"expected {wide} or that of x, {x.dtype}"
        raise TypeError(f"batch_norm: weight is {weight.dtype}, {expected}")
    parameters = (weight.to(wide), bias.to(wide))
    tensors = (_layout.readable(x), *parameters, _check.as_int64(lengths))
    y, mean, var = _call(tensors, (eps, relu), backend)
    return y, mean.to(wide), var.to(wide)


def _check_all(tensors: tuple[Any, ...], _: Any) -> None:
    x, weight, bias, lengths = tensors
    _check.channels("batch_norm", x)
    _check.shapes("batch_norm", {"weight": weight, "bias": bias}, ("C", "C"), C=x.shape[1])
    _check.devices("batch_norm", x=x, weight=weight, bias=bias)
    _check.lengths("batch_norm", lengths, x, x.shape[-1])


def _fake(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (torch.empty_like(weight, dtype=torch.float64) for _ in range(2))
    return torch.empty_like(x), mean, var


_call = _operator.Operator(
    "batch_norm",
    inputs=("Tensor x", "Tensor weight", "Tensor bias"),
    extras=("Tensor? lengths",),
    attributes=("float eps", "bool relu"),
    check=_check_all,
    kept=2,  # mean and variance, in float64; users see them too
    fake=_fake,
    reference=reference.batch_norm,
    fake_gradient=torch.empty_like,
).register(
    native=backends.Kernel(native.raw("batch_norm_forward"), native.raw("batch_norm_backward"))
)
