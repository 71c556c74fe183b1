"""Launches prepared kernels on two devices, in a captured graph and after a change of the table, at the stub.

A program of its own; the stub is the first argument. Tensors say that they are on a GPU, their memory is the
processor's. Prints a line of JSON for each launch: what was bound by Triton, and what reached the driver.
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from bench import stub
from fbp_kernels.triton import launch, tuning
from fbp_kernels.triton.tuning import Config, Key


class Placed(Tensor):
    """A tensor of 64 numbers that says where it is."""

    @staticmethod
    def __new__(cls, device: str) -> "Placed":
        made = Tensor._make_wrapper_subclass(cls, (64,), dtype=torch.float32, device=device)
        made.memory = torch.zeros(64)
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, *call: Any, **options: Any) -> Any:
        raise AssertionError("nothing is computed")

    def data_ptr(self) -> int:
        return self.memory.data_ptr()  # type: ignore[no-any-return, attr-defined]


@triton.jit
def _count(x, counters, n):
    tl.atomic_add(counters + tl.program_id(0) % n, 1)
    tl.store(x + tl.program_id(0), 1.0)


def _planned(device: torch.device, size: torch.Size) -> tuple[Key, Callable[[Config], launch.Plan]]:
    def plan(config: Config) -> launch.Plan:
        grid = (config.blocks["BM"],)
        return launch.Plan(_count, grid, (size[0],), {}, Config({}, 1, 1), counters=6)

    return Key("power_normalize_forward", "float32", "small"), plan


count = launch.launcher(_planned)


def pretend(driver: stub.Driver) -> dict[str, bool]:
    """Has PyTorch answer as if there were two GPUs; gives what can be set."""
    state = {"capturing": False}

    @contextmanager
    def device(index: Any) -> Iterator[None]:
        before, driver.device = driver.device, getattr(index, "index", index)
        try:
            yield
        finally:
            driver.device = before

    zeros = torch.zeros

    def on_processor(*size: Any, device: Any = "cpu", **options: Any) -> Tensor:
        return zeros(*size, **options)

    torch.cuda.device = device  # type: ignore[assignment, misc]
    torch.cuda.device_count = lambda: 2
    torch.cuda.current_device = lambda: driver.device
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.is_current_stream_capturing = lambda: state["capturing"]
    torch.zeros = on_processor
    return state


def main() -> None:
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    values = (ctypes.c_ulonglong * 256).in_dll(library, "stub_values")
    ctypes.c_int.in_dll(library, "stub_parameters").value = 2
    driver = stub.activate()
    state = pretend(driver)
    bound: list[int] = []
    on: list[
        int
    ] = []  # the current device whenever a stream was asked for, which is before each launch
    stream_of = driver.get_current_stream
    driver.get_current_stream = lambda device=None: (on.append(driver.device), stream_of())[1]  # type: ignore[method-assign]
    run = JITFunction.run

    def bind(function: Any, *arguments: Any, **options: Any) -> Any:
        bound.append(driver.device)
        return run(function, *arguments, **options)

    JITFunction.run = bind

    def call(
        what: str, device: int, *, current: int = 0, stream: int = 0, capturing: bool = False
    ) -> None:
        driver.device, driver.stream, state["capturing"] = current, stream, capturing
        bound.clear()
        x = Placed(f"cuda:{device}")
        count((x.shape,), (x,))
        line = {
            "what": what,
            "bound": list(bound),
            "tensor": values[0] == x.data_ptr(),
            "counters": values[1],
            "function": ctypes.c_ulonglong.in_dll(library, "stub_function").value,
            "stream": ctypes.c_ulonglong.in_dll(library, "stub_stream").value,
            "on": on[-1],
            "current": driver.device,
            "grid": ctypes.c_int.in_dll(library, "stub_grid").value,
        }
        print(json.dumps(line), flush=True)

    call("first on 0", 0)
    call("again on 0", 0)
    call("first on 1", 1)
    call("again on 1", 1)
    call("again on 0, 1 is the current one", 0, current=1)
    call("another stream", 0, stream=8)
    call("captured", 0, capturing=True)
    call("captured again", 0, capturing=True)
    call("after the capture", 0)
    changed = json.loads(tuning.TABLE.read_text())
    changed["sm90"]["power_normalize_forward"]["float32"]["small"]["BM"] *= 2
    tuning.TABLE = Path(sys.argv[1]).with_name("table.json")
    tuning.TABLE.write_text(json.dumps(changed))
    os.environ[tuning.ENVIRONMENT] = "1"
    call("another table", 0)
    os.environ[tuning.ENVIRONMENT] = "0"
    launch.forget()
    call("forgotten", 0)


if __name__ == "__main__":
    main()
