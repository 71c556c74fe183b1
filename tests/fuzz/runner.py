"""Runs drawn cases on an extension; imports nothing of the package, which would load the installed one.

`python tests/fuzz` calls it. A case is its number and the seed; the file of `--trace` names the last one begun, in
case the process does not live to say it.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from draws import DTYPES, Call, Draw
from operators import OPERATORS
from torch import Tensor


class FuzzError(Exception):
    """A result that cannot be, or a wrong call that was not refused."""


def main() -> None:
    """Runs cases and prints how many there were of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extension", type=Path, required=True, help="shared library to load")
    parser.add_argument("--library", default="fbp_native", help="of its operators")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=Path, help="file for the case that is running")
    parser.add_argument(
        "--overrun", action="store_true", help="read past a tensor and nothing else"
    )
    options = parser.parse_args()
    torch.ops.load_library(os.fspath(options.extension))
    if options.overrun:
        _overrun()
    fuzz = Fuzz(options.library, options.trace)
    for number in range(options.first, options.first + options.cases):
        fuzz.case(Draw(number, options.seed, fuzz.dtypes))
    print(fuzz.summary())


class Fuzz:
    """Runs cases of all operators that a library has, on all instruction sets that run here."""

    def __init__(self, library: str, trace: Path | None = None) -> None:
        self._ops = getattr(torch.ops, library)
        self._trace = trace
        self._operators = [o for o in OPERATORS if self._has(f"{o}_forward") or self._has(o)]
        for_cpu = hasattr(self._ops, "cpu_isas")
        self._isas = self._ops.cpu_isas().split(",") if for_cpu else [""]
        # Kernels for a GPU have no float64.
        self.dtypes = DTYPES if for_cpu else tuple(d for d in DTYPES if d != torch.float64)
        self.counts: dict[str, int] = {}

    def _has(self, operator: str) -> bool:
        name = f"{self._ops.name}::{operator}"
        kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        return hasattr(self._ops, operator) and kernel(name, "CPU")

    def case(self, draw: Draw) -> None:
        """Draws a case and runs its calls.

        Raises:
            FuzzError: see there.
        """
        operator = draw.rng.choice(self._operators)
        isa, threads = draw.rng.choice(self._isas), draw.rng.choice((1, 2, 3))
        os.environ["FBP_CPU_ISA"] = isa
        torch.set_num_threads(threads)
        what = f"case {draw.number}: {operator}, {isa}, {threads} threads, {draw.dtype}"
        try:
            OPERATORS[operator](draw, lambda call: self._run(call, draw, what))
        except FuzzError as error:
            raise FuzzError(f"{what}: {error}") from error

    def _run(self, call: Call, draw: Draw, what: str) -> Any:
        if self._trace is not None:
            self._trace.write_text(f"{what}\n{_text(call)}\n")
        kind = "refused" if call.wrong else "edge" if draw.edge else "valid"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        function = getattr(self._ops, call.operator)
        try:
            results = function(*call.arguments)
        except RuntimeError as error:
            if call.wrong:
                return None
            raise FuzzError(f"{_text(call)} was refused: {error}") from error
        if call.wrong:
            raise FuzzError(f"{_text(call)} was not refused: {call.wrong}")
        tensors = [
            r for r in (results if isinstance(results, tuple) else (results,)) if r is not None
        ]
        for i, result in enumerate(tensors):
            if not draw.edge and not result.isfinite().all():
                raise FuzzError(f"{_text(call)}: result {i} is not finite")
        if draw.large:
            self._check_threads(function, call, tensors)
        return results

    def _check_threads(self, function: Any, call: Call, first: list[Tensor]) -> None:
        """The same bits, however many threads share the work."""
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            again = function(*call.arguments)
            again = [r for r in (again if isinstance(again, tuple) else (again,)) if r is not None]
            for i, (x, y) in enumerate(zip(first, again, strict=True)):
                if not torch.equal(_bits(x), _bits(y)):
                    raise FuzzError(f"{_text(call)}: result {i} differs with {threads} threads")

    def summary(self) -> str:
        """What was run."""
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items()))
        return f"calls of {', '.join(self._operators)} on {', '.join(self._isas)}: {counts}"


def _text(call: Call) -> str:
    return f"{call.operator}({', '.join(_argument(a) for a in call.arguments)}) {call.wrong}"


def _bits(x: Tensor) -> Tensor:
    return x.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _argument(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind}{list(value.shape)}@{value.storage_offset()}+{list(value.stride())}"


def _overrun() -> None:
    """Reads past tensors: whatever looks after memory ends the process here."""
    import ctypes

    for _ in range(2):  # guard pages lie behind every other one
        x = torch.zeros(3)
        ctypes.string_at(x.data_ptr() + 4, 4 * x.numel())


if __name__ == "__main__":
    main()
