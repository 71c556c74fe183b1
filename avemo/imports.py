"""Importing what is slow to import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
        gc.enable()
