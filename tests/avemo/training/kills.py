"""Kills a run at random moments, lets it go on each time, and compares the weights with those of an unbroken one.

`python -m tests.avemo.training.kills FOLDER --kills 20`. By turns, and each at a moment that is drawn: somewhere in a
step or in what follows it, when a part of a file has been written, before or after the file takes its name, and when
a part of an entry of the log has been written.
"""

import argparse
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from avemo import storage
from avemo.data.augment import AugmentConfig
from avemo.data.batch import Batch
from avemo.models.config import FusionConfig
from avemo.training import checkpoint, resume
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.module import EmotionModule
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache

MOMENTS = ("step", "file", "name", "log")
STEPS = 4  # of an epoch: 18 clips in batches of 5


def run(folder: Path, out: str, epochs: int, goes_on: bool) -> None:
    """A run that is saved after every step; the numbers of its steps are added to a file as they begin."""
    original = EmotionModule.training_step

    def step(self: EmotionModule, batch: Batch, index: int) -> torch.Tensor:
        with (folder / f"{out}.steps").open("a") as file:
            file.write(f"{self.global_step}\n")
        return original(self, batch, index)

    EmotionModule.training_step = step  # type: ignore[method-assign]
    train(
        data=DataConfig(folder / "cache", 5, augment=AugmentConfig(flip=0.5, gain_db=3.0)),
        model=tiny_config(fusion=FusionConfig(6, 3, 5, 2, trunks=3, dropout=0.2), dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=0.01, ema=0.8),
        trainer=TrainerConfig(epochs, "cpu", checkpoint_minutes=0.0),
        out=folder / out,
        resume=goes_on,
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def doom(moment: str, calls: int, draw: random.Random) -> None:
    """Sees to it that this process dies at a moment of some kind, after so many of them."""
    left = [calls]

    def now() -> bool:
        left[0] -= 1
        return left[0] == 0

    def before(original: Callable[..., Any], cut: Callable[..., None]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if now():
                cut(*arguments)
                die()
            return original(*arguments, **options)

        return called

    def some_of_a_file(path: Path, content: bytes | str) -> None:
        content = content.encode() if isinstance(content, str) else content
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(content[: draw.randrange(len(content))])

    def some_of_an_entry(writer: Any, data: bytes) -> None:
        writer._writer.write(data[: draw.randrange(len(data))])
        writer._writer.flush()

    if moment == "step":
        timer = partial(threading.Timer, draw.uniform(0, 0.05), die)
        step = EmotionModule.training_step

        def timed(self: EmotionModule, batch: Batch, index: int) -> torch.Tensor:
            if now():
                timer().start()
            return step(self, batch, index)

        EmotionModule.training_step = timed  # type: ignore[method-assign]
    elif moment == "file":
        for module in (resume, checkpoint):
            module.write = before(storage.write, some_of_a_file)  # type: ignore[attr-defined]
    elif moment == "name":

        def replaced(*names: Any) -> None:
            if draw.random() < 0.5:
                replace(*names)

        replace = os.replace
        os.replace = before(replace, replaced)  # type: ignore[assignment]
    elif moment == "log":
        RecordWriter.write = before(RecordWriter.write, some_of_an_entry)


def process(does: Callable[[], None]) -> int:
    """The signal or status with which a process ends that does something; forked, for to import all takes longer."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            torch.set_num_threads(1)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            does()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kills a run so many times.

    Returns:
        How often at a moment of each kind, and how many steps were taken twice.

    Raises:
        AssertionError: a step was lost that had been saved, a run could not go on, or its files are not those of the
            unbroken one.
    """
    draw = random.Random(seed)
    write_cache(folder / "cache")
    # A kill comes within three steps, so that there are enough for all.
    epochs = max(2, -(-2 * kills // STEPS))
    assert process(lambda: run(folder, "unbroken", epochs, False)) == 0
    killed: Counter[str] = Counter()

    def doomed(moment: str, calls: int) -> None:
        doom(moment, calls, draw)
        run(folder, "killed", epochs, True)

    begun: list[list[int]] = []
    steps = folder / "killed.steps"
    seen = 0
    while killed.total() < kills:
        moment = MOMENTS[killed.total() % len(MOMENTS)]
        ended = process(partial(doomed, moment, draw.randint(1, 3)))
        assert ended == -signal.SIGKILL, f"{moment}: {ended}"
        killed[moment] += 1
        numbers = [int(line) for line in steps.read_text().split()] if steps.exists() else []
        begun.append(numbers[seen:])
        seen = len(numbers)
        draw.random()  # the child drew from a copy
    assert process(lambda: run(folder, "killed", epochs, True)) == 0
    begun.append([int(line) for line in steps.read_text().split()][seen:])
    for name in ("last.safetensors", "best.safetensors"):
        whole, other = ((folder / out / name).read_bytes() for out in ("unbroken", "killed"))
        assert whole == other, name
    taken = [number for numbers in begun for number in numbers]
    starts = [numbers for numbers in begun if numbers]
    for before, after in pairwise(starts):
        assert after[0] >= before[-1], "more than the step that was under way is taken again"
    assert sorted(set(taken)) == list(range(epochs * STEPS))
    return {**killed, "steps": epochs * STEPS, "taken twice": len(taken) - len(set(taken))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty one")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(kill(arguments.folder, arguments.kills, arguments.seed))


if __name__ == "__main__":
    main()
