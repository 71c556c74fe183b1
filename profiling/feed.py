"""How fast clips come, how long steps wait for them, and whether memory stays as it is while epochs go by:
`python -m profiling.feed --help`."""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from avemo.data.cache import INDEX, ClipCache, ClipInfo, index_json, shard_content
from avemo.data.datamodule import ClipDataModule
from avemo.data.features import Clip, FeatureConfig
from avemo.data.shards import shards
from avemo.models import build_model
from avemo.models.backend import use_backend
from avemo.training.config import TrainConfig
from avemo.training.memory import keep_freed_memory
from avemo.training.step import TrainingStep
from profiling import commands
from profiling.object_store import object_store
from profiling.step import NOISE, configuration

_PROGRAM = "profiling.feed"
_OF_A_SHARD = 64  # clips
_WARM_UP = 2  # steps that are not counted


class Waits(NamedTuple):
    """How long training steps took, and for how long of that they waited for their batch, seconds."""

    steps: list[float]
    waits: list[float]


class Epoch(NamedTuple):
    """What a pass over the training split was.

    Attributes:
        clips: that came.
        seconds: it took.
        private: bytes of memory that the processes of the feed share with no file: what does not go away when the
            system needs it. Before the last batch, when those that read ahead are still there.
    """

    clips: int
    seconds: float
    private: int


def epochs(clips: ClipDataModule, count: int) -> Iterator[Epoch]:
    """Passes over the training split, one after the other."""
    loader = clips.train_dataloader()
    for number in range(count):
        loader.set_epoch(number)
        start, came, private = time.perf_counter(), 0, 0
        for place, batch in enumerate(loader):
            came += len(batch.labels)
            if place + 1 == len(loader):
                private = private_bytes()
        yield Epoch(came, time.perf_counter() - start, private)


def waits(clips: ClipDataModule, config: TrainConfig, count: int) -> Waits:
    """Training steps of a network with its best operators, in memory that is kept, as `avemo train` takes them."""
    keep_freed_memory()
    features, classes = clips.features, len(clips.classes)
    network = build_model(
        config.model, bins=features.bins, face_size=features.face_size, classes=classes
    )
    use_backend(network)
    step = TrainingStep(network, classes, config.optimizer, seed=0, total=count + _WARM_UP)
    taken = Waits([], [])
    batches = chain.from_iterable(repeat(clips.train_dataloader()))
    for _ in range(count + _WARM_UP):
        start = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        step(batch)
        taken.waits.append(came - start)
        taken.steps.append(time.perf_counter() - start)
    return Waits(taken.steps[_WARM_UP:], taken.waits[_WARM_UP:])


def private_bytes() -> int:
    """Of this process and its children; what they share is counted once."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(_private(pid) for pid in pids if pid is not None)


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("Pss_Anon:"))
    return 1024 * int(kilobytes)


@contextmanager
def noise(count: int, size: dict[str, int]) -> Iterator[Path]:
    """A cache of clips of noise, for as long as the context.

    Args:
        count: training clips.
        size: bins, face_size, audio_frames, video_frames.
    """
    rng = np.random.default_rng(0)
    heard, seen, side = size["audio_frames"], size["video_frames"], size["face_size"]
    infos = []
    with tempfile.TemporaryDirectory(prefix="avemo-feed-") as name:
        folder = Path(name)
        for first in range(0, count, _OF_A_SHARD):
            clips = [
                Clip(
                    rng.integers(40, 200, (heard, size["bins"]), dtype=np.uint8),
                    rng.integers(40, 200, (seen, side, side), dtype=np.uint8),
                    np.ones(seen, bool),
                )
                for _ in range(min(_OF_A_SHARD, count - first))
            ]
            shard = f"{first}.safetensors"
            (folder / shard).write_bytes(shard_content(clips))
            for place in range(len(clips)):
                infos.append(
                    ClipInfo(
                        path=f"{first + place}",
                        label=f"{place % 7}",
                        speaker="",
                        split="train",
                        shard=shard,
                        audio_offset=place * heard,
                        audio_length=heard,
                        video_offset=place * seen,
                        video_length=seen,
                    )
                )
        features = FeatureConfig(bins=size["bins"], face_size=side)
        (folder / INDEX).write_text(index_json(features, infos), "utf-8")
        yield folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with ExitStack() as stack:
            cache = options.cache or stack.enter_context(noise(options.clips, NOISE["full"]))
            place = None
            ClipCache(cache)  # one that is none is told first
            print(f"cache: {sum(f.stat().st_size for f in cache.iterdir()) / 1e6:,.0f} MB")
            if options.streamed:
                cache, place = stack.enter_context(streamed(cache))
            clips = ClipDataModule(
                cache,
                batch_size=options.batch,
                num_workers=options.workers,
                shards=place,
                shards_gb=options.keep,
            )
            _run(clips, options)
    except (OSError, ValueError) as error:
        return commands.fail(_PROGRAM, error)
    return 0


@contextmanager
def streamed(cache: Path) -> Iterator[tuple[Path, str]]:
    """The clips of a cache as shards in an object store of this machine.

    Yields:
        A folder for copies, and where the shards are.
    """
    with object_store() as bucket, tempfile.TemporaryDirectory(prefix="avemo-kept-") as kept:
        shards(cache, out=bucket)
        yield Path(kept), bucket


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_PROGRAM}", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, help="of `avemo prepare`; default: noise of full size"
    )
    parser.add_argument("--clips", type=commands.positive, default=2000, help="of noise")
    parser.add_argument("--batch", type=commands.positive, default=16, help="clips in a batch")
    parser.add_argument("--epochs", type=commands.positive, default=10)
    parser.add_argument("--workers", type=int, default=0, help="processes that read ahead")
    parser.add_argument(
        "--streamed",
        action="store_true",
        help="as shards that are fetched from an object store of this machine while they are read",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=20.0,
        help="GB of copies of shards; where it is less than there is, every epoch fetches anew",
    )
    parser.add_argument(
        "--steps",
        type=commands.positive,
        help="of training at full size in place of epochs: how long they wait",
    )
    return parser


def _run(clips: ClipDataModule, options: argparse.Namespace) -> None:
    print(f"processes that read ahead: {options.workers}")
    if options.steps:
        steps, waited = waits(clips, configuration("full"), options.steps)
        share = sum(waited) / sum(steps)
        print(
            f"a step takes {1e3 * median(steps):,.0f} ms and waits for {1e3 * median(waited):,.1f} ms of it (medians "
            f"of {len(steps)}); all steps wait for {share:.2%} of their time; the feed has to give "
            f"{options.batch / median(steps):,.1f} clips/s"
        )
        return
    print(f"{'epoch':>5} {'clips/s':>8} {'private memory, MB':>19}")
    for number, epoch in enumerate(epochs(clips, options.epochs)):
        rate = epoch.clips / epoch.seconds
        print(f"{number:5} {rate:8,.0f} {epoch.private / 1e6:19,.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
