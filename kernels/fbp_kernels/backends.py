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

BACKENDS = ("native", "triton", "reference")
ENVIRONMENT = "FBP_BACKEND"
# What rows of the table have for a device. The kernels read FBP_CPU_ISA in every call, the choice goes by what it was
# when the package was imported: to look for it in every call would cost as much as all the rest.
TARGETS = {"cpu": native.instruction_set(), "cuda": choice.GPU}


@dataclass(frozen=True)
class Kernel:
    """The fused forward and backward of one operator in one backend, called as the schema says.

    Attributes:
        devices: where there is one, of those that the backend runs on.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    devices: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class BackendStatus:
    """Whether one backend runs one operator on one kind of device.

    Attributes:
        operator: its name.
        backend: likewise.
        available: whether it runs there.
        reason: why not, if so.
        first: where it is the first choice, in words: "" where it is nowhere.
    """

    operator: str
    backend: str
    available: bool
    reason: str = ""
    first: str = ""


_kernels: dict[str, dict[str, Kernel]] = {}
_work: dict[str, Callable[..., int]] = {}
_DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.float64)
_choices: dict[
    tuple[str, str, torch.dtype | None], choice.Choice
] = {}  # by operator, device, dtype
_NOWHERE = choice.Choice.of(
    dict.fromkeys(choice.MODES, (choice.Step(math.inf, ("reference", "native", "triton"), ""),))
)


def register(operator: str, work: Callable[..., int], **kernels: Kernel) -> None:
    """Enters an operator and its fused kernels by backend name; the reference runs every operator.

    Args:
        operator: its name.
        work: gives the multiply-adds of a forward, or what takes as long; called with the operator's inputs.
        kernels: by backend.
    """
    _kernels[operator] = kernels
    _work[operator] = work
    _read(operator)


def kernel(operator: str, backend: str) -> Kernel:
    """The kernels that `resolve` chose."""
    return _kernels[operator][backend]


def available_backends(device: torch.device | str = "cpu") -> list[BackendStatus]:
    """What can run on a device, operator by operator.

    Args:
        device: a device or its type, such as "cpu" or "cuda".

    Returns:
        One entry for each operator and backend, the preferred backend of an operator first; where that depends on
        the size, that of large calls, on a GPU in half precision, on a CPU in float32.
    """
    device_type = torch.device(device).type
    return [
        BackendStatus(operator, backend, not reason, reason, first(operator, backend, device_type))
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
    """The backends for a call in order of preference, with what decided; for a large one where no inputs are known."""
    found = _choice(operator, device_type, dtype)
    return found.step("training" if _due(inputs) else "forward", _size(operator, inputs))


def read_table() -> None:
    """Reads the table of measurements again; each operator's part is read when it is registered.

    Ahead of calls: a compiler that traces the first one would have to trace this.
    """
    for operator in _kernels:
        _read(operator)


def _read(operator: str) -> None:
    for device_type, target in TARGETS.items():
        if target:
            kinds = {choice.kind(target, dtype) for dtype in _DTYPES}
            found = {kind: choice.choice(target, operator, kind) for kind in kinds}
            for dtype in _DTYPES:
                _choices[operator, device_type, dtype] = found[choice.kind(target, dtype)]


def _choice(operator: str, device_type: str, dtype: torch.dtype | None) -> choice.Choice:
    found = _choices.get((operator, device_type, dtype))
    return found or _choices.get((operator, device_type, None), _NOWHERE)


def _order(
    operator: str,
    device_type: str,
    dtype: torch.dtype | None,
    inputs: Sequence[torch.Tensor | None],
) -> tuple[str, ...]:
    """The same in short: nothing is looked at that makes no difference."""
    found = _choice(operator, device_type, dtype)
    if found.always is not None:
        return found.always
    size = _size(operator, inputs)
    for work, forward, training in found.bounds:
        if size <= work:
            return forward if forward == training or not _due(inputs) else training
    raise AssertionError("the last step has no end")


def _due(inputs: Sequence[torch.Tensor | None]) -> bool:
    """Whether a backward is to come."""
    if torch.is_grad_enabled():
        for t in inputs:  # a generator would take longer than all of them
            if t is not None and t.requires_grad:
                return True
    return False


def _size(operator: str, inputs: Sequence[torch.Tensor | None]) -> float:
    if not inputs:
        return math.inf
    try:
        return _work[operator](*inputs)
    except (AttributeError, IndexError, TypeError):
        return math.inf  # the operator is about to refuse these arguments


def first(operator: str, backend: str, device_type: str) -> str:
    """Where a backend is the first choice of an operator, in words."""
    target = TARGETS.get(device_type)
    if not target:
        return ""
    ranges = {
        (choice.kind(target, dtype), mode): _ranges(steps, backend)
        for dtype in (torch.float32, torch.bfloat16)
        for mode, steps in _choice(operator, device_type, dtype).steps.items()
    }
    if len(set(ranges.values())) == 1:
        return next(iter(ranges.values()))
    parts = []
    for dtype in dict.fromkeys(dtype for dtype, _ in ranges):
        by_mode = {mode: ranges[dtype, mode] for mode in choice.MODES}
        if len(set(by_mode.values())) == 1:
            by_mode = {"": by_mode["forward"]}
        parts += [f"{where} in {dtype} {mode}".strip() for mode, where in by_mode.items() if where]
    return "; ".join(parts)


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
        inputs: the operator's differentiable inputs: the best depends on the work, and on whether a gradient is due.
            Without them, which fused kernels would run, if there are any.

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
    order = _order(operator, device_type, dtype, inputs)
    if not inputs:  # no call that the reference might be faster for
        order = (*(backend for backend in order if backend != "reference"), "reference")
    for backend in order:
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
    devices = _kernels[operator][backend].devices
    reason = (triton if backend == "triton" else native).why_not(device_type, dtype)
    if not reason and device_type not in devices:
        return f"this version has no {backend} kernel for {operator} on {device_type}"
    return reason
