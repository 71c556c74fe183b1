"""`python -m profiling.feed`: it counts what comes, sees memory that is kept, and epochs keep none."""

import copy
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from avemo.data.cache import ClipCache
from avemo.data.datamodule import ClipDataModule
from avemo.training.config import DataConfig, TrainConfig
from profiling import feed
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache

SIZE = {"bins": 200, "face_size": 64, "audio_frames": 301, "video_frames": 38}
CONFIG = TrainConfig(DataConfig(Path()), tiny_config())
CLIPS, EPOCHS = 96, 10
ONCE = CLIPS * (301 * 200 + 38 * 64 * 64)  # bytes of the clips on disk


@pytest.fixture(scope="module")
def noise() -> Iterator[Path]:
    with feed.noise(CLIPS, SIZE) as cache:
        yield cache


def _grown(cache: Path) -> int:
    """By how much memory has grown from the first epoch to the last three, of which the one between counts.

    What is kept stays and adds up; a batch that is not freed yet where it is looked is there in one epoch alone.
    """
    epochs = list(feed.epochs(ClipDataModule(cache), EPOCHS))
    assert [epoch.clips for epoch in epochs] == [CLIPS] * EPOCHS
    return int(median(epoch.private for epoch in epochs[-3:])) - epochs[0].private


def _grown_with_and_without_a_leak(cache: Path) -> tuple[int, int]:
    _grown(cache)  # what is loaded and kept for good is there
    clean = _grown(cache)
    kept: list[Any] = []
    read = ClipCache.__getitem__

    def keeping(self: ClipCache, index: int) -> Any:
        kept.append(copy.deepcopy(read(self, index)))
        return kept[-1]

    ClipCache.__getitem__ = keeping  # type: ignore[method-assign]
    return clean, _grown(cache)


@pytest.mark.slow
def test_ten_epochs_keep_no_memory(noise: Path) -> None:
    """Less than two epochs' clips as they are on disk; and where all that is read is kept, that is seen.

    In a process of its own: one that has freed much fills that first, and does not grow.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        clean, leaking = process.submit(_grown_with_and_without_a_leak, noise).result()
    assert clean < 2 * ONCE
    assert leaking > (EPOCHS - 3) * ONCE


def test_memory_of_those_that_read_ahead_counts(noise: Path) -> None:
    alone, helped = (
        next(feed.epochs(ClipDataModule(noise, num_workers=n), 1)).private for n in (0, 2)
    )
    assert helped > alone + 5e6


def test_steps_wait_for_their_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "keep_freed_memory", lambda: "")  # it would last
    clips = ClipDataModule(write_cache(tmp_path), batch_size=5)
    found = feed.waits(clips, CONFIG, 3)
    assert len(found.steps) == len(found.waits) == 3
    assert all(0 < wait < step for step, wait in zip(*found, strict=True))


@pytest.mark.parametrize(
    "options", [["--epochs", "2"], ["--steps", "1"], ["--epochs", "2", "--streamed"]]
)
def test_the_command_tells(
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed, "keep_freed_memory", lambda: "")
    monkeypatch.setattr(feed, "configuration", lambda name: CONFIG)
    cache = write_cache(tmp_path / "cache")
    assert feed.main(["--cache", str(cache), *options]) == 0
    said = capsys.readouterr().out
    assert "processes that read ahead: 0" in said
    said = (
        said.replace(f"{31} clips in 3 shards, 0.2 MB, in s3://bucket\n", "")
        if "--streamed" in options
        else said
    )
    assert len(said.splitlines()) == (5 if options[0] == "--epochs" else 3)
    assert feed.main(["--cache", str(tmp_path / "none")]) == 2
    assert "no finished cache" in capsys.readouterr().err
