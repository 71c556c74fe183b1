"""What the Triton backend costs the processor before a kernel is started: launches go to a driver that runs nothing.

Figures are of whole calls of a backend's kernels ("forward" and "backward": from the operator's tensors to the driver,
results allocated) and of the public operators ("call", and "training" with autograd). Another commit is measured beside
what is checked out, in turn, by a process of its own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .checkout import ROOT, exported
from .records import Spread

VERSION = 1
_MODES = ("forward", "backward", "call", "training")
_SECONDS = 0.004  # of a group of calls, which is one sample

# What the system's allocator gives back to the system it has to ask for again, which is no part of a launch: a GPU's
# memory is kept by PyTorch.
_KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True)
class Cost:
    """Processor time of one call.

    Attributes:
        case: operator, shape, mode.
        seconds: "now", of what is checked out, and, where there is another commit, "before".
        ratio: before over now, turn by turn.
        launches: that one call makes.
    """

    case: str
    seconds: dict[str, Spread]
    ratio: Spread | None
    launches: int


def run_host(patterns: list[str], against: str | None, turns: int, out: Path | None) -> int:
    """Measures, prints and, where `out` is given, writes a JSON file.

    Args:
        patterns: of the names of cases; all where there are none.
        against: a commit, or None.
        turns: groups of calls of every case.
        out: a file.
    """
    from . import machine, stub

    with tempfile.TemporaryDirectory() as folder:
        environment = stub.build(Path(folder)) | _KEPT
        checkouts = {"now": ROOT}
        if against:
            checkouts["before"] = _exported(against, Path(folder, "before"))
        with _workers(checkouts, patterns, environment) as workers:
            costs = list(_measure(workers, turns))
    if not costs:
        print(f"no case matches {' '.join(patterns)}", file=sys.stderr)
        return 2
    if out is not None:
        values = {
            "version": VERSION,
            "before": against or "",
            "costs": [asdict(cost) for cost in costs],
        }
        machine.save_result(out, "cpu", "host", values)
    return 0


def _exported(commit: str, folder: Path) -> Path:
    """The kernels of a commit and what calls them, in a folder; measured as here, whatever it had for that."""
    exported(commit, folder, "kernels", "bench")
    for name in ("host.py", "stub.py"):
        shutil.copy(ROOT / "bench" / name, folder / "bench" / name)
    return folder


class _Worker:
    """A process that has a checkout's kernels ready."""

    def __init__(self, checkout: Path, patterns: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.host", *patterns],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.cases: dict[str, int] = self._read()

    def time(self, case: str, calls: int) -> float:
        """Seconds of one call, the mean of a group."""
        assert self._process.stdin is not None
        print(json.dumps([case, calls]), file=self._process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that measures ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def _workers(
    checkouts: dict[str, Path], patterns: list[str], environment: dict[str, str]
) -> Iterator[dict[str, _Worker]]:
    # Compiling leaves a process a heap in which large results cost it some microseconds more: others do that before.
    for path in checkouts.values():
        _Worker(path, patterns, environment).close()
    workers: dict[str, _Worker] = {}
    try:
        for name, path in checkouts.items():
            workers[name] = _Worker(path, patterns, environment)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def _measure(workers: dict[str, _Worker], turns: int) -> Iterator[Cost]:
    for case, launches in workers["now"].cases.items():
        calls = {
            name: max(1, round(_SECONDS / worker.time(case, 10)))
            for name, worker in workers.items()
        }
        samples: dict[str, list[float]] = {name: [] for name in workers}
        names = list(workers)
        for number in range(turns):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                samples[name].append(workers[name].time(case, calls[name]))
        ratio = None
        if "before" in samples:
            pairs = zip(samples["now"], samples["before"], strict=True)
            ratio = Spread.of([b / a for a, b in pairs])
        spreads = {name: Spread.of(values) for name, values in samples.items()}
        cost = Cost(case, spreads, ratio, launches)
        print(_line(cost), flush=True)
        yield cost


def _line(cost: Cost) -> str:
    times = ", ".join(
        f"{name} {1e6 * spread.median:.1f} us ({1e6 * spread.low:.1f} to {1e6 * spread.high:.1f})"
        for name, spread in cost.seconds.items()
    )
    ratio = f", {cost.ratio.median:.1f} times" if cost.ratio else ""
    return f"{cost.case}: {cost.launches} launches, {times}{ratio}"


# From here on in a process of its own, on the kernels of the checkout that it is told.


def _cases(patterns: list[str]) -> dict[str, Callable[[], object]]:
    """By name, calls of everything that the Triton backend runs, as far as it is asked for."""
    import torch

    from fbp_kernels import backends

    from .operators import OPERATORS, Draw
    from .operators.call import forward, leaves, on_backend, results, training
    from .shapes import MAPS

    found: dict[str, Callable[[], object]] = {}
    for name, operator in OPERATORS.items():
        label = next(label for label in (*MAPS, "clip") if label in operator.sizes)
        draw = Draw("bfloat16")
        call = operator.make(operator.sizes[label], draw)
        if "triton" not in backends._kernels[call.operator]:
            continue
        function = on_backend(call.function, "triton")
        title = f"{name} {label}"
        asked = {mode for mode in _MODES if _matches(f"{title} {mode}", patterns)}
        if not asked:
            continue
        with _noted(call.operator) as kernels:
            tensors = leaves(tuple(t.detach() for t in call.tensors))
            outputs = results(function(*tensors))
            gradients = tuple(torch.empty_like(z) for z in outputs)
            torch.autograd.grad(outputs, tensors, gradients)
            forward(function, tuple(t.detach() for t in call.tensors))()
        kernels["call"] = forward(function, tuple(t.detach() for t in call.tensors))
        kernels["training"] = training(function, call.tensors, gradients)
        found |= {f"{title} {mode}": kernels[mode] for mode in _MODES if mode in asked}
    return found


def _matches(case: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch(case, pattern) for pattern in patterns)


@contextmanager
def _noted(operator: str) -> Iterator[dict[str, Callable[[], object]]]:
    """Within it, how the operator's kernels are called is written down, to be called so again."""
    from fbp_kernels import backends

    kernel = backends._kernels[operator]["triton"]
    noted: dict[str, Callable[[], object]] = {}

    def note(mode: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: Any) -> object:
            given = tuple(a.detach() if hasattr(a, "detach") else a for a in arguments)
            noted[mode] = lambda: call(*given)
            return call(*arguments)

        return run

    backends._kernels[operator]["triton"] = backends.Kernel(
        note("forward", kernel.forward), note("backward", kernel.backward)
    )
    try:
        yield noted
    finally:
        backends._kernels[operator]["triton"] = kernel


def _serve(patterns: list[str]) -> None:
    import gc
    import time

    # An editable install would find its own kernels first.
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
    sys.path.insert(0, str(ROOT / "kernels"))
    import torch

    import fbp_kernels.triton

    from . import stub

    assert Path(fbp_kernels.__file__).is_relative_to(ROOT), fbp_kernels.__file__
    fbp_kernels.triton.why_not = lambda *_: ""  # tensors on the CPU will do where nothing runs
    torch.set_num_threads(1)
    stub.activate()
    from fbp_kernels.triton import launch

    cases = _cases(patterns)
    launches = {}
    for name, run in cases.items():
        with launch.counted() as names:
            run()
        launches[name] = len(names)
        for _ in range(20):
            run()
    print(json.dumps(launches), flush=True)
    gc.disable()
    for line in sys.stdin:
        name, calls = json.loads(line)
        run = cases[name]
        run()
        start = time.thread_time()  # whatever else the machine does
        for _ in range(calls):
            run()
        print((time.thread_time() - start) / calls, flush=True)
        gc.collect()


if __name__ == "__main__":
    _serve(sys.argv[1:])
