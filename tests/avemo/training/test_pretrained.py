"""Folders in the hub's layout: what is saved comes back, damage is told in a sentence, the card says what is known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import avemo
from avemo.data.cache import INDEX
from avemo.data.features import FeatureConfig
from avemo.evaluation.predict import predict
from avemo.models import MODELS
from avemo.training import checkpoint
from avemo.training.checkpoint import CheckpointError
from avemo.training.config import DataConfig, TrainConfig
from avemo.training.description import wanted
from tests.avemo.data.media_files import write_clip
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache

CLASSES = ("angry", "happy", "neutral", "sad")
FEATURES = FeatureConfig(bins=BINS, face_size=FACE_SIZE)


def trained(folder: Path, name: str = "am_fbp", cache: Path = Path("/home/someone/cache")) -> Path:
    config = TrainConfig(data=DataConfig(cache), model=tiny_config(name))
    avemo.save(folder / "a.safetensors", tiny_model(name), config, CLASSES, FEATURES)
    return folder / "a.safetensors"


@pytest.mark.parametrize("name", [n for n in MODELS if n != "ensemble"])
def test_every_model_comes_back(name: str, tmp_path: Path) -> None:
    model = avemo.load(trained(tmp_path, name)).model
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = type(model).from_pretrained(folder)
    batch = tiny_batch()
    assert torch.equal(again(*batch).logits, model(*batch).logits)
    assert again.trained.classes == CLASSES
    assert not again.training
    assert "/home" not in "".join(p.read_text("latin-1") for p in folder.iterdir())


def test_the_classes_of_models_are_kept_apart(tmp_path: Path) -> None:
    file = trained(tmp_path, "audio")
    with pytest.raises(
        CheckpointError, match="holds a model of the class AudioOnly, not AudioVisual"
    ):
        avemo.AMFBP.from_pretrained(file)
    with pytest.raises(ValueError, match="the model must come from a checkpoint"):
        tiny_model("audio").save_pretrained(tmp_path / "b")


def damage(folder: Path, kind: str) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    values = json.loads(config.read_text())
    if kind == "no config":
        config.unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no JSON":
        config.write_bytes(b"\xff\xfe{")
    elif kind == "list":
        config.write_text("[1]")
    elif kind == "other":
        config.write_text('{"model_type": "bert"}')
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "pickle":
        torch.save({"a": torch.zeros(3)}, weights)
    elif kind == "classes":
        config.write_text(json.dumps(values | {"classes": ["one", "two"]}))
    elif kind == "changed":
        tensors = load_file(weights)
        next(iter(tensors.values())).view(-1)[0] += 1
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no config", "has model.safetensors, but no config.json"),
        ("no weights", "no checkpoint at .*model.safetensors"),
        ("no JSON", "config.json is no JSON file"),
        ("list", "does not describe a model"),
        ("other", "does not describe a model: 'version' is missing"),
        ("cut", "is not a safetensors file"),
        ("pickle", "is not a safetensors file"),
        ("classes", "does not describe a model: .*size mismatch"),
        ("changed", "the checksum of its weights is not that of their bytes"),
    ],
)
def test_damage_is_told_in_one_sentence(kind: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    avemo.load(trained(tmp_path)).model.save_pretrained(folder)
    damage(folder, kind)
    with pytest.raises((CheckpointError, FileNotFoundError), match=message) as error:
        avemo.load(folder)
    assert "\n" not in str(error.value)


def test_the_card_is_written_from_the_record_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = avemo.load(trained(run, cache=write_cache(tmp_path / "cache"))).model
    start = {
        "started": "2026-11-28T08:59:11+0000",
        "commit": "abc",
        "versions": {"torch": "2.13.0"},
    }
    start["machine"] = {"gpu": None, "name": "AMD EPYC"}
    (run / "run.json").write_text(json.dumps({"starts": [start, start]}))
    figures = {"clips": 40, "accuracy": 0.875, "accuracy_interval": [0.74, 0.95]}
    figures |= {"unweighted_accuracy": 0.87, "chance": 0.25}
    (run / "evaluation-test").mkdir()
    (run / "evaluation-test" / "scores.json").write_text(json.dumps(figures))
    model.save_pretrained(tmp_path / "folder", run=run)
    text = (tmp_path / "folder" / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "avemo"
    assert "| test | 40 | 87.5% (74.0% to 95.0%) | 87.0% | 25.0% |" in text
    assert "2026-11-28, 2 starts, commit abc; torch 2.13.0; AMD EPYC." in text
    for split, clips in (("train", 18), ("val", 6), ("test", 7)):
        assert f"| {split} | {clips} | 2 |" in text
    assert "No speaker of the test split was in training." in text
    assert "angry, happy, neutral, sad" in text
    assert str(tmp_path) not in text
    model.save_pretrained(tmp_path / "bare")
    bare = (tmp_path / "bare" / "README.md").read_text("utf-8")
    assert "Not evaluated." in bare
    assert bare.count("Not recorded.") == 2


def test_the_card_says_that_a_speaker_of_the_test_was_in_training(tmp_path: Path) -> None:
    index = write_cache(tmp_path / "cache") / INDEX
    index.write_text(index.read_text("utf-8").replace('"test0"', '"train1"'), "utf-8")
    run = tmp_path / "run"
    avemo.load(trained(run, cache=index.parent)).model.save_pretrained(tmp_path / "out", run=run)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| test | 7 | 2 |" in text
    assert "Speakers of the test split who were in training, too: 1. " in text


def test_predict_takes_a_folder(tmp_path: Path) -> None:
    file = trained(tmp_path)
    avemo.load(file).model.save_pretrained(tmp_path / "folder")
    clip = write_clip(tmp_path / "clip.mp4")
    (one,), (other,) = (
        predict(place, [clip], out=tmp_path / "out", pictures="none")
        for place in (file, tmp_path / "folder")
    )
    assert one.probabilities == other.probabilities


@pytest.mark.parametrize(("name", "needs"), [("am_fbp", ("audio", "video")), ("video", ("video",))])
def test_older_files_do_not_say_what_they_need(
    name: str, needs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = checkpoint._description

    def older(*arguments: object) -> dict:
        return {k: v for k, v in described(*arguments).items() if k != "needs"}

    assert wanted(trained(tmp_path, name)).needs == needs
    monkeypatch.setattr(checkpoint, "_description", older)
    assert wanted(trained(tmp_path, name)).needs == needs


def test_importing_avemo_imports_nothing_heavy() -> None:
    code = (
        "import sys, avemo; assert 'numpy' not in sys.modules; assert 'torch' not in sys.modules\n"
        "assert set(avemo.__all__) <= set(dir(avemo))\n"
        "try: avemo.nothing\n"
        "except AttributeError: pass\n"
        "assert avemo.load.__module__ == 'avemo.training.checkpoint'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
