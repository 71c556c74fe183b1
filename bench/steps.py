"""What a training step of the small and of the full configuration takes, beside another commit.

Three sides take the same steps in turn, each a process of its own, on the native library that is installed here, so
that the difference is Python: "now" is what is checked out, "before" the other commit, and "kernels" has the operators'
Python of today under the other commit's models. A side whose losses are others than before takes other steps, and is
left out: so is "now" where the models have changed since.

Two threads that meet after every product wait for each other: where one has no processor for a while, a step takes many
times as long. So a turn in which anybody had to wait is taken again.
"""

import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkout import ROOT, Worker, answer, exported, in_turn, measured_as_here, workers

VERSION = 2
# Of a batch: clips of 3 s, 10 ms and 80 ms from frame to frame, in the sizes that the configurations are for.
BATCHES = {
    "small": {"size": 8, "bins": 100, "audio_frames": 301, "face_size": 48, "video_frames": 38},
    "full": {"size": 16, "bins": 200, "audio_frames": 301, "face_size": 64, "video_frames": 38},
}
_STEPS = {"small": 10, "full": 1}  # of a side in its turn
_CLASSES = 7
_FIRST = 5  # steps whose losses are compared
_ALIKE = 1e-3  # of a loss: sides round otherwise, and in these steps drift apart by as much
_TRIES = 5  # at a turn
_WAITED = 0.1  # of the time of a turn; a step alone on its two processors waits for a few hundredths of it


def run_steps(
    configurations: Sequence[str],
    against: str,
    turns: int,
    out: Path | None,
    threads: int,
    *,
    resume: bool = False,
) -> int:
    """Measures, prints and, where `out` is given, writes a JSON file after each configuration.

    Args:
        configurations: of `BATCHES`.
        against: a commit.
        turns: of each side.
        out: a file or folder.
        threads: of PyTorch.
        resume: keep the configurations that the file has, measure the others.

    Returns:
        0; 1 where no side takes the other commit's steps, 2 where the file is of something else.
    """
    from . import machine

    values: dict[str, Any] = {"version": VERSION, "before": against, "threads": threads}
    if out is not None and out.is_dir():
        out = out / machine.result_name("cpu", "steps")
    try:
        figures = _there(out, values) if resume and out is not None and out.is_file() else {}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        checkouts = _checkouts(against, Path(folder))
        for name in (name for name in configurations if name not in figures):
            with workers(checkouts, "steps", [name, str(threads)]) as begun:
                left_out = _other_steps({side: worker.ready for side, worker in begun.items()})
                for side, why in left_out.items():
                    print(f"{name}: {side} is left out: {why}", file=sys.stderr)
                sides = {side: worker for side, worker in begun.items() if side not in left_out}
                if len(sides) == 1:
                    return 1
                samples, disturbed = _undisturbed(sides, _STEPS[name], turns)
            figures[name] = {
                "batch": BATCHES[name], "turns": turns, "disturbed": disturbed, "left_out": left_out,
                **_figures(samples),
            }  # fmt: skip
            for side, spread in figures[name]["share"].items():
                print(
                    f"{name}: {side} takes {spread['median']:.4f} of before"
                    f" ({spread['lower']:.4f} to {spread['upper']:.4f}),"
                    f" {1e3 * figures[name]['seconds'][side]['median']:.1f} ms;"
                    f" {disturbed} of {turns} turns were disturbed in each of {_TRIES} tries",
                    flush=True,
                )
            if out is not None:
                machine.save_result(out, "cpu", "steps", values | {"configurations": figures})
    return 0


def _there(file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file has of the same comparison.

    Raises:
        ValueError: it is of another machine, software or commit.
    """
    from . import machine

    there = json.loads(file.read_text("utf-8"))
    found: dict[str, Any] = there.pop("configurations")
    here = {**machine.describe("cpu"), **values}
    machine.require_same({**there.pop("machine"), **there}, here, f"{file} cannot be resumed")
    return found


def _undisturbed(
    sides: Mapping[str, Worker], steps: int, turns: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of a step by each side, turn by turn, and how many of the turns were disturbed for all that."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    disturbed, names = 0, list(sides)
    for number in range(turns):
        first = number % len(names)
        order = {side: sides[side] for side in names[first:] + names[:first]}
        for _ in range(_TRIES):
            waited = sum(worker.waited() for worker in sides.values())
            turn = in_turn(order, "", dict.fromkeys(order, steps), 1)
            waited = sum(worker.waited() for worker in sides.values()) - waited
            calm = waited <= _WAITED * steps * sum(turn[side][0] for side in turn)
            if calm:
                break
        disturbed += not calm
        for side, times in turn.items():
            samples[side] += times
    return samples, disturbed


def _checkouts(commit: str, folder: Path) -> dict[str, Path]:
    """The sides, each with its models and operators and today's library."""
    import fbp_kernels

    sides = {name: folder / name for name in ("now", "kernels", "before")}
    for name in ("kernels", "before"):
        exported(commit, sides[name], "avemo", "kernels/fbp_kernels")
    shutil.copytree(ROOT / "avemo", sides["now"] / "avemo")
    for name in ("now", "kernels"):
        operators = sides[name] / "kernels" / "fbp_kernels"
        shutil.rmtree(operators, ignore_errors=True)
        shutil.copytree(ROOT / "kernels" / "fbp_kernels", operators)
    # An editable install keeps it in a folder of its own.
    found = itertools.chain.from_iterable(Path(p).glob("_native.so") for p in fbp_kernels.__path__)
    library = next(found, None)
    if library is None:
        raise RuntimeError("steps: the C++ extension is not installed")
    for side in sides.values():
        measured_as_here(side, "steps")
        shutil.copy(library, side / "kernels" / "fbp_kernels")
    return sides


def _other_steps(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Why sides cannot be compared with the other commit, by name."""
    return {
        side: f"its losses are {_said(found)}, {_said(losses['before'])} before"
        for side, found in losses.items()
        if not _alike(found, losses["before"])
    }


def _said(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _alike(losses: Sequence[float], before: Sequence[float]) -> bool:
    return all(abs(a - b) <= _ALIKE * abs(b) for a, b in zip(losses, before, strict=True))


def _figures(samples: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Seconds of each side, and its share of what it takes before, turn by turn."""
    from .records import (
        Spread,
    )  # not for all processes: another commit's package lacks what it imports

    before = samples["before"]
    shares = {
        side: Spread.of([a / b for a, b in zip(times, before, strict=True)])
        for side, times in samples.items()
        if side != "before"
    }
    return {
        "seconds": {side: asdict(Spread.of(times)) for side, times in samples.items()},
        "share": {side: asdict(share) for side, share in shares.items()},
    }


# From here on in a process of its own, on the packages of the checkout that it is in.


def serve(configuration: str, threads: str) -> None:
    """Takes the first steps, says their losses, and times more of them when it is told to."""
    import gc
    import time

    import torch
    import yaml

    import avemo
    from avemo.data.batch import random_batch
    from avemo.models import ModelConfig, build_model
    from avemo.models.backend import use_backend
    from avemo.training.config import OptimizerConfig, from_dict
    from avemo.training.memory import keep_freed_memory
    from avemo.training.step import TrainingStep

    torch.set_num_threads(int(threads))
    if reason := keep_freed_memory():  # as training does
        print(f"steps: {reason}", file=sys.stderr)
    file = Path(avemo.__file__).parent / "configs" / f"{configuration}.yaml"
    sizes = BATCHES[configuration]
    torch.manual_seed(0)
    model = build_model(
        from_dict(ModelConfig, yaml.safe_load(file.read_text("utf-8"))["model"]),
        bins=sizes["bins"], face_size=sizes["face_size"], classes=_CLASSES,
    )  # fmt: skip
    print(f"steps: {Path.cwd().name}: {use_backend(model)}", file=sys.stderr)
    # As all commits train; what `accelerate` does with convolutions where it is asked for nothing has changed.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = TrainingStep(model, _CLASSES, OptimizerConfig(), seed=0, total=10_000)
    batch = random_batch(**sizes, classes=_CLASSES)
    losses = [float(step(batch)) for _ in range(_FIRST)]
    gc.collect()
    gc.freeze()  # to go through all that was imported takes longer than a step
    gc.disable()

    def seconds(_: str, steps: int) -> float:
        gc.collect()
        step(batch)  # the caches are as the side itself leaves them, and not as another did
        start = time.perf_counter()
        for _number in range(steps):
            step(batch)
        return (time.perf_counter() - start) / steps

    answer(losses, seconds)
