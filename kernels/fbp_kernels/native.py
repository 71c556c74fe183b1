"""Loads the C++ extension, which registers the raw kernels as `torch.ops.fbp_native.*`.

It never fails to import: `MISSING` says why the extension is not there, or is empty; so does `CUDA_MISSING` of the
kernels for GPUs, a library of its own.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import tf32
from .libraries import NATIVE

_LIBRARY = getattr(torch.ops, NATIVE)
_CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _load(library: str = "_native") -> str:
    """Loads a library, and says why it could not."""
    what = "the C++ extension" if library == "_native" else "the library of CUDA kernels"
    # An editable install keeps compiled files in a folder of its own, also on the package's path.
    folders = [Path(folder) for folder in sys.modules[__package__].__path__]

    def find(name: str) -> Path | None:
        return next((f / name for f in folders if (f / name).is_file()), None)

    path = find(f"{library}.so")
    if path is None:
        reason = find(f"{library}_missing.txt")  # written by the build where it could not compile
        why = reason.read_text().strip() if reason else f"{library}.so is not in {folders[0]}"
        return f"{what} was not built: {why}"
    try:
        torch.ops.load_library(os.fspath(path))
    except (OSError, RuntimeError) as error:
        return f"{what} does not load with torch {torch.__version__}: {error}"
    return ""


MISSING = _load()
CUDA_MISSING = MISSING or _load("_native_cuda")


def instruction_set() -> str:
    """The one that the CPU kernels use, "" where there are none, or FBP_CPU_ISA names one that does not run here."""
    try:
        return "" if MISSING else str(_LIBRARY.cpu_isa())
    except RuntimeError:  # a call of a kernel will say so
        return ""


def why_not(device_type: str, dtype: torch.dtype | None = None) -> str:
    """Why the native kernels cannot run, or an empty string where they can.

    Args:
        device_type: where the tensors are.
        dtype: theirs, where it is known.
    """
    if MISSING or device_type == "cpu":
        return MISSING
    if device_type != "cuda":
        return (
            f"native kernels run on the CPU and on NVIDIA's GPUs, the tensors are on {device_type}"
        )
    if CUDA_MISSING:
        return CUDA_MISSING
    if dtype is not None and dtype not in _CUDA_DTYPES:
        return f"the native CUDA kernels have no {str(dtype).removeprefix('torch.')}"
    return ""


_tf32 = False  # what the library was told last


def _hand_on_tf32() -> None:
    """Tells the CUDA kernels what PyTorch's setting for float32 products is: the stable ABI does not."""
    global _tf32
    allowed = tf32.allowed()
    if allowed != _tf32:
        _LIBRARY.allow_tf32(allowed)
        _tf32 = allowed


def raw(name: str, without: int = 0) -> Callable[..., Any]:
    """The raw kernel `fbp_native::name`, looked up when it is called first.

    Args:
        name: its name.
        without: how many of the last arguments it does not take.
    """

    def call(*args: Any) -> Any:
        if not CUDA_MISSING:
            _hand_on_tf32()
        return operation(name)(*(args[:-without] if without else args))

    return call


@functools.cache
def operation(name: str) -> Callable[..., Any]:
    """The raw kernel `fbp_native::name`."""
    found: Callable[..., Any] = getattr(_LIBRARY, name).default
    return found
