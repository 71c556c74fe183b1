"""The one way to start a Triton kernel, so that launches can be counted, and compiled where there is no GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import interpreted
from .tuning import Config

if interpreted():
    from . import interpreter

    interpreter.mend()

# Within a tuple of arguments: compile-time flags, and what stands where a tensor is missing, since Triton 3.6 cannot
# take a None there.
YES, NO = tl.constexpr(True), tl.constexpr(False)
ABSENT = NO


def flag(value: bool) -> tl.constexpr:
    """A compile-time truth value within a tuple of arguments."""
    return YES if value else NO


# Called with (kernel, grid, arguments, options) in place of a launch; the last one entered counts.
Instead = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
_instead: list[Instead] = []


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    device: torch.device,
    config: Config,
    **constants: Any,
) -> None:
    """Starts a kernel on the current stream of a device.

    Args:
        kernel: a function under `triton.jit`.
        grid: how many programs, in up to three dimensions.
        arguments: of the kernel, in order.
        device: where its tensors are.
        config: gives block sizes by name, warps and stages.
        constants: further compile-time arguments by name.
    """
    options = {**constants, **config.blocks, "num_warps": config.warps, "num_stages": config.stages}
    options["enable_fp_fusion"] = True  # off by default from Triton 3.10 on
    if _instead:
        _instead[-1](kernel, grid, arguments, options)
    elif device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton takes the current device's stream
            kernel[grid](*arguments, **options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def instead(call: Instead) -> Iterator[None]:
    """Within it, launches go to `call`; what they would have written is not written."""
    _instead.append(call)
    try:
        yield
    finally:
        _instead.pop()


@contextmanager
def counted() -> Iterator[list[str]]:
    """Within it, the names of the kernels launched are added to the list that it gives."""
    names: list[str] = []

    def run(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        names.append(kernel.fn.__name__)
        kernel[grid](*arguments, **options)

    with instead(run):
        yield names


def multiprocessors(tensor: Tensor) -> int:
    """How many multiprocessors the device of a tensor has: how many programs a launch should have at least."""
    if tensor.is_cuda:
        return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)
    return _MULTIPROCESSORS.get(architecture(tensor.device), 4)


# Where only the compiler runs: of A100, H100, B200; the interpreter takes few, so that small cases are split too.
_MULTIPROCESSORS = {"sm80": 108, "sm90": 132, "sm100": 148}


def architecture(device: torch.device) -> str:
    """The family whose configurations serve a device: "sm80", "sm90", "sm100" or "interpreter".

    Families, not devices: sm80 also serves what has its instructions and less shared memory (8.x and 12.x).
    """
    if interpreted():
        return "interpreter"
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
    else:  # nothing runs: the target that is compiled for
        from triton.runtime import driver

        major = driver.active.get_current_target().arch // 10
    return {9: "sm90", 10: "sm100", 11: "sm100"}.get(major, "sm80")
