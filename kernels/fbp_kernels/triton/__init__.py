"""The Triton backend: kernels for GPUs, which Triton's interpreter also runs on the CPU, slowly, to check them.

Nothing here imports Triton before a kernel is called: `import fbp_kernels` stays light, and works without Triton.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Looked up here and not in every call: a call would pay for it, and torch.compile in 2.11 does not trace it.
_INSTALLED = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device_type: str, dtype: torch.dtype | None = None) -> str:
    """Why the Triton kernels cannot run on a kind of device or a dtype, or an empty string where they can."""
    if not _INSTALLED:
        return "Triton is not installed"
    if device_type != "cuda" and not (device_type == "cpu" and interpreted()):
        return (
            f"Triton kernels run on a GPU, the tensors are on {device_type}"
            " (TRITON_INTERPRET=1 runs them on the CPU, in Triton's interpreter, to check them)"
        )
    if dtype is not None and dtype not in _DTYPES:
        return f"the Triton kernels have no {str(dtype).removeprefix('torch.')}"
    return ""


def late(module: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`forward` and `backward` of a module of this package, imported when they are called first."""
    return _late(module, "forward"), _late(module, "backward")


def _late(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal function
        if function is None:
            function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return function(*arguments)

    return call
