"""Calls operators' kernels again and again, and compares each prepared launch with the plain one of the same tensors.

A program of its own, at the stub of the driver, which is the first argument. Prints a line of JSON for each call: how
often it went through Triton's binder, and for each launch that was prepared before whether the compiled kernel and all
that reached the driver are what Triton itself would have taken.
"""

import ctypes
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.jit import JITFunction

from bench import stub
from fbp_kernels.triton import attention_pool, bilinear, launch, local_response_norm
from fbp_kernels.triton import power_normalize as power


class Address:
    """What Triton takes for a tensor."""

    def __init__(self, dtype: torch.dtype, address: int) -> None:
        self.dtype, self._address = dtype, address

    def data_ptr(self) -> int:
        return self._address


class Watch:
    """Stands in the way of all launches."""

    def __init__(self, library: str) -> None:
        self.stub = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        self.values = (ctypes.c_ulonglong * 256).in_dll(self.stub, "stub_values")
        self.bound = 0
        self.prepared: list[bool] = []
        self.direct = True  # all prepared ones, by the function in C that Triton's launcher ends in
        self._run, self._again, self._starter = JITFunction.run, launch._again, launch.starter
        self._bound: Any = ()
        JITFunction.run = lambda *arguments, **options: self._bind(*arguments, **options)
        launch._again = self._watched  # type: ignore[assignment]
        launch.starter = self._found  # type: ignore[assignment]

    def _bind(self, function: Any, *arguments: Any, **options: Any) -> Any:
        self.bound += 1
        self._bound = arguments
        return self._run(function, *arguments, **options)

    def _found(self, *arguments: Any) -> Any:
        start, settings = self._starter(*arguments)
        self.direct &= bool(settings)
        return start, settings

    def _watched(self, plan: Any, device: Any, compiled: Any, rest: Any) -> Any:
        again = self._again(plan, device, compiled, rest)
        dtypes = [getattr(argument, "dtype", None) for argument in self._bound]

        def watched(pointers: list[Any]) -> Any:
            self._number("parameters").value = len(self._widths(compiled))
            done = again(pointers)
            got = self._received(compiled)
            tensors = [
                p if p is None else Address(dtype, p)
                for p, dtype in zip(pointers, dtypes, strict=False)
            ]
            plainly = plan.kernel[plan.grid](*tensors, *plan.numbers, **plan.options)
            self.bound -= 1
            self.prepared.append(plainly is compiled and got == self._received(compiled))
            return done

        return watched

    def _number(self, name: str) -> ctypes.c_int:
        return ctypes.c_int.in_dll(self.stub, f"stub_{name}")

    def _widths(self, compiled: Any) -> list[int]:
        """Bits of the kernel's parameters."""
        header = compiled.asm["ptx"].partition(".entry")[2].partition("{")[0]
        return [int(bits) for bits in re.findall(r"\.param \.[a-z](\d+)", header)]

    def _received(self, compiled: Any) -> list[int]:
        widths = self._widths(compiled)
        values = [value % 2**bits for value, bits in zip(self.values, widths, strict=False)]
        return [*values, *(self._number(name).value for name in ("grid", "threads", "function"))]


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def shifted(*shape: int) -> Tensor:
    """As large, but not at 16 bytes."""
    size = torch.Size(shape).numel()
    return bf16(size + 1)[1:].view(shape)


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """By name, calls whose launches are alike only where the names are."""
    norm = (5, 1e-4, 0.75, 1.0, True)
    for rows in (16, 17):
        x = bf16(rows, 32, 4, 8)
        yield f"norm {rows}", lambda x=x: local_response_norm.forward(x, *norm)
        yield f"norm {rows} back", lambda x=x: local_response_norm.backward(x, x, *norm, 1)
    x = shifted(16, 32, 4, 8)
    yield "norm shifted", lambda: local_response_norm.forward(x, *norm)
    yield "norm half", lambda: local_response_norm.forward(half(16, 32, 4, 8), *norm)
    y = bf16(16, 32, 4, 8).to(memory_format=torch.channels_last)
    yield "norm last", lambda: local_response_norm.forward(y, *norm)
    for name, z in {
        "plain": bf16(16, 64),
        "spaced": bf16(16, 128)[:, ::2],
        "apart": bf16(16, 65)[:, :64],
        "shifted": shifted(16, 64),
        "one column": bf16(64, 16)[:, :1],
        "far": torch.empty_strided((2, 64), (2**31, 1), dtype=torch.bfloat16, device="meta"),
        "elsewhere": torch.empty(16, 64, dtype=torch.bfloat16, device="meta"),
        "half": half(16, 64),
        "wide": torch.zeros(16, 64),
    }.items():
        yield f"power {name}", lambda z=z: power.forward(z, 1e-12)
    yield "power eps", lambda: power.forward(bf16(16, 64), 1e-6)
    for rows in (16, 17):
        B, C, D, O_G, K_G, H, O_M, K_M = (rows, 32, 32, 16, 4, 2, 16, 4)
        bilinear.SAMPLES["small"] = (B, C, D, O_G, K_G, H, O_M, K_M)
        for dtype in (torch.bfloat16, torch.float16):
            for number, sample in enumerate(bilinear.samples("small", dtype, "cpu")):
                yield f"fbp {rows} {dtype} {number}", sample
    attention_pool.SAMPLES["small"] = (3, 40, 32, 32, 4)
    for dtype in (torch.bfloat16, torch.float16):
        for number, sample in enumerate(attention_pool.samples("small", dtype, "cpu")):
            yield f"attention {dtype} {number}", sample


def main() -> None:
    watch = Watch(sys.argv[1])
    stub.activate()
    heard: list[object] = []
    for name, call in calls():
        for turn in ("first", "second", "heard"):
            watch.bound, watch.prepared[:], heard[:] = 0, [], []
            if turn == "heard":  # by a profiler
                knobs.runtime.launch_enter_hook.add(heard.append)
            call()
            if turn == "heard":
                knobs.runtime.launch_enter_hook.remove(heard.append)
            line = {"call": name, "turn": turn, "bound": watch.bound, "prepared": watch.prepared}
            print(json.dumps(line | {"heard": len(heard), "direct": watch.direct}), flush=True)


if __name__ == "__main__":
    main()
