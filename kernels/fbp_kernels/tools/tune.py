"""Searches for the fastest configurations on a GPU and writes them into a table: `python -m fbp_kernels.tools.tune`.

A configuration counts only if it is right by float64 and gives the same bits twice (`fbp_kernels.triton.judge`), that
of the table included. Candidates are compiled ahead by other processes while this one runs them; the table is written
after every kernel, so that a run that is cut off leaves what it found.
"""

import argparse
import copy
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .. import tf32
from ..triton import interpreted, judge, tuning
from ..triton.tuning import DTYPES, Config, Key

_GAIN = 0.98  # of the table's time, which a better one has to beat: less is within the spread
_FINAL = 3  # candidates that are timed again, longer


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a launch: 10th percentile, median, 90th percentile."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{1e3 * self.median:.1f} ({1e3 * self.low:.1f} to {1e3 * self.high:.1f}) us"


Timed = tuple[Config, Timing]


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
        key: that was searched for.
        table: the table's configuration, and its time where it is right.
        best: the fastest that is right, which may be the same; None where none is.
        tried: how many configurations ran and were right.
        left_out: what did not run, or was wrong, and how.
    """

    key: Key
    table: tuple[Config, Timing | None]
    best: Timed | None
    tried: int
    left_out: list[tuple[Config, str]] = field(default_factory=list)

    @property
    def table_wrong(self) -> str:
        """Why the table's own configuration cannot be used, or ""."""
        return next((why for config, why in self.left_out if config == self.table[0]), "")

    def __str__(self) -> str:
        before = self.table[1]
        lines = [f"{self.key}: {self._best(before)}"]
        if self.table_wrong:
            what = "is replaced" if self.best else "stays, for there is no other"
            lines.append(f"  THE TABLE'S ENTRY IS WRONG and {what}: {self.table_wrong}")
        lines += [f"  left out: {config.entry()}: {why}" for config, why in self.left_out]
        return "\n".join(lines)

    def _best(self, before: Timing | None) -> str:
        if self.best is None:
            return "no configuration is right"
        config, after = self.best
        gain = f" ({before.median / after.median:.2f} times as fast)" if before else ""
        table = f"table {before}, " if before else ""
        return f"{table}best of {self.tried}: {after}{gain} {config.entry()}"


@dataclass(frozen=True)
class Bench:
    """What a search needs of a device.

    Attributes:
        time: a call, for about so many milliseconds.
        seconds_left: until the search has to end.
    """

    time: Callable[[Callable[[], object], float], Timing]
    seconds_left: Callable[[], float]


class Search:
    """Searches for the configurations of kernels; what it found serves the kernels that come after.

    Args:
        kernels: names of those that are searched for.
        bench: the device.
    """

    def __init__(self, kernels: Sequence[str], bench: Bench) -> None:
        self.kernels, self._bench = kernels, bench
        self.done: dict[Key, Found] = {}

    def configuration(self, key: Key, architecture: str) -> Config:
        """The best that was found for a key, else the table's."""
        found = self.done.get(key)
        return found.best[0] if found and found.best else tuning.lookup(key, architecture)

    def among(self, samples: Sequence[judge.Sample], architecture: str) -> Iterator[Found]:
        """Searches for every kernel that samples launch and that is not done yet, each judged by all that launch it.

        A kernel of which nothing is right waits until the others were searched for: a sample is wrong as well where
        another's entry is.
        """
        judges = [judge.Judge(sample, self.configuration) for sample in samples]
        waiting: dict[Key, Found] = {}
        while self._bench.seconds_left() > 0:
            reached = {j: j.reached() for j in judges}
            due = [
                k for keys in reached.values() for k in keys if self._due(k) and k not in waiting
            ]
            if not due:
                break
            key = due[0]
            found = self._search(key, [j for j in judges if key in reached[j]], architecture)
            if found is None:
                return
            if found.best is None:
                waiting[key] = found
                continue
            if found.table_wrong:  # it may have been what kept others from being right
                waiting.clear()
            self.done[key] = found
            yield found
        for key, found in waiting.items():
            self.done[key] = found
            yield found

    def _due(self, key: Key) -> bool:
        return key.kernel in self.kernels and key not in self.done

    def _search(self, key: Key, judges: list[judge.Judge], architecture: str) -> Found | None:
        """What came of one kernel; None where the time was up before anything was right."""
        table = tuning.lookup(key, architecture)
        right: list[Config] = []
        left_out: list[tuple[Config, str]] = []
        for config in [table, *(c for c in tuning.candidates(key) if c != table)]:
            if self._bench.seconds_left() <= 0:
                if not right:
                    return None
                break
            why = judge.why_wrong(judges, key, config)
            if why:
                left_out.append((config, why))
            else:
                right.append(config)
        if not right:
            return Found(key, (table, None), None, 0, left_out)
        timed = self._timed(key, judges[0], right, table)
        before = next((timing for config, timing in timed if config == table), None)
        stays = before is not None and not timed[0][1].median < _GAIN * before.median
        best = (table, before) if stays and before else timed[0]
        return Found(key, (table, before), best, len(right), left_out)

    def _timed(
        self, key: Key, sample: judge.Judge, right: list[Config], table: Config
    ) -> list[Timed]:
        """The fastest of those that are right, and the table's where it is one of them; the fastest first."""
        timed: list[Timed] = []

        def time_all(call: tuning.Call) -> None:
            if timed:  # a sample may launch a kernel twice
                return

            def times(configs: list[Config], milliseconds: float) -> list[Timed]:
                time = self._bench.time
                made = [(c, time(lambda: call(c), milliseconds)) for c in configs]  # noqa: B023
                return sorted(made, key=lambda pair: pair[1].median)

            first = [config for config, _ in times(right, 10)][:_FINAL]
            keeps = table in right and table not in first
            timed.extend(times([table, *first] if keeps else first, 50))

        sample.run(key, right[0], before=time_all)
        return timed


def merged(table: dict[str, Any], architecture: str, found: Sequence[Found]) -> dict[str, Any]:
    """The table with the best configurations in it."""
    table = copy.deepcopy(table)
    for one in found:
        if one.best is None:
            continue
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


def _compile(module: str, size: str, dtype: str, capability: int, number: int) -> None:
    """Fills Triton's cache with one of the candidates of every kernel; what fails, fails again when it is run."""
    from ..triton import ahead

    ahead.compile_samples(
        module, size, dtype, capability, lambda key: tuning.candidates(key)[number : number + 1]
    )


def _most(module: str, size: str, dtype: str, architecture: str, kernels: Sequence[str]) -> int:
    """The most candidates that a kernel of a module has."""
    known = importlib.import_module(module).CANDIDATES
    keys = (Key(kernel, dtype, size) for kernel in known if kernel in kernels)
    return max((len(tuning.candidates(key)) for key in keys), default=0)


@dataclass(frozen=True)
class Tuned:
    """What a whole search came to.

    Attributes:
        found: kernel by kernel.
        failed: samples that could not be run at all, and why.
    """

    found: list[Found]
    failed: list[str]

    @property
    def whole(self) -> bool:
        """Whether something was found, and nothing was in vain."""
        return bool(self.found) and not self.failed and all(one.best for one in self.found)


def tune(kernels: Sequence[str], seconds: float, out: Path, processes: int) -> Tuned:
    """Searches on the current device and writes the table after every kernel.

    Args:
        kernels: names of those that are searched for.
        seconds: after which no search begins.
        out: file of the new table.
        processes: that compile.
    """
    from ..triton.launch import architecture

    device = torch.device("cuda", torch.cuda.current_device())
    own = architecture(device)
    major, minor = torch.cuda.get_device_capability(device)
    end = time.monotonic() + seconds
    bench = Bench(_time, lambda: end - time.monotonic())
    search = Search(kernels, bench)
    failed: list[str] = []
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
            try:
                with tf32.products(dtype == "tf32"):
                    samples = judge.samples(module, size, DTYPES[dtype], device)
                    for one in search.among(samples, own):
                        found = list(search.done.values())
                        out.write_text(tuning.text(merged(tuning.table(), own, found)))
                        print(one, flush=True)
            except torch.AcceleratorError:
                raise
            except Exception as error:
                failed.append(f"{module} {size} {dtype}: {tuning.reason(error)}")
                print(failed[-1], flush=True)
    left = [key for key in tuning.entries(own) if key.kernel in kernels and key not in search.done]
    wrong = [one for one in search.done.values() if one.table_wrong]
    print(f"{len(search.done)} searched for on {torch.cuda.get_device_name()}, {len(left)} left")
    lines = [f"left: {key}" for key in left] + [f"failed: {what}" for what in failed]
    lines += [f"the table's entry was wrong: {one.key}: {one.table_wrong}" for one in wrong]
    for line in lines:
        print(f"  {line}")
    return Tuned(list(search.done.values()), failed)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fbp_kernels.tools.tune", description=__doc__)
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
    tuned = tune(options.kernels or known, options.seconds, options.out, options.processes)
    return 0 if tuned.whole else 1


if __name__ == "__main__":
    sys.exit(main())
