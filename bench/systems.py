"""What the kernels bring to training each system at full size: `python -m bench.systems [NAME...]`.

One step at a time, with reference operators and accelerated, in turn, on equal weights and the same batch of noise. Of
the accelerated step it is also told which operators of PyTorch it spends its time in: what no kernel of ours can make
faster. With `--resume`, a file is added to, system by system.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from avemo.models import ModelConfig
from avemo.models.backend import use_backend
from avemo.systems import figures, systems
from avemo.training.config import from_dict
from avemo.training.memory import keep_freed_memory

from . import machine
from .records import Spread
from .step import STEPS, StepShape, stepping
from .timing import clock, interleave, ratio

GOAL = 1.3  # times faster, at the median
LEAST_TURNS = 5
_SHOWN = 4  # operators of PyTorch


def names() -> list[str]:
    """AM-FBP and every system of Table I."""
    return [
        "am_fbp",
        *(figure.system for figure in figures() if figure.table == "I" and figure.system),
    ]


def main() -> int:
    """Measures, prints and writes a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.systems", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(names())}")
    parser.add_argument("--shape", choices=STEPS, default="full", help="%(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the turns of one system")
    parser.add_argument("--resume", action="store_true", help="keep the systems that OUT has")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found: dict[str, Any] = {}
    if options.resume and options.out.is_file():
        there = json.loads(options.out.read_text("utf-8"))
        machine.require_same(there["machine"], machine.describe("cpu"), str(options.out))
        found = there["systems"]
    for name in options.names or names():
        if name not in found:
            found[name] = _measure(name, options.shape, options.seconds)
            print(_line(name, found[name]), flush=True)
            values = {"threads": options.threads, "goal": GOAL, "systems": found}
            machine.save_result(options.out, "cpu", "systems", values)
    return 0


def _measure(name: str, label: str, seconds: float) -> dict[str, Any]:
    values = yaml.safe_load(systems()[name].config.read_text("utf-8"))
    full = STEPS[label]
    sizes = replace(from_dict(ModelConfig, values["model"]), **_sizes(full, values["model"]))
    shape = StepShape(name, sizes, full.batch)
    batch = shape.noise("cpu")
    runs: dict[str, Callable[[], Tensor]] = {}
    for side in ("reference", None):
        model = shape.network("cpu")
        use_backend(model, side)
        step = stepping(model)
        runs[side or "accelerated"] = lambda step=step: step(batch)  # type: ignore[misc]
    samples = interleave(runs, seconds, clock("cpu"), LEAST_TURNS)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        runs["accelerated"]()
    return {
        "turns": len(samples["accelerated"]),
        "reference_s": asdict(Spread.of(samples["reference"])),
        "accelerated_s": asdict(Spread.of(samples["accelerated"])),
        "speedup": asdict(ratio(samples, "accelerated", "reference")),
        "bound_by": _bound_by(profiled),
    }


def _sizes(full: StepShape, said: dict[str, Any]) -> dict[str, Any]:
    """Parts that a system says nothing of are those of the step's shape, which `full` leaves at the paper's sizes."""
    return {
        part: getattr(full.model, part)
        for part in ("audio", "video", "audio_attention", "video_attention", "fusion")
        if part not in said
    }


def _bound_by(profiled: profile) -> dict[str, float]:
    """The largest shares of a step's time that operators of PyTorch itself take, without what they call."""
    events = profiled.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    shares = {event.key: event.self_cpu_time_total / whole for event in events}
    top = sorted(shares, key=lambda key: -shares[key])[:_SHOWN]
    return {key: float(f"{shares[key]:.3g}") for key in top}


def _line(name: str, found: dict[str, Any]) -> str:
    speed, top = found["speedup"], found["bound_by"]
    took = " and ".join(
        f"{1e3 * found[side]['median']:,.0f} ms" for side in ("reference_s", "accelerated_s")
    )
    shares = ", ".join(f"{key} {share:.0%}" for key, share in top.items())
    return f"{name:15} {speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f}) times; {took}; {shares}"


if __name__ == "__main__":
    raise SystemExit(main())
