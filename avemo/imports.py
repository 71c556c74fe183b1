"""Importing what is slow to import, or may not be there."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_own_process = False

# Of PyTorch: what its operators say of results that have no data, for device "meta", compilers and exports.
_WITHOUT_DATA = ("torch._meta_registrations", "torch.distributed._meta_registrations")


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


class _Later(ModuleType):
    """Stands in for a module that is imported when anything of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        return getattr(_now(self.__name__), name)


def put_off_kernels_without_data() -> None:
    """Leaves out of PyTorch's import, which is to follow, its kernels for tensors without data.

    They are a quarter of its time (docs/predict.md), and to run a model of ours nothing asks for them. Whoever
    lets others do something with PyTorch calls `all_of_pytorch` before. In the process of somebody else nothing is
    put off, nor where PyTorch has been imported.
    """
    if _own_process and "torch" not in sys.modules:
        sys.modules.update({name: _Later(name) for name in _WITHOUT_DATA})


def all_of_pytorch() -> None:
    """Imports what was put off."""
    for name in _WITHOUT_DATA:
        _now(name)


def _now(name: str) -> ModuleType | None:
    """The module itself; None where it was put off and this PyTorch has none of that name."""
    if not isinstance(sys.modules.get(name), _Later):
        return sys.modules.get(name)
    import torch  # noqa: F401, else its own import would meet a half of itself

    del sys.modules[name]
    return import_module(name) if find_spec(name) else None
