"""The CUDA kernels without a GPU: builds `tests/cuda_shim`, and puts its operators in the native backend's place."""

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .static_shared import ElfFile

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "cuda_shim"
ORDERS = ("forward", "reverse", "shuffled")
CAPABILITIES = (9, 8)  # with clusters, without
SHARED_BYTES = 227 << 10
TERMS = 64  # see terms.h


class Graph:
    """Launches that were captured.

    Attributes:
        number: the library's.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.number = -1

    def __len__(self) -> int:
        return int(self._library.fbp_shim_nodes(self.number))

    def replay(self) -> None:
        """Runs them in their order."""
        said = self._library.fbp_shim_replay(self.number).decode()
        assert not said, said


class Shim:
    """The library's settings and counts, and its operators.

    Attributes:
        calls: how many raw operators ran.
        fixed_order: the order and the seed of all of them, or None where each has another.
        fixed_capability: the device's, or None where calls take turns with clusters and without.
    """

    def __init__(self, path: Path) -> None:
        torch.ops.load_library(os.fspath(path))
        self._library = ctypes.CDLL(os.fspath(path))
        self._library.fbp_shim_order.argtypes = (ctypes.c_int, ctypes.c_uint64)
        self._library.fbp_shim_guard.argtypes = (ctypes.c_bool,)
        self._library.fbp_shim_tf32.argtypes = (ctypes.c_bool,)
        self._library.fbp_shim_start.argtypes = (
            *(ctypes.POINTER(ctypes.c_uint) for _ in range(2)),
            ctypes.c_uint, ctypes.c_size_t, ctypes.c_int, ctypes.c_bool,
        )  # fmt: skip
        for text in ("start", "replay"):
            getattr(self._library, f"fbp_shim_{text}").restype = ctypes.c_char_p
        for counter in ("launches", "blocks", "threads", "spoiled", "nodes"):
            getattr(self._library, f"fbp_shim_{counter}").restype = ctypes.c_int64
        self._library.fbp_shim_probe.restype = ctypes.c_char_p
        self._library.fbp_shim_probe.argtypes = (ctypes.c_char_p,)
        self.calls = 0
        self.fixed_order: tuple[str, int] | None = None
        self.fixed_capability: int | None = None
        self._multiprocessors = 4
        self._tell_static_bytes(ElfFile(path))

    def _tell_static_bytes(self, file: ElfFile) -> None:
        """Tells the library how much static shared memory its kernels have."""
        tell = self._library.fbp_shim_static_bytes
        tell.argtypes = (ctypes.c_void_p, ctypes.c_int)
        here = ctypes.cast(tell, ctypes.c_void_p).value or 0
        begin = here - file.address("fbp_shim_static_bytes")
        for address, size in file.static_shared().items():
            tell(begin + address, size)

    def order(self, name: str, seed: int = 0) -> None:
        """In which order blocks, and the threads of a block, run from now on."""
        self._library.fbp_shim_order(ORDERS.index(name), seed)

    def multiprocessors(self, count: int) -> None:
        """How many the device says it has."""
        self._multiprocessors = count
        self.device(self.fixed_capability or 9, count)

    def device(
        self, capability: int, multiprocessors: int, shared_bytes: int = SHARED_BYTES
    ) -> None:
        """Makes a device the current one.

        Args:
            capability: the major number; clusters come with 9.
            multiprocessors: how many.
            shared_bytes: that a block may ask for.
        """
        self._library.fbp_shim_device(multiprocessors, capability, shared_bytes)

    def fail_launch(self, number: int) -> None:
        """Refuses a launch, the next one where `number` is 0; none where it is negative."""
        self._library.fbp_shim_fail_launch(number)

    def last_error(self) -> int:
        """The error that the runtime keeps for whoever asks next, which it forgets then; 0 where there is none."""
        return int(self._library.fbp_shim_last_error())

    def start(
        self,
        grid: Sequence[int] = (1, 1, 1),
        block: Sequence[int] = (1, 1, 1),
        *,
        cluster: int = 0,
        shared: int = 0,
        allowed: int = -1,
        to_another: bool = False,
    ) -> str:
        """What the runtime says when a kernel is started that does nothing.

        Args:
            grid: in blocks.
            block: in threads.
            cluster: blocks of each, or 0 where none are asked for.
            shared: bytes of dynamic shared memory.
            allowed: bytes that are allowed before, or less than 0.
            to_another: allow them to another kernel.
        """
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        said = self._library.fbp_shim_start(*sizes, cluster, shared, allowed, to_another)
        return str(said.decode())

    @contextmanager
    def captured(self) -> Iterator["Graph"]:
        """Within it, launches are noted and not run; new tensors are guarded, and stay until `forget_graphs`."""
        graph = Graph(self._library)
        self._library.fbp_shim_begin_capture()
        try:
            with self.guarded():
                yield graph
        finally:
            graph.number = self._library.fbp_shim_end_capture()

    def forget_graphs(self) -> None:
        """Frees what graphs kept."""
        self._library.fbp_shim_forget_graphs()

    def tf32(self, allowed: bool) -> None:
        """Whether float32 may be multiplied as TF32."""
        self._library.fbp_shim_tf32(allowed)

    def terms(self, count: int = TERMS) -> None:
        """How many terms of a float32 product one accumulator takes."""
        self._library.fbp_shim_terms(count)

    def launches(self, call: Callable[[], Any]) -> int:
        """How many kernels a call starts."""
        before = self._library.fbp_shim_launches()
        call()
        return int(self._library.fbp_shim_launches() - before)

    def blocks(self, call: Callable[[], Any]) -> int:
        """How many blocks the kernels have that a call starts."""
        before = self._library.fbp_shim_blocks()
        call()
        return int(self._library.fbp_shim_blocks() - before)

    def threads(self, call: Callable[[], Any]) -> int:
        """How many threads a block of the last kernel has that a call starts."""
        call()
        return int(self._library.fbp_shim_threads())

    def probe(self, name: str) -> str:
        """What the shim says of one of the kernels of `probes.cpp`: an error, or nothing."""
        return str(self._library.fbp_shim_probe(name.encode()).decode())

    @contextmanager
    def guarded(self, end: bool = True) -> Iterator[None]:
        """Within it, new tensors are NaN and lie between pages that nobody may touch.

        Args:
            end: the end of a tensor meets a page; else its beginning.
        """
        self._library.fbp_shim_guard(end)
        try:
            yield
        finally:
            self._library.fbp_shim_unguard()

    def spoiled(self) -> int:
        """How many guarded tensors, freed since the last call, had bytes around them changed."""
        return int(self._library.fbp_shim_spoiled())

    def run(self, name: str, *arguments: Any) -> Any:
        """A raw operator on copies of its tensors, everything guarded, blocks in another order each time."""
        self.calls += 1
        self.order(*(self.fixed_order or (ORDERS[self.calls % 3], self.calls)))
        self.device(
            self.fixed_capability or CAPABILITIES[self.calls // 2 % 2], self._multiprocessors
        )
        with self.guarded(end=self.calls % 2 == 0):
            copies = [embed(a) if isinstance(a, Tensor) else a for a in arguments]
            return getattr(torch.ops.fbp_shim, name)(*copies)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self.run, name)


def embed(tensor: Tensor) -> Tensor:
    """A copy of the same strides, whose memory ends with the last element."""
    if not tensor.numel():
        return tensor
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((n - 1) * s for n, s in sizes)
    flat = tensor.as_strided((extent,), (1,), tensor.storage_offset())
    return (
        torch.empty(extent, dtype=tensor.dtype)
        .copy_(flat)
        .as_strided(tensor.shape, tensor.stride())
    )


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = os.fspath(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed, nor is it beside {sys.executable}")
    return found


@functools.cache
def load() -> Shim:
    """Builds the library, where sources are newer, and loads it."""
    if sys.platform != "linux":
        pytest.skip("the shim handles faults as Linux tells of them")
    cmake, ninja = _tool("cmake"), _tool("ninja")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # processes that test side by side build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            cmake, "-S", ROOT / "tests" / "cuda_shim", "-B", BUILD, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}",
        ]  # fmt: skip
        for command in (configure, [cmake, "--build", BUILD]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return Shim(BUILD / "_shim.so")
