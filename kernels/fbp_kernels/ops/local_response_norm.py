"""Local response normalisation across channels, with an optional ReLU before it."""

from typing import Any

import torch
from torch import Tensor

from .. import backends, native, reference, triton
from . import _check, _layout, _operator


def local_response_norm(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Divides every element by a power of the mean square over `size` channels around it.

    y_c = x_c / (k + alpha / size * (sum of x_j^2 over the channels j of the window))^beta, the window from
    c - size // 2 to c + (size - 1) // 2, with zeros beyond the ends, as
    `torch.nn.functional.local_response_norm` has it (Krizhevsky et al. 2012, section 3.3).

    Args:
        x: (N, C, *), at least one dimension after the channels; float32, float64, bfloat16 or float16.
        size: channels of the window, at least 1.
        alpha: weight of the mean square.
        beta: exponent.
        k: added before the power; above 0, so that there is no division by 0.
        relu: apply a ReLU to x first.
        backend: as in `fbp`.

    Returns:
        Like x, memory format included.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: too few dimensions, a size below 1, a k that is not positive, an unknown backend.
        RuntimeError: the backend asked for cannot run here.
    """
    if not k > 0:  # what the native kernels do not look at
        raise ValueError(f"local_response_norm: k is {k}, expected a positive number")
    return _call((_layout.readable(x),), (size, alpha, beta, k, relu), backend)[0]


def _check_all(tensors: tuple[Any, ...], attributes: tuple[Any, ...]) -> None:
    (x,), (size, *_) = tensors, attributes
    _check.tensors("local_response_norm", x=x)
    _check.channels("local_response_norm", x)
    if size < 1:
        raise ValueError(f"local_response_norm: size is {size}, expected at least 1")


_call = _operator.Operator(
    "local_response_norm",
    inputs=("Tensor x",),
    attributes=("SymInt size", "float alpha", "float beta", "float k", "bool relu"),
    check=_check_all,
    fake=lambda x, *_: torch.empty_like(x),
    reference=reference.local_response_norm,
    rows=(0,),
    fake_gradient=torch.empty_like,
).register(
    # Of one input the gradient is needed: it is not asked.
    native=backends.Kernel(native.raw("lrn_forward"), native.raw("lrn_backward", without=1)),
    triton=backends.Kernel(*triton.late("local_response_norm")),
)
