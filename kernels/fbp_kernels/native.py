"""Loads the C++ extension, which registers the raw kernels as `torch.ops.fbp_native.*`.

It never fails to import: `MISSING` says why the extension is not there, or is empty.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_LIBRARY = "_native.so"
_REASON = "_native_missing.txt"  # written by the build where it could not compile


def _load() -> str:
    # An editable install keeps compiled files in a folder of its own, also on the package's path.
    import fbp_kernels

    folders = [Path(folder) for folder in fbp_kernels.__path__]
    library = next((f / _LIBRARY for f in folders if (f / _LIBRARY).is_file()), None)
    if library is None:
        reason = next((f / _REASON for f in folders if (f / _REASON).is_file()), None)
        why = reason.read_text().strip() if reason else f"{_LIBRARY} is not in {folders[0]}"
        return f"the C++ extension was not built: {why}"
    try:
        torch.ops.load_library(os.fspath(library))
    except (OSError, RuntimeError) as error:
        return f"the C++ extension does not load with torch {torch.__version__}: {error}"
    return ""


MISSING = _load()


def raw(name: str) -> Callable[..., Any]:
    """The raw kernel `fbp_native::name`, looked up when it is called."""

    def call(*args: Any) -> Any:
        return getattr(torch.ops.fbp_native, name)(*args)

    return call
