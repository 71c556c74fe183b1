"""Dropout with the masks of PyTorch's own, drawn by many threads and not kept."""

from typing import Any

import torch
from torch import Tensor

from .. import backends, generator, native, reference
from . import _check, _operator

_NUMBERS = 632  # in the state of a generator


def dropout(
    x: Tensor, p: float = 0.5, *, state: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Drops elements with probability p and multiplies the rest by 1 / (1 - p), as `torch.nn.Dropout` does in training.

    Hinton et al. 2012 (https://arxiv.org/abs/1207.0580). The mask follows from the state of torch's generator of the
    CPU, which moves on: both are what `torch.nn.functional.dropout` makes of it, to the bit, where PyTorch does not
    draw by MKL, as it does on Intel's processors. The backward draws the mask again.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        p: from 0 to 1.
        state: one to draw from in place of that of torch's generator, which then stays: int64 (632,), the bytes of
            `torch.Generator.get_state()`. A compiler that traces the call needs it; under `torch.vmap` rows of x
            share a mask.
        backend: as in `fbp`.

    Returns:
        Like x, in the layout of `torch.empty_like(x)`.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: p, state or backend that do not fit.
        RuntimeError: the backend asked for cannot run here.
    """
    _check.tensors("dropout", x=x)
    chosen = backends.resolve("dropout", backend, x.device.type, x.dtype, (x,))
    if state is not None:
        return _call((x, state), (p,), chosen)[0]
    with generator.LOCK:  # of two threads none draws the other's mask
        y, after = _call((x, generator.state()), (p,), chosen)
        generator.move_to(after)
    return y


def _check_all(tensors: tuple[Any, ...], attributes: tuple[Any, ...]) -> None:
    _, state = tensors
    (p,) = attributes
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is {p}, expected a probability from 0 to 1")
    if state.dtype != torch.int64 or state.shape != (_NUMBERS,) or state.device.type != "cpu":
        got = f"{state.dtype} of shape {tuple(state.shape)} on {state.device}"
        raise ValueError(f"dropout: state is {got}, expected torch.int64 ({_NUMBERS},) on the CPU")


def _backward(dy: Tensor, x: Tensor, state: Tensor, _: Tensor, p: float, __: int) -> Any:
    return _raw_backward(dy, x, state, p)


_raw_backward = native.raw("dropout_backward")

_call = _operator.Operator(
    "dropout",
    inputs=("Tensor x",),
    extras=("Tensor state",),
    attributes=("float p",),
    check=_check_all,
    kept=1,  # the state afterwards, which the backward does not need
    fake=lambda x, state, *_: (torch.empty_like(x), torch.empty_like(state)),
    reference=reference.dropout,
    fake_gradient=torch.empty_like,
).register(native=backends.Kernel(native.raw("dropout_forward"), _backward, devices=("cpu",)))
