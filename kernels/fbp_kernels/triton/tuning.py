"""Which configuration a kernel runs with: one table, by kernel, family of devices, dtype and class of size."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_TABLE = Path(__file__).with_name("table.json")


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


def run(key: Key, architecture: str, call: Callable[[Config], Any]) -> Any:
    """Calls what launches a kernel with the configuration chosen for it."""
    return call(lookup(key, architecture))


@functools.cache
def lookup(key: Key, architecture: str) -> Config:
    """The table's configuration."""
    entry = dict(_table()[architecture][key.kernel][key.dtype][key.size])
    return Config(warps=entry.pop("warps"), stages=entry.pop("stages"), blocks=entry)


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_TABLE.read_text())
    return table


def dtype_class(dtype: torch.dtype) -> str:
    """The class of a dtype; float32 products may run in TF32 where PyTorch's own may."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
