"""Convolution of feature maps: PyTorch's own but for the gradient of the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends, native, reference
from . import _check, _operator

Sizes = tuple[int, ...]

_HALF = (torch.bfloat16, torch.float16)
_WITHOUT_HALF = ("avx2", "portable")  # of the instruction sets that kernels are built for


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    backend: str | None = None,
) -> Tensor:
    """What `torch.nn.functional.conv2d` computes without groups and dilation; LeCun et al. 1989 trained it so.

    The native kernel is one for the gradient of the weights, dW = sum over positions of dy^T patch(x). It reads x and
    dy channels last, and copies what lies otherwise. All else is PyTorch's own; half precision is computed in float32
    and rounded once on processors without instructions for it.

    Args:
        x: (N, C, H, W); float32, float64, bfloat16 or float16.
        weight: (O, C, kernel height, kernel width), the dtype of x.
        bias: (O,), the dtype of x, or None.
        stride: of both dimensions, or of each; at least 1.
        padding: zeros on each side, of both dimensions, or of each.
        backend: as in `fbp`.

    Returns:
        (N, O, H', W') with H' = (H + 2 padding - kernel height) / stride + 1, rounded down, likewise W'; in the memory
        format that PyTorch gives it.

    Raises:
        TypeError: a dtype that is not supported, or dtypes that differ.
        ValueError: shapes, devices, stride, padding or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    attributes = (_pair("stride", stride), _pair("padding", padding))
    return _call((x, weight, bias), attributes, backend)[0]


def _pair(name: str, value: int | Sequence[int]) -> Sizes:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"conv2d: {name} is {value}, expected one number or two")
    return pair


def _check_all(tensors: tuple[Any, ...], attributes: tuple[Any, ...]) -> None:
    x, weight, bias = tensors
    stride, padding = attributes
    named = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    _check.tensors("conv2d", **named)
    _check.shapes("conv2d", named, ("NCHW", "OChw", "O")[: len(named)])
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0)):
        if min(pair) < least:
            raise ValueError(f"conv2d: {name} is {tuple(pair)}, expected at least {least}")
    for name, size, kernel, zeros in zip("HW", x.shape[2:], weight.shape[2:], padding, strict=True):
        if not 1 <= kernel <= size + 2 * zeros:
            raise ValueError(
                f"conv2d: weight has {kernel} rows or columns for {name}={size} and padding {zeros}, expected from 1"
                f" to {size + 2 * zeros}"
            )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes
) -> Tensor:
    _check_all((x, weight, bias), (stride, padding))  # PyTorch's own takes more than we do
    signal, kernel, *rest = _widened(*(t for t in (x, weight, bias) if t is not None))
    return F.conv2d(signal, kernel, rest[0] if rest else None, stride, padding).to(x.dtype)


def _widened(*tensors: Tensor) -> Sequence[Tensor]:
    """In float32 where half precision has no instructions: PyTorch's loops for it take many times as long."""
    if tensors[0].dtype in _HALF and native.instruction_set() in _WITHOUT_HALF:
        return [t.float() for t in tensors]
    return tensors


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    needs: int,
) -> tuple[Tensor | None, ...]:
    dx = d_weight = d_bias = None
    if needs & 1:
        wide = _widened(dy, x, weight)
        dx = torch.ops.aten.convolution_backward(
            *wide, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False)
        )[0]
        if dx.stride() != x.stride() or dx.dtype != x.dtype:
            dx = torch.empty_like(x).copy_(dx)
    if needs & 2:
        d_weight = _weight_gradient(dy, x, weight, *stride, *padding)
    if needs & 4:
        d_bias = dy.sum((0, 2, 3))
    return dx, d_weight, d_bias


_weight_gradient = native.raw("conv2d_weight_gradient")

_call = _operator.Operator(
    "conv2d",
    inputs=("Tensor x", "Tensor weight", "Tensor? bias"),
    attributes=("int[] stride", "int[] padding"),
    check=_check_all,
    narrowed=3,
    fake=reference.conv2d,
    reference=reference.conv2d,
    fake_gradient=torch.empty_like,
    # As if the stride were 1, which the inputs do not tell.
    work=lambda x, weight, *_: weight.numel() * (x.numel() // max(x.shape[1], 1)),
    rows=(0,),
).register(native=backends.Kernel(_forward, _backward, devices=("cpu",)))
