"""What a training step of the small and of the full configuration takes, beside another commit.

Three sides take the same steps in turn, each a process of its own, on the native library that is installed here, so
that the difference is Python: "now" is what is checked out, "before" the other commit, and "kernels" has the operators'
Python of today under the other commit's models.
"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkout import ROOT, answer, exported, in_turn, measured_as_here, workers

VERSION = 1
# Of a batch: clips of 3 s, 10 ms and 80 ms from frame to frame, in the sizes that the configurations are for.
BATCHES = {
    "small": {"size": 8, "bins": 100, "audio_frames": 301, "face_size": 48, "video_frames": 38},
    "full": {"size": 16, "bins": 200, "audio_frames": 301, "face_size": 64, "video_frames": 38},
}
_CLASSES = 7
_FIRST = 5  # steps whose losses are compared
_ALIKE = 1e-3  # of a loss: sides round otherwise, and in these steps drift apart by as much


def run_steps(
    configurations: Sequence[str], against: str, turns: int, out: Path | None, threads: int
) -> int:
    """Measures, prints and, where `out` is given, writes a JSON file.

    Args:
        configurations: of `BATCHES`.
        against: a commit.
        turns: steps of each side.
        out: a file or folder.
        threads: of PyTorch.

    Returns:
        0, or 1 where a side of a configuration takes other steps than the other commit.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        checkouts = _checkouts(against, Path(folder))
        for name in configurations:
            with workers(checkouts, "steps", [name, str(threads)]) as begun:
                losses = {side: worker.ready for side, worker in begun.items()}
                for side in (side for side in losses if not _alike(losses[side], losses["before"])):
                    reason = f"losses {losses[side]}, {losses['before']} before"
                    print(f"{name}: {side} takes other steps: {reason}", file=sys.stderr)
                    return 1
                samples = in_turn(begun, "", dict.fromkeys(begun, 1), turns)
            figures[name] = _figures(samples)
            for side, spread in figures[name]["share"].items():
                print(
                    f"{name}: {side} takes {spread['median']:.4f} of before"
                    f" ({spread['lower']:.4f} to {spread['upper']:.4f}),"
                    f" {1e3 * figures[name]['seconds'][side]['median']:.1f} ms",
                    flush=True,
                )
    if out is not None:
        from . import machine

        values = {
            "version": VERSION, "before": against, "threads": threads, "turns": turns,
            "batches": {name: BATCHES[name] for name in figures}, "steps": figures,
        }  # fmt: skip
        machine.save_result(out, "cpu", "steps", values)
    return 0


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
    step = TrainingStep(model, _CLASSES, OptimizerConfig(), seed=0, total=10_000)
    batch = random_batch(**sizes, classes=_CLASSES)
    losses = [float(step(batch)) for _ in range(_FIRST)]
    gc.collect()
    gc.freeze()  # to go through all that was imported takes longer than a step
    gc.disable()

    def seconds(_: str, steps: int) -> float:
        gc.collect()
        start = time.perf_counter()
        for _number in range(steps):
            step(batch)
        return (time.perf_counter() - start) / steps

    answer(losses, seconds)
