"""Times contenders in turn, A B C B C A ..., so that whatever else the machine does hits them alike."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch

from .records import Spread

Run = Callable[[], object]

Note = Callable[[str, str], None]
"""Told who is at work and what it is being, such as ("native", "timed"); "" for all of a case."""

LEAST, MOST = 11, 400  # turns
_WARM_UP = 2


class Clock(Protocol):
    """Times one turn: every run once, in the order given."""

    def turn(self, runs: list[Run]) -> list[float]:
        """Seconds of each run."""
        ...


class CpuClock:
    """Time on the clock."""

    def turn(self, runs: list[Run]) -> list[float]:
        seconds = []
        for run in runs:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return seconds


class CudaClock:
    """Time between two events on the device; before each run its cache is flushed."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")

    def turn(self, runs: list[Run]) -> list[float]:
        events = []
        for run in runs:
            self._flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [1e-3 * start.elapsed_time(end) for start, end in events]


def clock(device: str) -> Clock:
    """The clock for a device, "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else CpuClock()


def interleave(
    runs: Mapping[str, Run],
    seconds: float,
    clock: Clock,
    least: int = LEAST,
    note: Note = lambda contender, doing: None,
) -> dict[str, list[float]]:
    """Times runs in turn; each turn begins with another one, since a run finds the caches as its predecessor left them.

    Args:
        runs: by name.
        seconds: for all turns together.
        clock: of the device.
        least: turns that are taken however long it takes.
        note: told who is at work.

    Returns:
        Seconds by name, in the order of the turns.
    """
    names = list(runs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_WARM_UP):
        for name, run in runs.items():
            note(name, "called once")
            clock.turn([run])
    note("", "timed in turn")
    end = time.perf_counter() + seconds
    with _no_collection():
        for number in range(MOST):
            if number >= least and time.perf_counter() > end:
                break
            first = number % len(names)
            order = names[first:] + names[:first]
            for name, taken in zip(order, clock.turn([runs[n] for n in order]), strict=True):
                samples[name].append(taken)
    return samples


def ratio(samples: dict[str, list[float]], name: str, peer: str) -> Spread:
    """The peer's time over that of `name`, turn by turn: above 1, `name` is faster."""
    return Spread.of([b / a for a, b in zip(samples[name], samples[peer], strict=True)])


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from running inside a timed call."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
