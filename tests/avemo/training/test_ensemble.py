"""Ensembles: the mean of posteriors, made of checkpoints and trained member by member."""

import json
from pathlib import Path

import pytest
import torch

from avemo.cli import main
from avemo.data.features import FeatureConfig
from avemo.evaluation.evaluate import evaluate
from avemo.models import ModelConfig, build_model, needed_streams
from avemo.models.config import FusionConfig
from avemo.training import checkpoint
from avemo.training.config import DataConfig, TrainConfig, TrainerConfig
from avemo.training.ensemble import ensemble, train_members
from avemo.training.train import TrainResult, train
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache

FEATURES = FeatureConfig(bins=BINS, face_size=FACE_SIZE)
NOISE = torch.Generator().manual_seed(3)


def saved(
    path: Path,
    name: str,
    classes: tuple[str, ...] = CLASSES,
    features: FeatureConfig = FEATURES,
    **changes: object,
) -> Path:
    """A checkpoint with weights of its own."""
    model = tiny_model(name, **changes)
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=NOISE))
    config = TrainConfig(DataConfig(Path("cache")), tiny_config(name, **changes))
    checkpoint.save(path, model, config, classes, features)
    return path


def test_checkpoints_of_any_sizes_become_one_that_averages_probabilities(tmp_path: Path) -> None:
    other = FusionConfig(4, 2, 7, 1, trunks=2, dropout=0.0)
    files = [
        saved(tmp_path / "a.safetensors", "am_fbp"),
        saved(tmp_path / "b.safetensors", "m_fbp", fusion=other),
        saved(tmp_path / "c.safetensors", "audio"),
    ]
    loaded = checkpoint.load(ensemble(files, out=tmp_path / "all"))
    batch = tiny_batch()
    alone = [checkpoint.load(file).model(*batch) for file in files]
    together = loaded.model(*batch)
    mean = sum(output.logits.softmax(1) for output in alone) / 3
    torch.testing.assert_close(together.logits.exp(), mean, rtol=1e-6, atol=1e-7)
    heard = sum(output.audio_attention for output in alone) / 3
    torch.testing.assert_close(together.audio_attention, heard)
    seen = sum(output.video_attention for output in alone[:2]) / 2
    torch.testing.assert_close(together.video_attention, seen)
    assert needed_streams(loaded.model) == needed_streams(loaded.config.model) == ("audio", "video")


def test_an_ensemble_of_listeners_needs_no_picture(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{i}.safetensors", "audio") for i in (1, 2)]
    loaded = checkpoint.load(ensemble(files, out=tmp_path))
    assert needed_streams(loaded.model) == needed_streams(loaded.config.model) == ("audio",)


def test_in_training_a_member_learns_by_all_that_it_says() -> None:
    members = ({"name": "g_fbp", "stream_loss": True}, {"name": "audio"})
    model = tiny_model("ensemble", members=members).train()
    fusion, audio = (member(*tiny_batch()) for member in model.members)
    assert len(fusion.trained) == 3
    torch.testing.assert_close(model(*tiny_batch()).trained, (*fusion.trained, audio.logits))


def test_what_cannot_be_put_together_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = saved(tmp_path / "a.safetensors", "audio")
    second = saved(tmp_path / "b.safetensors", "audio", classes=("a", "b", "c", "d"))
    assert main(["ensemble", str(first), str(second), "--out", str(tmp_path)]) == 2
    assert "b.safetensors has the classes ('a', 'b', 'c', 'd')" in capsys.readouterr().err
    other = FeatureConfig(bins=BINS, face_size=FACE_SIZE, fps=25.0)
    third = saved(tmp_path / "c.safetensors", "audio", features=other)
    assert main(["ensemble", str(first), str(third), "--out", str(tmp_path)]) == 2
    assert "c.safetensors has the features FeatureConfig(" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"model\.members must name at least one"):
        build_model(ModelConfig("ensemble"), bins=BINS, face_size=FACE_SIZE, classes=4)
    bad = ModelConfig("ensemble", members=({"colour": 1},))
    with pytest.raises(ValueError, match="colour"):
        build_model(bad, bins=BINS, face_size=FACE_SIZE, classes=4)


def test_members_are_trained_with_several_seeds_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    config = tiny_config("ensemble", members=({"name": "audio"}, {"name": "g_fbp"}))
    said = {
        "data": DataConfig(cache, batch_size=9),
        "trainer": TrainerConfig(epochs=2, accelerator="cpu"),
    }
    result = train(model=config, out=tmp_path / "run", seed=5, **said)  # type: ignore[arg-type]
    members = [tmp_path / "run" / name / "best.safetensors" for name in ("0-audio", "1-g_fbp")]
    assert [checkpoint.load(file).config.seed for file in members] == [5, 6]
    whole = result.best.read_bytes()
    assert (
        checkpoint.load(ensemble(members, out=tmp_path / "again"))
        .model(*tiny_batch())[0]
        .equal(checkpoint.load(result.best).model(*tiny_batch())[0])
    )
    scores = evaluate(result.best, cache, split="val", out=tmp_path / "scores")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["clips"] == 6
    assert result.unweighted_accuracy == scores.unweighted_accuracy
    for file in (result.best, *members[1].parent.glob("*")):  # as if killed before the second
        file.unlink() if file.is_file() else None
    train(model=config, out=tmp_path / "run", seed=5, resume=True, **said)  # type: ignore[arg-type]
    assert result.best.read_bytes() == whole


def test_best_and_last_are_put_together_apart(tmp_path: Path) -> None:
    """Each member's own best epoch and its last one; the ensemble is as old as its latest member."""
    members = ({"name": "audio"}, {"name": "g_fbp"}, {"name": "audio"})
    whole = TrainConfig(
        DataConfig(write_cache(tmp_path / "cache")),
        tiny_config("ensemble", members=members),
        seed=3,
    )
    epochs, seeds = iter((4, 7, 2)), []

    def trained(config: TrainConfig, folder: Path) -> TrainResult:
        folder.mkdir(parents=True)
        seeds.append(config.seed)
        files = [saved(folder / f"{n}.safetensors", config.model.name) for n in ("best", "last")]
        return TrainResult(*files, next(epochs), 0.0)

    result = train_members(whole, tmp_path / "run", trained)
    assert seeds == [3, 4, 5]
    assert result.best_epoch == 7
    for kind, file in (("best", result.best), ("last", result.last)):
        found = checkpoint.load(file).model.state_dict()
        for number, member in enumerate(members):
            own = tmp_path / "run" / f"{number}-{member['name']}" / f"{kind}.safetensors"
            for name, weight in checkpoint.load(own).model.state_dict().items():
                assert found[f"members.{number}.{name}"].equal(weight), (kind, number, name)
