"""What a fusion loses where a stream is missing, trained with modality dropout and without."""

from pathlib import Path

import pytest
import torch

from avemo.data.augment import AugmentConfig
from avemo.data.cache import ClipCache
from avemo.data.inputs import collate, to_sample
from avemo.data.media import BOTH
from avemo.evaluation.evaluate import evaluate
from avemo.training import checkpoint
from avemo.training.config import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache

CLIPS = 60  # of the test split
EPOCHS = 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(
        tmp_path_factory.mktemp("cache"), {"train": 48, "val": 12, "test": CLIPS}, frames=(2, 5)
    )


def run(cache: Path, out: Path, name: str, dropout: float) -> Path:
    return train(
        data=DataConfig(cache, batch_size=8, augment=AugmentConfig(modality_dropout=dropout)),
        model=tiny_config(name),
        optimizer=OptimizerConfig(learning_rate=0.02),
        trainer=TrainerConfig(epochs=EPOCHS, accelerator="cpu"),
        out=out,
        backend="reference",
    ).last


@pytest.mark.slow
def test_with_modality_dropout_less_is_lost(cache: Path, tmp_path: Path) -> None:
    """Each stream alone names the class: what is lost without one is lost by the fusion."""
    lost, whole = {}, {}
    for dropout in (0.0, 0.5):
        last = run(cache, tmp_path / str(dropout), "am_fbp", dropout)
        whole[dropout] = evaluate(last, cache).accuracy
        lost[dropout] = {
            stream: whole[dropout] - evaluate(last, cache, without=stream).accuracy
            for stream in BOTH
        }
    assert min(whole.values()) > 0.9
    assert max(lost[0.0].values()) > 0.3
    assert max(lost[0.5].values()) < 0.1


def test_what_is_taken_from_a_batch_is_what_clips_lack(cache: Path) -> None:
    clips = ClipCache(cache)
    samples = [to_sample(clips[i], clips.features, name=str(i)) for i in range(5)]
    for stream in BOTH:
        ours = collate(samples).without(stream)
        theirs = collate([sample.without(stream) for sample in samples])
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_stream_that_is_all_a_model_has_cannot_be_taken(cache: Path, tmp_path: Path) -> None:
    config = TrainConfig(DataConfig(cache), model=tiny_config("audio"))
    model = tmp_path / "audio.safetensors"
    checkpoint.save(model, tiny_model("audio"), config, CLASSES, ClipCache(cache).features)
    with pytest.raises(ValueError, match="without audio there is nothing for this model"):
        evaluate(model, cache, without="audio")
    assert evaluate(model, cache, without="video") == evaluate(model, cache)
    assert (tmp_path / "evaluation-test-without-video" / "scores.json").is_file()
