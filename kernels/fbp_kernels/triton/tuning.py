"""Which configuration a kernel runs with: one table, by kernel, family of devices, dtype and class of size.

Where the environment variable FBP_AUTOTUNE is 1, a search on the device decides in place of the table (`autotune`).
"""

import functools
import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import tf32

# The modules that have kernels, each with `CANDIDATES` and `samples`; what is tuned first comes first.
MODULES = tuple(
    f"{__package__}.{name}"
    for name in ("bilinear", "attention_pool", "local_response_norm", "power_normalize")
)
SIZES = ("small", "medium", "large")
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}  # by class
ENVIRONMENT = "FBP_AUTOTUNE"

TABLE = Path(__file__).with_name("table.json")


@dataclass(frozen=True)
class Config:
    """How a kernel is cut up.

    Attributes:
        blocks: its compile-time sizes by name.
        warps: of a program.
        stages: of the software pipeline.
    """

    blocks: dict[str, int]
    warps: int
    stages: int

    @classmethod
    def of(cls, entry: dict[str, int]) -> "Config":
        """From what a table says of it."""
        blocks = dict(entry)
        return cls(warps=blocks.pop("warps"), stages=blocks.pop("stages"), blocks=blocks)

    def entry(self) -> dict[str, int]:
        """What a table says of it."""
        return {**self.blocks, "warps": self.warps, "stages": self.stages}


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by; classes, so that a batch of another size compiles nothing.

    Attributes:
        kernel: its name in the table.
        dtype: "half" (bfloat16 and float16), "tf32" or "float32".
        size: "small", "medium" or "large", as the kernel's module defines them.
    """

    kernel: str
    dtype: str
    size: str

    def __str__(self) -> str:
        return f"{self.kernel} {self.dtype} {self.size}"


Call = Callable[[Config], Any]
"""Launches a kernel with a configuration. It can be repeated: what it writes does not depend on what was there."""

Search = Callable[[Key, Config, Call, torch.device | None], Config]
"""Finds a configuration for a key on a device, given the table's and what launches the kernel."""

Chooser = Callable[[Key, str, Call], Any]


class _Here(threading.local):
    """What a thread has of its own: others launch as the table says while one of them tries configurations."""

    def __init__(self) -> None:
        self.choosers: list[Chooser] = []


here = _Here()
detours: list[object] = []  # one for each that has launches, of whatever thread, go another way
_chosen: dict[tuple[Key, str, torch.device | None], Config] = {}
_searching = threading.RLock()
_search: Search | None = None


def search_by(search: Search) -> None:
    """What FBP_AUTOTUNE asks for. A search calls operators, which end here: so it is handed in and not imported."""
    global _search
    _search = search


def run(key: Key, architecture: str, call: Call, device: torch.device | None = None) -> Any:
    """Calls what launches a kernel with the configuration chosen for it.

    The choice holds for the rest of the process, so that results are the same bits from call to call.

    Args:
        key: of the kernel and what it is called with.
        architecture: whose part of the table counts.
        call: launches the kernel, and may be called several times.
        device: where its tensors are; by default CUDA's current device.
    """
    if here.choosers:
        return here.choosers[-1](key, architecture, call)
    place = (key, architecture, device)
    config = _chosen.get(place)
    if config is None:
        with _searching:
            config = _chosen.get(place) or _choose(key, architecture, call, device)
            _chosen[place] = config
    return call(config)


def _choose(key: Key, architecture: str, call: Call, device: torch.device | None) -> Config:
    config = lookup(key, architecture)
    on_gpu = architecture != "interpreter" and (device is None or device.type == "cuda")
    if not (autotuning() and on_gpu):
        return config
    assert _search is not None, "the package hands in a search when it is imported"
    return _search(key, config, call, device)


def chosen(key: Key, architecture: str) -> Config:
    """What this process runs a key with on any device, or the table's configuration."""
    found = (config for (k, a, _), config in list(_chosen.items()) if (k, a) == (key, architecture))
    return next(found, None) or lookup(key, architecture)


def autotuning() -> bool:
    """Whether configurations are searched for at a kernel's first call.

    Raises:
        ValueError: the environment variable is neither 0 nor 1.
    """
    value = os.environ.get(ENVIRONMENT) or "0"
    if value not in ("0", "1"):
        raise ValueError(f"the environment variable {ENVIRONMENT} is {value!r}, expected 0 or 1")
    return value == "1"


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Within it, `chooser` is called in place of `run` in this thread and does what it likes with the call."""
    here.choosers.append(chooser)
    try:
        with detour():
            yield
    finally:
        here.choosers.pop()


@contextmanager
def detour() -> Iterator[None]:
    """Within it, no launch takes what was prepared before, and none is prepared."""
    detours.append(None)
    try:
        yield
    finally:
        detours.pop()


def forget() -> None:
    """Reads the table and chooses anew."""
    table.cache_clear()
    lookup.cache_clear()
    _chosen.clear()


@functools.cache
def lookup(key: Key, architecture: str) -> Config:
    """The table's configuration.

    Raises:
        LookupError: it has none.
    """
    level: Any = table()
    names = {
        "architecture": architecture,
        "kernel": key.kernel,
        "dtype": key.dtype,
        "size": key.size,
    }
    for what, name in names.items():
        if name not in level:
            raise LookupError(
                f"{TABLE.name} has no configuration for {key} on {architecture}: "
                f"{what} is {name!r}, expected one of {', '.join(level)}"
            )
        level = level[name]
    return Config.of(level)


def entries(architecture: str) -> dict[Key, Config]:
    """All that the table has for an architecture."""
    return {
        Key(kernel, dtype, size): Config.of(entry)
        for kernel, dtypes in table().get(architecture, {}).items()
        for dtype, sizes in dtypes.items()
        for size, entry in sizes.items()
    }


def candidates(key: Key) -> list[Config]:
    """What a search tries for a kernel, as its module says: a list, or a function that gives one for a key.

    Raises:
        LookupError: no module knows the kernel.
    """
    found = importlib.import_module(module_of(key.kernel)).CANDIDATES[key.kernel]
    return list(found(key) if callable(found) else found)


def module_of(kernel: str) -> str:
    """The module of a kernel.

    Raises:
        LookupError: no module knows it.
    """
    for module in MODULES:
        if kernel in importlib.import_module(module).CANDIDATES:
            return module
    raise LookupError(f"no module of {', '.join(MODULES)} has candidates for {kernel!r}")


@functools.cache
def table() -> dict[str, Any]:
    """The configurations by architecture, kernel, dtype and size."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def text(table: dict[str, Any]) -> str:
    """A table as its file has it: a configuration a line, in order, so that changes can be read."""

    def block(level: dict[str, Any], depth: int, order: Callable[[str], Any]) -> str:
        indent = "  " * depth
        inner = {
            name: json.dumps(level[name])
            if depth == 4
            else block(level[name], depth + 1, SIZES.index if depth == 3 else str)
            for name in sorted(level, key=order)
        }
        lines = ",\n".join(f"{indent}{json.dumps(name)}: {value}" for name, value in inner.items())
        return f"{{\n{lines}\n{indent[2:]}}}"

    return block(table, 1, str) + "\n"


def dtype_class(dtype: torch.dtype) -> str:
    """The class of a dtype; float32 products may run in TF32 where PyTorch's own may."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if tf32.allowed() else "float32"


def precision(dtype: str) -> str:
    """How kernels of a class of dtype multiply: "ieee" where products and sums are those of float32, else "tf32", which
    halves ignore."""
    return "ieee" if dtype == "float32" else "tf32"


def reason(error: BaseException) -> str:
    """Why something failed, in one line: the first cause; compilers say what matters last."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
