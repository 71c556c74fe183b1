"""Runs steps under torch.profiler and keeps the trace."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from profiling.ranges import Range
from profiling.trace import STEP, Trace

_PRIVATE = ("traceName", "host_name")  # of this machine, and of no use to anybody else


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_step(step: Callable[[], object], device: torch.device) -> None:
    """Takes a step in its range, which ends when the device is done with it."""
    with Range(STEP):
        step()
        synchronize(device)


def record(step: Callable[[], object], *, steps: int, device: torch.device, path: Path) -> Trace:
    """Traces some steps, with shapes and allocations.

    Args:
        step: takes one.
        steps: how many.
        device: where it runs.
        path: of the trace, "*.json.gz", which https://ui.perfetto.dev opens.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for _ in range(steps):
            one_step(step, device)
    raw = path.with_suffix("")  # without .gz
    profiler.export_chrome_trace(str(raw))
    contents = json.loads(raw.read_text("utf-8"))
    raw.unlink()
    for key in _PRIVATE:
        contents.pop(key, None)
    path.write_bytes(gzip.compress(json.dumps(contents).encode(), mtime=0))
    return Trace(contents["traceEvents"])
