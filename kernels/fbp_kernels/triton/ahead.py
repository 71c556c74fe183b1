"""Compiles the kernels of a module ahead of time, with no GPU: as its launchers would launch them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from .. import tf32
from . import launch, tuning
from .tuning import DTYPES, Config, Key

CAPABILITIES = {"sm80": 80, "sm90": 90, "sm100": 100}


@dataclass(frozen=True)
class Compiled:
    """One launch that was compiled in place of being made.

    Attributes:
        key: what its configuration was chosen by, or None where the launcher did not come to choose.
        config: the configuration.
        function: the kernel's name.
        kernel: what Triton made of it, or None.
        error: why there is none.
    """

    key: Key | None
    config: Config | None
    function: str
    kernel: Any = None
    error: str = ""


class _Driver:
    """Stands in for a GPU's driver where only its compiler is asked for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # kernels keep what was compiled by device

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def target(capability: int) -> None:
    """From now on, this process compiles for devices of a capability, whatever the machine has, and runs no kernel."""
    driver.set_active(_Driver(capability))


def compile_samples(
    module: str,
    size: str,
    dtype: str,
    capability: int,
    configure: Callable[[Key], list[Config]] | None = None,
) -> list[Compiled]:
    """Compiles every launch of a module's samples.

    Args:
        module: its full name.
        size: class of size.
        dtype: class of dtype.
        capability: of the devices that it is for, such as 90.
        configure: the configurations that are compiled for a key; by default the table's.
    """
    found: list[Compiled] = []
    here: list[tuple[Key, Config]] = []

    def choose(key: Key, architecture: str, call: tuning.Call) -> Any:
        result = None
        for config in configure(key) if configure else [tuning.lookup(key, architecture)]:
            here.append((key, config))
            result = call(config)
            here.pop()
        return result

    def compile_it(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        key, config = here[-1] if here else (None, None)
        name = kernel.fn.__name__
        try:
            made = kernel.warmup(*arguments, grid=grid, **options)
            found.append(Compiled(key, config, name, made))
        except Exception as error:  # whatever the compiler says is what is asked for
            found.append(Compiled(key, config, name, error=tuning.reason(error)))

    target(capability)
    with tf32.products(dtype == "tf32"):
        for sample in importlib.import_module(module).samples(size, DTYPES[dtype], "meta"):
            here.clear()
            with tuning.choosing(choose), launch.instead(compile_it):
                try:
                    sample()
                except Exception as error:
                    key, config = here[-1] if here else (None, None)
                    found.append(Compiled(key, config, module, error=tuning.reason(error)))
    return found
