"""Checkpoints: what is saved comes back, and nothing in a file is executed or half read."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avemo.data.augment import AugmentConfig
from avemo.data.features import FeatureConfig
from avemo.models.backend import use_backend
from avemo.training import checkpoint
from avemo.training.checkpoint import CheckpointError
from avemo.training.config import DataConfig, OptimizerConfig, TrainConfig
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_batch, tiny_config, tiny_model

CLASSES = ("angry", "happy", "neutral", "sad")
CONFIG = TrainConfig(
    data=DataConfig(Path("some/cache"), batch_size=3, augment=AugmentConfig(flip=0.25)),
    model=tiny_config(),
    optimizer=OptimizerConfig(learning_rate=0.0125),
    seed=7,
)
FEATURES = FeatureConfig(bins=BINS, face_size=FACE_SIZE, detector="yunet:abc")


def write(path: Path) -> torch.nn.Module:
    model = tiny_model()
    checkpoint.save(path, model, CONFIG, CLASSES, FEATURES)
    return model


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model = write(tmp_path / "sub" / "a.safetensors")
    loaded = checkpoint.load(tmp_path / "sub" / "a.safetensors")
    assert loaded.config == CONFIG
    assert loaded.classes == CLASSES
    assert loaded.features == FEATURES
    assert not loaded.model.training
    batch = tiny_batch()
    assert torch.equal(loaded.model(*batch).logits, model(*batch).logits)


def test_an_accelerated_model_is_saved_like_any_other(tmp_path: Path) -> None:
    model = write(tmp_path / "a.safetensors")
    use_backend(model)
    checkpoint.save(tmp_path / "b.safetensors", model, CONFIG, CLASSES, FEATURES)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_others_may_read_it_and_no_part_is_left(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode & stat.S_IRGRP
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.safetensors")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.safetensors": before}


def test_every_changed_weight_is_found(tmp_path: Path) -> None:
    """One bit of the first, a middle and the last byte of the weights."""
    file = tmp_path / "a.safetensors"
    write(file)
    whole = file.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")
    for place in (first, (first + len(whole)) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a.safetensors .*checksum of its weights"):
            checkpoint.load(file)


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("write_file", [torch.save, lambda x, f: f.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_not_run(tmp_path: Path, write_file) -> None:  # type: ignore[no-untyped-def]
    write_file(Trap(tmp_path / "trapped"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(tmp_path / "a.safetensors")
    assert not (tmp_path / "trapped").exists()


def test_files_that_are_no_checkpoint_say_so(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(file)
    best = tmp_path / "best.safetensors"
    best.touch()
    with pytest.raises(FileNotFoundError, match=f"model.safetensors; that of the run is {best}$"):
        checkpoint.load(tmp_path)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="not a checkpoint of a trained model"):
        checkpoint.load(file)


def described(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()["avemo"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99, expected 3"),
        ({"classes": ["angry"]}, "size mismatch for classifier"),
        ({"config": {}}, "does not describe a model"),
        ({"config": {"data": {"cache": "c"}, "model": {"name": "nope"}}}, "got 'nope'"),
        ({"features": {"bins": 7}}, "bins must divide 200, got 7"),
    ],
)
def test_spoiled_metadata_is_told(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = tmp_path / "a.safetensors"
    write(file)
    weights, description = described(file)
    save_file(weights, file, {"avemo": json.dumps(description | change)})
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(file)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write(file)
    weights, description = described(file)
    del weights["classifier.bias"]
    save_file(weights, file, {"avemo": json.dumps(description)})
    with pytest.raises(CheckpointError, match=r"Missing key.*classifier\.bias"):
        checkpoint.load(file)
