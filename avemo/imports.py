"""Importing what is slow to import, or may not be there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

_own_process = False


def needs(what: str, *packages: str, extra: str) -> None:
    """Checks, without importing any, that packages are there which an extra brings.

    Args:
        what: that cannot go on without them.
        packages: by the names under which they are imported.
        extra: of avemo's installation.

    Raises:
        ValueError: some are not installed; it says how all are.
    """
    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}: pip install 'avemo[{extra}]'")


def in_a_process_of_its_own() -> None:
    """Says that the process is a command's alone: what is there after imports is never looked through for cycles,
    and NumPy and SciPy multiply with one thread, unless the environment says with how many.

    The first collection after PyTorch's import takes a tenth of a short run, and finds nothing. In the process of
    somebody else, things may be there that become garbage later. Threads of OpenBLAS begin by turning in circles for a
    tenth of a second, in this process and in every one that it starts, in the place of the decoder; and nothing here
    multiplies anything large but PyTorch, which has threads of its own.
    """
    global _own_process
    _own_process = True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@contextmanager
def without_collection() -> Iterator[None]:
    """While much is imported, nothing is collected.

    PyTorch makes hundreds of thousands of objects that stay; to look for cycles among them again and
    again takes a tenth of its import.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if _own_process:
            gc.freeze()
        gc.enable()
