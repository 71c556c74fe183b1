"""Compiles the samples of every module for sm_90 and launches them for real, at a driver that runs nothing.

A program of its own, for Triton must not be interpreted: the stub of the driver is the first argument. Prints lines of
JSON: how many times kernels are compiled for batches of several sizes, then one for each launch.
"""

import ctypes
import json
import re
import sys
from typing import Any

import torch
from torch import Tensor

from bench import stub
from fbp_kernels.triton import attention_pool, bilinear, launch, local_response_norm
from fbp_kernels.triton import power_normalize as power


def compiled_variants() -> dict[str, int]:
    """How many times each kernel is compiled over batches of one class of size, of all kinds of divisibility."""
    found: dict[str, set[int]] = {}

    def compile_it(kernel: Any, grid: Any, arguments: Any, options: dict[str, Any]) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        found.setdefault(kernel.fn.__name__, set()).add(id(compiled))

    shape = bilinear.SAMPLES["small"]
    with launch.instead(compile_it):
        for rows in (2, 3, 16, 33, 64):
            bilinear.SAMPLES["small"] = (rows, *shape[1:])
            bilinear.samples("small", torch.bfloat16, "meta")[0]()
    bilinear.SAMPLES["small"] = shape
    return {name: len(ids) for name, ids in found.items()}


def main() -> None:
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
    values = (ctypes.c_ulonglong * 256).in_dll(library, "stub_values")

    def number(name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(library, f"stub_{name}")

    def run(kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **options)
        header = compiled.asm["ptx"].partition(".entry")[2].partition("{")[0]
        declared = re.findall(r"\.param .*_param_\d+", header)
        number("parameters").value = len(declared)
        launches = number("launches").value
        kernel[grid](*arguments, **options)
        given = list(values[: len(declared)])
        pointers = [t.data_ptr() for t in arguments if isinstance(t, Tensor)]
        rest = iter(given)
        print(
            json.dumps(
                {
                    "kernel": kernel.fn.__name__,
                    "launched": number("launches").value - launches,
                    "in order": all(pointer in rest for pointer in pointers),
                    "tensors": len(pointers),
                    "grid": [number("grid").value, grid[0]],
                    "threads": [number("threads").value, 32 * options["num_warps"]],
                }
            ),
            flush=True,
        )

    stub.activate()
    for name, variants in compiled_variants().items():
        print(json.dumps({"compiled": name, "variants": variants}), flush=True)
    with launch.instead(run):
        for module in (bilinear, attention_pool, local_response_norm, power):
            for sample in module.samples("small", torch.bfloat16, "cpu")[:2]:
                sample()


if __name__ == "__main__":
    main()
