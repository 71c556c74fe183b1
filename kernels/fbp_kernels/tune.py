"""Searches for the fastest configurations on a GPU and writes them into a table: `python -m fbp_kernels.tune`.

A candidate counts only if it computes what the table's configuration computes. Candidates are compiled ahead by other
processes while this one runs them; the table is written after every kernel, so that a run that is cut off leaves what
it found.
"""

import argparse
import copy
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import tf32
from .triton import interpreted, tuning
from .triton.tuning import Config, Key

_GAIN = 0.98  # of the table's time, which a better one has to beat: less is within the spread
_FINAL = 3  # candidates that are timed again, longer

Sample = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a launch: 10th percentile, median, 90th percentile."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{1e3 * self.median:.1f} ({1e3 * self.low:.1f} to {1e3 * self.high:.1f}) us"


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        key: that was searched for.
        table: the table's configuration, and its time.
        best: the fastest that was found, which may be the same.
        tried: how many configurations ran and were right.
        left_out: what did not run, or was wrong, and how.
    """

    key: Key
    table: tuple[Config, Timing]
    best: tuple[Config, Timing]
    tried: int
    left_out: list[tuple[Config, str]] = field(default_factory=list)

    def __str__(self) -> str:
        (_, before), (config, after) = self.table, self.best
        lines = [
            f"{self.key}: table {before}, best of {self.tried}: {after}"
            f" ({before.median / after.median:.2f} times as fast) {config.entry()}"
        ]
        lines += [f"  left out: {config.entry()}: {why}" for config, why in self.left_out]
        return "\n".join(lines)


@dataclass(frozen=True)
class Bench:
    """What a search needs of a device.

    Attributes:
        time: a call, for about so many milliseconds.
        error: of a plain product in a class of dtype, as a part of its largest value.
        seconds_left: until the search has to end.
    """

    time: Callable[[Callable[[], object], float], Timing]
    error: Callable[[str], float]
    seconds_left: Callable[[], float]


def searches(
    sample: Sample, architecture: str, done: set[Key], kernels: Sequence[str], bench: Bench
) -> Iterator[Found]:
    """Searches for the configurations of every kernel that a sample launches and that is not done yet.

    Args:
        sample: launches kernels; gives all that they compute.
        architecture: whose part of the table counts.
        done: keys that are left out; those searched for are added.
        kernels: names of those that are searched for.
        bench: the device.

    Raises:
        ValueError: the sample gives nothing that could be compared.
    """
    reached: list[Key] = []

    def note(key: Key, architecture: str, call: tuning.Call) -> Any:
        reached.append(key)
        return call(tuning.lookup(key, architecture))

    with tuning.choosing(note):
        wanted = tensors(sample())
    if not wanted:
        raise ValueError("the sample gives no result, so no candidate can be compared")
    for key in dict.fromkeys(reached):
        if key in done or key.kernel not in kernels:
            continue
        if bench.seconds_left() <= 0:
            return
        done.add(key)
        yield _search(sample, key, tuning.lookup(key, architecture), wanted, bench)


def _search(sample: Sample, key: Key, default: Config, wanted: list[Tensor], bench: Bench) -> Found:
    right, left_out = [default], []
    for config in tuning.candidates(key):
        if config == default:
            continue
        if bench.seconds_left() <= 0:
            break
        wrong = _wrong(sample, key, config, wanted, bench.error(key.dtype))
        if wrong:
            left_out.append((config, wrong))
        else:
            right.append(config)
    timed: list[tuple[Config, Timing]] = []

    def time_all(call: tuning.Call) -> None:
        if timed:  # a sample may launch a kernel twice
            return

        def times(configs: list[Config], milliseconds: float) -> list[tuple[Config, Timing]]:
            made = [(c, bench.time(lambda: call(c), milliseconds)) for c in configs]  # noqa: B023
            return sorted(made, key=lambda pair: pair[1].median)

        first = [config for config, _ in times(right, 10)][:_FINAL]
        timed.extend(times(first if default in first else [default, *first], 50))

    _with(sample, key, default, before=time_all)
    table = next(pair for pair in timed if pair[0] == default)
    better = timed[0][1].median < _GAIN * table[1].median
    return Found(key, table, timed[0] if better else table, len(right), left_out)


def _wrong(sample: Sample, key: Key, config: Config, wanted: list[Tensor], error: float) -> str:
    """Why a configuration cannot be used, or ""."""
    try:
        with _poisoned_memory():
            got = tensors(_with(sample, key, config))
    except torch.AcceleratorError:  # the device is gone for all that comes after
        raise
    except Exception as failure:
        return f"does not run: {tuning.reason(failure)}"
    return differs(got, wanted, error)


def _with(
    sample: Sample, key: Key, config: Config, before: Callable[[tuning.Call], None] | None = None
) -> object:
    """Runs a sample with one kernel in a given configuration, the others as the table has them."""

    def choose(reached: Key, architecture: str, call: tuning.Call) -> Any:
        if reached != key:
            return call(tuning.lookup(reached, architecture))
        if before:
            before(call)
        return call(config)

    with tuning.choosing(choose):
        return sample()


def differs(got: list[Tensor], wanted: list[Tensor], error: float) -> str:
    """How results differ from those of a configuration that is right, or "".

    Right is within e = 2 r + u of the truth, r the error of plain PyTorch and u one unit in the last place, both at
    the scale of the result. Two that are right are within 2 e of each other.

    Args:
        got: results.
        wanted: those of the table's configuration.
        error: r as a part of the scale.
    """
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        if not ours.is_floating_point():
            if not torch.equal(ours, theirs):
                return f"result {number} differs"
            continue
        scale = theirs.abs().max().item() if theirs.numel() else 0.0
        allowed = 2 * (2 * error + torch.finfo(ours.dtype).eps) * scale
        apart = (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
        if not apart <= allowed:  # NaN is not
            return f"result {number} differs by {apart:.3e}, allowed are {allowed:.3e}"
    return ""


def tensors(result: object) -> list[Tensor]:
    """The tensors of a result, however it is nested, those without elements left out."""
    if isinstance(result, Tensor):
        return [result] if result.numel() else []
    if isinstance(result, (tuple, list)):
        return [t for part in result for t in tensors(part)]
    return []


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN: freed memory may hold the right results, which somebody else computed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def merged(table: dict[str, Any], architecture: str, found: Sequence[Found]) -> dict[str, Any]:
    """The table with the best configurations in it."""
    table = copy.deepcopy(table)
    for one in found:
        dtypes = table.setdefault(architecture, {}).setdefault(one.key.kernel, {})
        dtypes.setdefault(one.key.dtype, {})[one.key.size] = one.best[0].entry()
    return table


# From here on a GPU is needed.


def _time(call: Callable[[], object], milliseconds: float) -> Timing:
    from triton.testing import do_bench

    low, median, high = do_bench(
        call, warmup=milliseconds / 4, rep=milliseconds, quantiles=[0.1, 0.5, 0.9]
    )
    return Timing(low, median, high)


@cache
def _product_error(dtype: str) -> float:
    from .triton.ahead import DTYPES

    generator = torch.Generator("cuda").manual_seed(0)
    a, b = (
        torch.randn(2048, 2048, device="cuda", generator=generator).to(DTYPES[dtype])
        for _ in range(2)
    )
    truth = a.double() @ b.double()
    with tf32.products(dtype == "tf32"):
        error = ((a @ b).double() - truth).abs().max() / truth.abs().max()
    return error.item()


def _compile(module: str, size: str, dtype: str, capability: int, number: int) -> None:
    """Fills Triton's cache with one of the candidates of every kernel; what fails, fails again when it is run."""
    from .triton import ahead

    ahead.compile_samples(
        module, size, dtype, capability, lambda key: tuning.candidates(key)[number : number + 1]
    )


def _most(module: str, size: str, dtype: str, architecture: str, kernels: Sequence[str]) -> int:
    """The most candidates that a kernel of a module has."""
    known = importlib.import_module(module).CANDIDATES
    keys = (Key(kernel, dtype, size) for kernel in known if kernel in kernels)
    return max((len(tuning.candidates(key)) for key in keys), default=0)


def tune(kernels: Sequence[str], seconds: float, out: Path, processes: int) -> list[Found]:
    """Searches on the current device and writes the table after every kernel.

    Args:
        kernels: names of those that are searched for.
        seconds: after which no search begins.
        out: file of the new table.
        processes: that compile.
    """
    from .triton.ahead import DTYPES
    from .triton.launch import architecture

    device = torch.device("cuda", torch.cuda.current_device())
    own = architecture(device)
    major, minor = torch.cuda.get_device_capability(device)
    end = time.monotonic() + seconds
    bench = Bench(_time, _product_error, lambda: end - time.monotonic())
    found: list[Found] = []
    done: set[Key] = set()
    groups = [(m, s, d) for d in DTYPES for m in tuning.MODULES for s in tuning.SIZES]
    with get_context("spawn").Pool(processes) as pool:  # ended with the block, compiling or not
        compiled = [
            [
                pool.apply_async(_compile, (*group, 10 * major + minor, number))
                for number in range(_most(*group, own, kernels))
            ]
            for group in groups
        ]
        for (module, size, dtype), jobs in zip(groups, compiled, strict=True):
            for job in jobs:
                job.wait(max(0.0, bench.seconds_left()))
            if bench.seconds_left() <= 0:
                break
            with tf32.products(dtype == "tf32"):
                for sample in importlib.import_module(module).samples(size, DTYPES[dtype], device):
                    try:
                        for one in searches(sample, own, done, kernels, bench):
                            found.append(one)
                            out.write_text(tuning.text(merged(tuning.table(), own, found)))
                            print(one, flush=True)
                    except torch.AcceleratorError:
                        raise
                    except Exception as error:
                        print(f"{module} {size} {dtype}: {tuning.reason(error)}", flush=True)
    left = [key for key in tuning.entries(own) if key.kernel in kernels and key not in done]
    print(f"{len(found)} searched for on {torch.cuda.get_device_name()}, {len(left)} left")
    for key in left:
        print(f"  left: {key}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fbp_kernels.tune", description=__doc__)
    parser.add_argument("--kernels", nargs="+", help="names in the table; default: all")
    parser.add_argument("--seconds", type=float, default=600, help="for all of it (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("table.json"), help="file of the new table"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile")
    options = parser.parse_args(arguments)
    if interpreted():
        parser.error("TRITON_INTERPRET is set: the interpreter has nothing to tune; unset it")
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here")
    known = [k for m in tuning.MODULES for k in importlib.import_module(m).CANDIDATES]
    unknown = set(options.kernels or ()) - set(known)
    if unknown:
        parser.error(f"there is no kernel {', '.join(unknown)}, expected {', '.join(known)}")
    found = tune(options.kernels or known, options.seconds, options.out, options.processes)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
