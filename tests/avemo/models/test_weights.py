"""The weights that a training starts from."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from avemo.models import build_model
from avemo.models.weights import start_weights
from avemo.training import checkpoint
from avemo.training.config import DataConfig, TrainerConfig
from avemo.training.train import train
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache

SIZES = {"bins": 20, "face_size": 16, "classes": 4}


def alexnet(
    channels: tuple[int, ...] = (3, 5, 6, 4, 7), colours: int = 3
) -> dict[str, torch.Tensor]:
    """A state dict with the names and the order of torchvision's AlexNet."""
    torch.manual_seed(7)
    widths, kernels = (colours, *channels), (11, 5, 3, 3, 3)
    state = {}
    for place, (before, after, kernel) in enumerate(zip(widths, channels, kernels, strict=False)):
        layer = nn.Conv2d(before, after, kernel)
        number = (0, 3, 6, 8, 10)[place]
        state |= {f"features.{number}.{name}": x.detach() for name, x in layer.named_parameters()}
    return state | {"classifier.6.weight": torch.randn(3, 9), "classifier.6.bias": torch.randn(3)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_2d_abfcn_starts_from_the_kernels_of_an_alexnet(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"alexnet.{suffix}", alexnet()
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    config = tiny_config("audio")
    config = replace(config, audio=replace(config.audio, encoder="2d_abfcn", weights=file))
    model = build_model(config, **SIZES).double()
    start_weights(model, config)
    encoder = model.audio.encoder
    # A grey picture in three colours is to theirs what it is to ours.
    grey = torch.randn(2, 1, 15, 15, dtype=torch.float64)
    first = nn.functional.conv2d(grey.repeat(1, 3, 1, 1), state["features.0.weight"].double())
    torch.testing.assert_close(nn.functional.conv2d(grey, encoder.conv1.weight), first)
    for ours, number in (
        (encoder.conv2, 3),
        (encoder.conv3, 6),
        (encoder.conv4, 8),
        (encoder.conv5, 10),
    ):
        assert torch.equal(ours.weight, state[f"features.{number}.weight"].double())


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def test_what_does_not_fit_or_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    config = tiny_config("audio")

    def start(file: Path) -> None:
        chosen = replace(config, audio=replace(config.audio, weights=file))
        start_weights(build_model(chosen, **SIZES), chosen)

    with pytest.raises(FileNotFoundError, match="no weights at"):
        start(tmp_path / "none.pth")
    torch.save(alexnet((64, 5, 6, 4, 7)), tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"AlexNet of the channels \[3, 5, 6, 4, 7\]; got \[\(64, 3, 11, 11\)"
    ):
        start(tmp_path / "other.pth")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        start(tmp_path / "trap.pth")
    torch.save(Trap(tmp_path / "trapped"), tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        start(tmp_path / "trap.pth")
    assert not (tmp_path / "trapped").exists()
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(ValueError, match="must hold a state dict"):
        start(tmp_path / "run.pth")


def test_a_run_starts_from_them_and_its_checkpoint_needs_them_no_more(tmp_path: Path) -> None:
    config = tiny_config("audio")
    donor = build_model(config, **SIZES).audio.encoder.state_dict()
    file = tmp_path / "encoder.safetensors"
    save_file(donor, file)
    started = replace(config, audio=replace(config.audio, weights=file))
    model = build_model(started, **SIZES)
    start_weights(model, started)
    assert all(torch.equal(x, donor[name]) for name, x in model.audio.encoder.state_dict().items())
    result = train(
        data=DataConfig(write_cache(tmp_path / "cache"), batch_size=9),
        model=started,
        trainer=TrainerConfig(epochs=1, accelerator="cpu"),
        out=tmp_path / "run",
    )
    file.unlink()
    assert checkpoint.load(result.best).config.model.audio.weights == file
