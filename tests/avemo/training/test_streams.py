"""Training from shards is training from a cache, and goes on where it was."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avemo.cli import main
from avemo.data.augment import AugmentConfig
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.module import EmotionModule
from avemo.training.train import TrainResult, train
from profiling.object_store import object_store
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache

AUGMENT = AugmentConfig(flip=0.5, gain_db=3.0, time_mask=0.2)


def run(out: Path, data: DataConfig, *, resume: bool = False) -> TrainResult:
    return train(
        data=data,
        model=tiny_config(dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=0.01),
        trainer=TrainerConfig(2, "cpu"),
        out=out,
        backend="reference",
        resume=resume,
    )


def _same(a: Path, b: Path) -> bool:
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_a_streamed_run_is_that_of_a_cache_and_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tmp_path / "cache", {"train": 23, "val": 6, "test": 7})
    mapped = run(tmp_path / "mapped", DataConfig(cache, 4, augment=AUGMENT))
    with object_store() as bucket:

        def streamed(kept: str, mixed: int) -> DataConfig:
            return DataConfig(
                tmp_path / kept, 4, augment=AUGMENT, shards=f"{bucket}/x", shards_mixed=mixed
            )

        command = ["shards", str(cache), "--out", f"{bucket}/x", "--shard_mb", "0.02"]
        assert main(command) == 0
        assert "36 clips in 6 shards" in capsys.readouterr().out
        all_mixed = run(tmp_path / "all", streamed("a", 99))
        assert _same(all_mixed.last, mapped.last)
        unbroken = run(tmp_path / "unbroken", streamed("a", 2))
        assert not _same(unbroken.last, mapped.last)
        original = EmotionModule.training_step

        def step(self: EmotionModule, *arguments: object) -> torch.Tensor:
            if self.global_step == 8:  # the third of the second epoch's six
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(EmotionModule, "training_step", step)
            with pytest.raises(SystemExit):
                run(tmp_path / "broken", streamed("a", 2))
        resumed = run(tmp_path / "broken", streamed("b", 2), resume=True)
        assert _same(resumed.last, unbroken.last)
        assert _same(resumed.best, unbroken.best)
        with pytest.raises(ValueError, match=r"data\.shards_mixed was 2, now 3"):
            run(tmp_path / "broken", streamed("b", 3), resume=True)
        # The folder of copies is enough for what comes after.
        assert main(["evaluate", str(resumed.best), str(tmp_path / "b")]) == 0
        assert "clips                 7" in capsys.readouterr().out
        assert main(["train", "--data.cache", str(tmp_path / "c"), "--data.shards", "s3://no"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            line
            == "avemo: error: no shards in s3://no (shards.json is missing); run `avemo shards`"
        )
