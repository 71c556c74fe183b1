"""Which backend runs an operator: one registry, one rule for choosing, one way to ask what is there.

An operator's file registers itself with `register`; a backend's module (`native`, `triton`) says why it
cannot run at all, if so.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import choice, native, triton

BACKENDS = ("native", "triton", "reference")  # in order of preference on the CPU
ENVIRONMENT = "FBP_BACKEND"


@dataclass(frozen=True)
class Kernel:
    """The fused forward and backward of one operator in one backend, called as the schema says."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


@dataclass(frozen=True)
class BackendStatus:
    """Whether one backend runs one operator on one kind of device.

    Attributes:
        operator: its name.
        backend: likewise.
        available: whether it runs there.
        reason: why not, if so.
        first: on a GPU, where it is the first choice: "" where it is nowhere.
    """

    operator: str
    backend: str
    available: bool
    reason: str = ""
    first: str = ""


_kernels: dict[str, dict[str, Kernel]] = {}
_work: dict[str, Callable[..., int]] = {}
_steps: dict[str, dict[str, tuple[choice.Step, ...]]] = {}  # by operator and class of dtype


def register(operator: str, work: Callable[..., int], **kernels: Kernel) -> None:
    """Enters an operator and its fused kernels by backend name; the reference runs every operator.

    Args:
        operator: its name.
        work: gives the multiply-adds of a forward, or what takes as long; called with the operator's inputs.
        kernels: by backend.
    """
    _kernels[operator] = kernels
    _work[operator] = work
    _steps[operator] = {dtype: choice.steps(operator, dtype) for dtype in ("half", "float32")}


def kernel(operator: str, backend: str) -> Kernel:
    """The kernels that `resolve` chose."""
    return _kernels[operator][backend]


def available_backends(device: torch.device | str = "cpu") -> list[BackendStatus]:
    """What can run on a device, operator by operator.

    Args:
        device: a device or its type, such as "cpu" or "cuda".

    Returns:
        One entry for each operator and backend, the preferred backend of an operator first; on a GPU, where that
        depends on the size, that of large calls in half precision.
    """
    device_type = torch.device(device).type
    return [
        BackendStatus(operator, backend, not reason, reason, _first(operator, backend, device_type))
        for operator in _kernels
        for backend in step(operator, device_type).order
        for reason in [_why_not(operator, backend, device_type)]
    ]


def work(operator: str, inputs: Sequence[torch.Tensor | None]) -> int:
    """The multiply-adds of an operator's forward, or what takes as long."""
    return _work[operator](*inputs)


def step(
    operator: str,
    device_type: str,
    dtype: torch.dtype | None = None,
    inputs: Sequence[torch.Tensor | None] = (),
) -> choice.Step:
    """The backends for a call in order of preference, with what decided; for a large call where no inputs are known."""
    if device_type != "cuda":
        return _CPU
    steps = _steps[operator][choice.kind(dtype)]
    if not inputs:
        return steps[-1]
    try:
        size = _work[operator](*inputs)
    except (AttributeError, IndexError, TypeError):
        return steps[-1]  # the operator is about to refuse these arguments
    for one in steps:
        if size <= one.work:
            return one
    raise AssertionError("the last step has no end")


_CPU = choice.Step(math.inf, BACKENDS, "")


def _first(operator: str, backend: str, device_type: str) -> str:
    """Where on a GPU a backend is the first choice of an operator, in words."""
    if device_type != "cuda":
        return ""
    ranges = {dtype: _ranges(steps, backend) for dtype, steps in _steps[operator].items()}
    if len(set(ranges.values())) == 1:
        return ranges["half"]
    return "; ".join(f"{where} in {dtype}" for dtype, where in ranges.items() if where)


def _ranges(steps: tuple[choice.Step, ...], backend: str) -> str:
    """For which work a backend comes first in steps: "up to 4.8e+09 multiply-adds", or ""."""
    found: list[list[float]] = []
    start = 0.0
    for one in steps:
        if one.order[0] == backend:
            if found and found[-1][1] == start:
                found[-1][1] = one.work
            else:
                found.append([start, one.work])
        start = one.work
    return " and ".join(_range(*bounds) for bounds in found)


def _range(start: float, end: float) -> str:
    if end == math.inf:
        return f"from {start:.2g} multiply-adds" if start else "for every size"
    return (
        f"from {start:.2g} to {end:.2g} multiply-adds"
        if start
        else f"up to {end:.2g} multiply-adds"
    )


def resolve(
    operator: str,
    backend: str | None,
    device_type: str,
    dtype: torch.dtype | None = None,
    inputs: Sequence[torch.Tensor | None] = (),
) -> str:
    """The backend that runs a call.

    Args:
        operator: such as "fbp".
        backend: a name, or None for the one in the environment variable FBP_BACKEND, else the best.
        device_type: where the tensors are, such as "cpu".
        dtype: theirs, where it is known.
        inputs: the operator's differentiable inputs, where they are known: on a GPU the best depends on the work.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend asked for cannot run this operator here; the message says why.
    """
    asked = backend or asked_for()
    if not asked:
        return _best(operator, device_type, dtype, inputs)
    if asked not in BACKENDS:
        source = "backend" if backend else f"the environment variable {ENVIRONMENT}"
        raise ValueError(f"{source} is {asked!r}, expected one of {', '.join(sorted(BACKENDS))}")
    reason = _why_not(operator, asked, device_type, dtype)
    if reason:
        raise RuntimeError(f"{operator} cannot run on backend {asked!r}: {reason}")
    return asked


def asked_for() -> str | None:
    """The backend that the environment variable FBP_BACKEND names, None or empty where it names none."""
    return os.environ.get(ENVIRONMENT)


def _best(
    operator: str,
    device_type: str,
    dtype: torch.dtype | None,
    inputs: Sequence[torch.Tensor | None],
) -> str:
    for backend in step(operator, device_type, dtype, inputs).order:
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
