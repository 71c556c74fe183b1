"""Which backend runs an operator: one registry, one rule for choosing, one way to ask what is there.

An operator's file registers itself with `register`; a backend's module (`native`, `triton`) says why it
cannot run at all, if so.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import native, triton

BACKENDS = ("native", "triton", "reference")  # in order of preference on the CPU
ENVIRONMENT = "FBP_BACKEND"
_ENTRIES, _ENTRY = os.environ._data, os.environ.encodekey(ENVIRONMENT)  # type: ignore[attr-defined]

# Up to how many rows of the batch the native CUDA kernels of an operator go before Triton's. It takes a measurement on
# a GPU to enter an operator, and there is none yet: native is what runs where Triton is not there, or by name.
NATIVE_ROWS_ON_CUDA: dict[str, int] = {}


@dataclass(frozen=True)
class Kernel:
    """The fused forward and backward of one operator in one backend, called as the schema says."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


@dataclass(frozen=True)
class BackendStatus:
    """Whether one backend runs one operator on one kind of device; `reason` says why not."""

    operator: str
    backend: str
    available: bool
    reason: str = ""


_kernels: dict[str, dict[str, Kernel]] = {}


def register(operator: str, **kernels: Kernel) -> None:
    """Enters an operator and its fused kernels by backend name; the reference runs every operator."""
    _kernels[operator] = kernels


def kernel(operator: str, backend: str) -> Kernel:
    """The kernels that `resolve` chose."""
    return _kernels[operator][backend]


def available_backends(device: torch.device | str = "cpu") -> list[BackendStatus]:
    """What can run on a device, operator by operator.

    Args:
        device: a device or its type, such as "cpu" or "cuda".

    Returns:
        One entry for each operator and backend, the preferred backend of an operator first; on a GPU, of
        operators that prefer another one for small batches, that for large ones.
    """
    device_type = torch.device(device).type
    return [
        BackendStatus(operator, backend, not reason, reason)
        for operator in _kernels
        for backend in _preferred(operator, device_type, None)
        for reason in [_why_not(operator, backend, device_type)]
    ]


def _preferred(operator: str, device_type: str, batch: torch.Tensor | None) -> tuple[str, ...]:
    """The backends in order of preference."""
    if device_type != "cuda":
        return BACKENDS
    limit = NATIVE_ROWS_ON_CUDA.get(operator)
    if limit is not None and batch is not None and batch.dim() and batch.shape[0] <= limit:
        return BACKENDS
    return ("triton", "native", "reference")


def resolve(
    operator: str,
    backend: str | None,
    device_type: str,
    dtype: torch.dtype | None = None,
    batch: torch.Tensor | None = None,
) -> str:
    """The backend that runs a call.

    Args:
        operator: such as "fbp".
        backend: a name, or None for the one in the environment variable FBP_BACKEND, else the best.
        device_type: where the tensors are, such as "cpu".
        dtype: theirs, where it is known.
        batch: the first of them, where it is known: the best may depend on its rows.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend asked for cannot run this operator here; the message says why.
    """
    asked = backend or asked_for()
    if not asked:
        return _best(operator, device_type, dtype, batch)
    if asked not in BACKENDS:
        source = "backend" if backend else f"the environment variable {ENVIRONMENT}"
        raise ValueError(f"{source} is {asked!r}, expected one of {', '.join(sorted(BACKENDS))}")
    reason = _why_not(operator, asked, device_type, dtype)
    if reason:
        raise RuntimeError(f"{operator} cannot run on backend {asked!r}: {reason}")
    return asked


def asked_for() -> str | None:
    """The backend that the environment variable FBP_BACKEND names, None or empty where it names none."""
    # To say that nothing is there `os.environ.get` raises and catches an exception twice: a quarter of what Python adds
    # to a small call.
    return os.environ.get(ENVIRONMENT) if _ENTRY in _ENTRIES else None


def _best(
    operator: str, device_type: str, dtype: torch.dtype | None, batch: torch.Tensor | None
) -> str:
    for backend in _preferred(operator, device_type, batch):
        # The interpreter is there to check kernels: nobody who asked for nothing wants it.
        interpreted = backend == "triton" and device_type == "cpu"
        if not interpreted and not _why_not(operator, backend, device_type, dtype):
            return backend
    raise AssertionError("the reference runs everywhere")


def _why_not(
    operator: str, backend: str, device_type: str, dtype: torch.dtype | None = None
) -> str:
    """Why a backend cannot run an operator, or an empty string where it can."""
    if backend == "reference":
        return ""
    if backend not in _kernels[operator]:
        return f"this version has no {backend} kernel for {operator}"
    if backend == "triton":
        return triton.why_not(device_type, dtype)
    return native.why_not(device_type, dtype)
