"""What the Triton backend costs the processor before a kernel is started: launches go to a driver that runs nothing.

Figures are of whole calls of a backend's kernels ("forward" and "backward": from the operator's tensors to the driver,
results allocated) and of the public operators ("call", and "training" with autograd). Another commit is measured beside
what is checked out, in turn, by a process of its own.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .checkout import (
    ROOT,
    Worker,
    answer,
    exported,
    in_turn,
    measured_as_here,
    workers,
)
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
            # The kernels and what calls them.
            checkouts["before"] = exported(against, Path(folder, "before"), "kernels", "bench")
            measured_as_here(checkouts["before"], "host", "stub")
        with _warm_workers(checkouts, patterns, environment) as begun:
            costs = list(_measure(begun, turns))
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


@contextmanager
def _warm_workers(
    checkouts: dict[str, Path], patterns: list[str], environment: dict[str, str]
) -> Iterator[dict[str, Worker]]:
    # Compiling leaves a process a heap in which large results cost it some microseconds more: others do that before.
    for path in checkouts.values():
        Worker(path, "host", patterns, environment).close()
    with workers(checkouts, "host", patterns, environment) as begun:
        yield begun


def _measure(begun: dict[str, Worker], turns: int) -> Iterator[Cost]:
    for case, launches in begun["now"].ready.items():
        calls = {
            name: max(1, round(_SECONDS / worker.time(case, 10))) for name, worker in begun.items()
        }
        samples = in_turn(begun, case, calls, turns)
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


def _cases(patterns: Sequence[str]) -> dict[str, Callable[[], object]]:
    """By name, calls of everything that the Triton backend runs, as far as it is asked for."""
    import torch

    from fbp_kernels import backends

    from .operators import OPERATORS, Draw
    from .operators.call import forward, leaves, on_backend, results, training
    from .shapes import MAPS

    found: dict[str, Callable[[], object]] = {}
    for name, operator in OPERATORS.items():
        label = next((label for label in (*MAPS, "clip") if label in operator.sizes), None)
        if label is None:
            continue
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


def _matches(case: str, patterns: Sequence[str]) -> bool:
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


def serve(*patterns: str) -> None:
    """Gets the cases ready, and times them when it is told to."""
    import gc
    import time

    import torch

    import fbp_kernels.triton

    from . import stub

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
    gc.disable()

    def seconds(name: str, calls: int) -> float:
        run = cases[name]
        gc.collect()
        run()
        start = time.thread_time()  # whatever else the machine does
        for _ in range(calls):
            run()
        return (time.thread_time() - start) / calls

    answer(launches, seconds)
