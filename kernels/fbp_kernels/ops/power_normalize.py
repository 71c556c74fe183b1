"""Signed square root and L2 normalisation."""

from typing import Any

from torch import Tensor

from .. import backends, native, reference, triton
from . import _check, _operator


def power_normalize(z: Tensor, eps: float = 1e-12, *, backend: str | None = None) -> Tensor:
    """sign(z) sqrt(|z|), then every row divided by its L2 norm, as MFB ends.

    Yu et al. 2017 (https://arxiv.org/abs/1708.01471), with a gradient of 0 at z = 0, where the root's own is infinite.

    Args:
        z: (*, O), rows along the last dimension; float32, float64, bfloat16 or float16; any strides.
        eps: the least norm to divide by.
        backend: as in `fbp`.

    Returns:
        Like z.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: no dimension, or an unknown backend.
        RuntimeError: the backend asked for cannot run here.
    """
    alone = isinstance(z, Tensor) and z.dim() == 1
    y = _call((z.unsqueeze(0) if alone else z,), (eps,), backend)[0]
    return y.squeeze(0) if alone else y


def _check_all(tensors: tuple[Any, ...], _: Any) -> None:
    (z,) = tensors
    _check.tensors("power_normalize", z=z)
    if z.dim() < 1:
        raise ValueError("power_normalize: z is a scalar, expected at least one dimension (*, O)")


_call = _operator.Operator(
    "power_normalize",
    inputs=("Tensor z",),
    attributes=("float eps",),
    check=_check_all,
    fake=lambda z, *_: z.new_empty(z.shape),
    reference=reference.power_normalize,
    rows=(0,),
).register(
    # Of one input the gradient is needed: it is not asked.
    native=backends.Kernel(
        native.raw("power_normalize_forward"), native.raw("power_normalize_backward", without=1)
    ),
    triton=backends.Kernel(*triton.late("power_normalize")),
)
