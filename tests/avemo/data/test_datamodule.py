"""Batches: the right clips and labels, and the same ones after an interruption."""

import contextlib
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from avemo.data.augment import AugmentConfig
from avemo.data.cache import CacheError, ClipInfo, index_json, shard_content
from avemo.data.datamodule import ClipDataModule, crop_clip
from avemo.data.features import Clip, FeatureConfig

CONFIG = FeatureConfig(bins=20, face_size=8, fps=10.0)
AUGMENT = AugmentConfig(flip=0.5, shift=0.2, gain_db=6.0, time_mask=0.3, modality_dropout=0.3)
TRAIN = 23


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 1 to 3 s whose arrays hold their own number; 23 for training."""
    folder = tmp_path_factory.mktemp("cache")
    infos, audios, videos = [], [], []
    for number in range(30):
        frames = 10 + 7 * number % 21
        split = "train" if number < TRAIN else "val" if number < 27 else "test"
        infos.append(
            ClipInfo(
                f"{number}.mp4", f"c{number % 4}", split, split, "shard-00000.safetensors",
                sum(map(len, audios)), frames * 10 + 1, sum(map(len, videos)), frames,
            )
        )  # fmt: skip
        audios.append(np.full((frames * 10 + 1, 20), 100 + number, np.uint8))
        videos.append(np.full((frames, 8, 8), 100 + number, np.uint8))
        videos[-1][:, 0, 0] = np.arange(frames)
    clips = [Clip(a, v, np.ones(len(v), bool)) for a, v in zip(audios, videos, strict=True)]
    (folder / "shard-00000.safetensors").write_bytes(shard_content(clips))
    (folder / "index.json").write_text(index_json(CONFIG, infos))
    return folder


def number_of(name: str) -> int:
    return int(name.removesuffix(".mp4"))


def test_splits_and_labels(cache: Path) -> None:
    module = ClipDataModule(cache, batch_size=4)
    assert module.classes == ("c0", "c1", "c2", "c3")
    assert module.features == CONFIG
    seen = {}
    for split in ("train", "val", "test"):
        loader = getattr(module, f"{split}_dataloader")()
        names = []
        for batch in loader:
            for row, name in enumerate(batch.names):
                number = number_of(name)
                assert batch.labels[row] == number % 4
                face = batch.video[row, : batch.video_lengths[row], 1:]
                assert torch.allclose(face, torch.tensor((100 + number - 128) / 48))
                assert batch.audio_lengths[row] == 10 * batch.video_lengths[row] + 1
            names += batch.names
        assert len(names) == len(set(names))
        seen[split] = names
    assert sorted(map(number_of, seen["train"])) == list(range(TRAIN))
    assert seen["train"] != sorted(seen["train"], key=number_of)
    assert seen["val"] == [f"{i}.mp4" for i in range(23, 27)]
    assert seen["test"] == [f"{i}.mp4" for i in range(27, 30)]
    assert [b.names for b in module.evaluation_dataloader("val")] == [seen["val"]]


def epoch_batches(module: ClipDataModule, epoch: int) -> list:
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        x.names == y.names and torch.equal(x.audio, y.audio) and torch.equal(x.video, y.video)
        for x, y in zip(a, b, strict=True)
    )


def test_epochs_differ_and_repeat(cache: Path) -> None:
    def module(seed: int, workers: int = 0) -> ClipDataModule:
        return ClipDataModule(
            cache, batch_size=4, seed=seed, augment=AUGMENT, max_seconds=1.5, num_workers=workers
        )

    first, second = epoch_batches(module(1), 0), epoch_batches(module(1), 1)
    assert same(first, epoch_batches(module(1), 0))
    assert same(second, epoch_batches(module(1, workers=2), 1))
    assert not same(first, second)
    assert not same(first, epoch_batches(module(2), 0))


def test_drop_last(cache: Path) -> None:
    assert len(ClipDataModule(cache, batch_size=4).train_dataloader()) == 6
    loader = ClipDataModule(cache, batch_size=4, drop_last=True).train_dataloader()
    assert [len(b.names) for b in loader] == [4] * 5


class Recorder(L.LightningModule):
    """Learns nothing and remembers its batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after = stop_after
        self.steps: list[tuple[int, int, list[str], float]] = []

    def training_step(self, batch, batch_idx):
        if self.stop_after is not None and len(self.steps) == self.stop_after:
            raise KeyboardInterrupt
        sums = float(batch.audio.double().sum() + batch.video.double().sum())
        self.steps.append((self.current_epoch, batch_idx, batch.names, sums))
        return self.weight * 0 + batch.audio.mean() * self.weight

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(cache: Path, folder: Path, recorder: Recorder, resume: Path | None) -> None:
    saving = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[saving],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = ClipDataModule(cache, batch_size=4, seed=5, augment=AUGMENT, max_seconds=1.5)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(recorder, module, ckpt_path=resume, weights_only=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [1, 4, 6, 7, 12, 15])
def test_resumed_training_sees_the_same_batches(cache: Path, tmp_path: Path, stop: int) -> None:
    """Six batches an epoch: stops in the middle, at the end and right at the start of one."""
    unbroken = Recorder()
    fit(cache, tmp_path / "a", unbroken, None)
    assert len(unbroken.steps) == 18
    broken = Recorder(stop)
    fit(cache, tmp_path / "b", broken, None)
    assert broken.steps == unbroken.steps[:stop]
    resumed = Recorder()
    fit(cache, tmp_path / "b", resumed, tmp_path / "b" / f"step={stop}.ckpt")
    assert resumed.steps == unbroken.steps[stop:]


def test_long_clips_are_cropped_alike(cache: Path) -> None:
    clip = Clip(
        np.arange(501, dtype=np.uint16)[:, None],
        np.arange(50),
        np.ones(50, bool),  # type: ignore[arg-type]
    )
    for place, first in ((0.0, 0), (0.5, 15), (1.0, 30)):
        cut = crop_clip(clip, CONFIG, 2.0, place)
        np.testing.assert_array_equal(cut.video, np.arange(first, first + 20))
        np.testing.assert_array_equal(cut.audio[:, 0], np.arange(10 * first, 10 * first + 201))
        assert len(cut.valid) == 20
    assert crop_clip(clip, CONFIG, 5.0, 0.5) is clip
    assert crop_clip(clip, CONFIG, None, 0.5) is clip
    module = ClipDataModule(cache, batch_size=1, max_seconds=1.5)
    lengths = [int(b.video_lengths) for b in module.train_dataloader()]
    assert max(lengths) == 15
    starts = {float(b.video[0, 0, 0, 0]) for b in module.train_dataloader()}
    assert len(starts) > 5  # random places
    middle = next(iter(module.val_dataloader()))
    frames = 10 + 7 * number_of(middle.names[0]) % 21
    expected = round(0.5 * (frames - min(frames, 15)))
    assert float(middle.video[0, 0, 0, 0]) == pytest.approx((expected - 128) / 48)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_bad_settings(cache: Path, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClipDataModule(cache, **settings)


def test_a_damaged_clip_in_a_process_that_reads_ahead_is_told_in_the_same_words(
    cache: Path, tmp_path: Path
) -> None:
    from avemo.cli import _first_line

    copy = Path(shutil.copytree(cache, tmp_path / "cache"))
    shard = copy / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(CacheError) as caught:
        list(ClipDataModule(copy, num_workers=1).train_dataloader())
    assert _first_line(caught.value).startswith(f"{shard} is damaged (")
