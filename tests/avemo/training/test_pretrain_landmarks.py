"""Training the network that finds landmarks, and a system that starts from it."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from avemo.cli import main
from avemo.models.landmarks import LandmarkDistances
from avemo.training import checkpoint
from avemo.training.config import OptimizerConfig
from avemo.training.landmarks import LandmarkModule, normalised_error
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.shape_predictor import write_predictor
from tests.avemo.tiny_cache import write_cache

SIZES = ["--model.video.channels=[4,6]", "--trainer.accelerator", "cpu"]


def test_it_learns_from_dlib_and_a_system_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tmp_path / "cache", {"train": 12, "val": 8})
    predictor, out = write_predictor(tmp_path / "68.dat"), tmp_path / "landmarks"
    common = ["--data.cache", str(cache), "--data.batch_size", "4", *SIZES]
    pretrain = ["pretrain-landmarks", *common, "--predictor", str(predictor), "--out", str(out)]
    errors = []
    for epochs in ("1", "30"):
        (out / "landmarks.safetensors").unlink(missing_ok=True)
        rate = ["--optimizer.learning_rate", "0.02", "--trainer.epochs", epochs]
        assert main([*pretrain, *rate]) == 0
        said = capsys.readouterr().out
        errors.append(float(said.split("within ")[1].split("%")[0]))
    assert errors[1] < 0.5 * errors[0]
    wild = ["--optimizer.learning_rate", "1e30", "--out", str(tmp_path / "wild")]
    assert main([*pretrain, *wild]) == 2
    assert "try a lower --optimizer.learning_rate" in capsys.readouterr().err
    assert main([*pretrain, "--trainer.devices", "2"]) == 2
    assert "no settings but epochs, accelerator and precision" in capsys.readouterr().err
    assert main(pretrain) == 2
    assert "landmarks.safetensors is there already" in capsys.readouterr().err

    networks = f'[{{"name": "landmarks", "weights": "{out / "landmarks.safetensors"}"}}]'
    system = ["--model.name", "video", "--model.video.encoder", "networks"]
    system += ["--model.video.networks", networks, "--model.video.lstm", "5"]
    system += ["--model.video_attention.kind", "last", "--trainer.epochs", "2"]
    assert main(["train", *common, *system, "--out", str(tmp_path / "run")]) == 0
    trained = checkpoint.load(tmp_path / "run" / "best.safetensors").model
    state = trained.video.encoder.networks[0].state_dict()  # type: ignore[union-attr]
    weights = load_file(out / "landmarks.safetensors")
    assert state.keys() == weights.keys()
    assert all(torch.equal(x, weights[n]) for n, x in state.items() if n.startswith("find."))


def test_the_error_is_a_share_of_the_distance_between_the_eyes() -> None:
    known = torch.zeros(2, 68, 2, dtype=torch.float64)
    known[0, 45, 0], known[1, 45] = 2.0, torch.tensor([3.0, 4.0], dtype=torch.float64)
    found = known.clone()
    found[0, 7] += 0.68
    found[1, :, 1] += 0.5
    expected = [math.hypot(0.68, 0.68) / 68 / 2, 0.5 / 5]
    torch.testing.assert_close(
        normalised_error(found, known), torch.tensor(expected, dtype=torch.float64)
    )


def test_what_is_kept_is_the_network_of_the_least_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, file = LandmarkDistances(16, tiny_config().video), tmp_path / "landmarks.safetensors"
    module = LandmarkModule(network, Mock(), OptimizerConfig(), file)
    monkeypatch.setattr(module, "log", Mock())
    for error in (0.5, 0.2, 0.4, math.nan):
        torch.nn.init.constant_(network.norm.bias, error)
        module.error.update(torch.tensor([error - 0.1, error + 0.1]))
        module.on_validation_epoch_end()
    assert module.least_error == pytest.approx(0.2)
    assert torch.equal(load_file(file)["norm.bias"], torch.full((28,), 0.2))
