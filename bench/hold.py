"""Holds a process and all that is measured in it to an instruction set below the processor's best: `--hold avx2`.

Each library has a switch of its own, which it reads when it is loaded: so a process is held from its start. What each
of them then says of itself is asked inside.

MKL (PyTorch's float32 products) minds its switch on Intel's processors. On AMD's it has a kernel for AVX2 that it takes
whether or not there is AVX-512 and whatever is asked for, and says nothing of it
(findings/mkl_on_amd_has_one_kernel.sh).
"""

import ctypes
import functools
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fbp_kernels import native

SETTINGS = {
    "avx512": {
        "FBP_CPU_ISA": "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
    "avx2": {
        "FBP_CPU_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "portable": {
        "FBP_CPU_ISA": "portable",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
# What each of them says of itself then, to the letter or at the beginning. MKL's is asked for on Intel's processors.
_SAID = {
    "avx512": {
        "kernels": "avx512",
        "PyTorch": "AVX512",
        "MKL": "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512)",
        "oneDNN": "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
        "torch.compile": "avx512",
    },
    "avx2": {
        "kernels": "avx2",
        "PyTorch": "AVX2",
        "MKL": "Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2)",
        "oneDNN": "Intel AVX2",
        "torch.compile": "avx2",
    },
    "portable": {
        "kernels": "portable",
        "PyTorch": "DEFAULT",
        "MKL": "Intel(R) Streaming SIMD Extensions 4.2 (Intel(R) SSE4.2)",
        "oneDNN": "Intel SSE4.1",
        "torch.compile": "INVALID_VEC_ISA",
    },
}
_BEGINNING = ("MKL", "torch.compile")
_UNHELD_MKL = "Intel(R) Architecture processors"  # on a processor of somebody else


def is_held(instruction_set: str) -> bool:
    """Whether this process was started with the switches of an instruction set."""
    return all(os.environ.get(name) == value for name, value in SETTINGS[instruction_set].items())


def again(instruction_set: str, arguments: Sequence[str]) -> int:
    """Runs a command of the benchmarks in a process that is held from its start; gives its exit status."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, env=os.environ | SETTINGS[instruction_set]).returncode


def lowered() -> str:
    """The instruction set of the kernels where that is not the best that they have for this processor, else ""."""
    if native.MISSING:
        return ""
    ops = torch.ops.fbp_native
    chosen: str = ops.cpu_isa()
    return "" if chosen == ops.cpu_isas().split(",")[0] else chosen


def require(instruction_set: str) -> None:
    """Makes sure that this process is held to an instruction set.

    Raises:
        ValueError: something in it is not; the message says what each library says of itself.
    """
    said = reports()
    wrong = [
        f"{name} says {said[name]!r}, expected {wanted!r}"
        for name, wanted in _SAID[instruction_set].items()
        if not (said[name].startswith(wanted) if name in _BEGINNING else said[name] == wanted)
        and not (name == "MKL" and said[name] == _UNHELD_MKL)
    ]
    if wrong:
        raise ValueError(f"not held to {instruction_set}: {'; '.join(wrong)}")


@functools.cache
def reports() -> dict[str, str]:
    """What the kernels and each library that PyTorch computes with say of their instruction set."""
    vectors = importlib.import_module("torch._inductor.cpu_vec_isa")
    return {
        "kernels": native.MISSING or torch.ops.fbp_native.cpu_isa(),
        "PyTorch": torch.backends.cpu.get_cpu_capability(),
        "MKL": _mkl(),
        "oneDNN": _onednn(),
        "torch.compile": str(vectors.pick_vec_isa()),
    }


def _mkl() -> str:
    side = torch.ones(8, 8)
    with _printed() as lines, torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        torch.mm(side, side)
    # "MKL_VERBOSE oneMKL 2024.0 ... for Intel(R) 64 architecture PROCESSOR, Lnx 2.60GHz lp64 gnu_thread"
    found = (line.partition(" architecture ")[2].partition(", Lnx")[0] for line in lines)
    return next(filter(None, found), "not there")


def _onednn() -> str:
    image, kernel = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3)
    mkldnn = torch.backends.mkldnn
    with _printed() as lines, mkldnn.verbose(mkldnn.VERBOSE_ON):
        torch.nn.functional.conv2d(image, kernel)
    # "onednn_verbose,v1,info,cpu,isa:Intel AVX2"
    found = (line.partition(",cpu,isa:")[2] for line in lines)
    return next(filter(None, found), "not there")


@contextmanager
def _printed() -> Iterator[list[str]]:
    """Keeps what C libraries print meanwhile from the screen; the list has it afterwards."""
    lines: list[str] = []
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush()
    flush(None)
    screen = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            flush(None)
            os.dup2(screen, 1)
            os.close(screen)
            file.seek(0)
            lines += file.read().decode().splitlines()
