"""Networks of pictures as encoders of faces."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avemo.cli import main
from avemo.models import ModelConfig, build_model
from avemo.models.config import NetworkConfig, VideoEncoderConfig
from avemo.models.networks import Networks, Pictures
from avemo.models.weights import start_weights
from tests.avemo.models.tiny_model import tiny_batch, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


def configured(*networks: NetworkConfig, blstm: int = 0, lstm: int = 0) -> ModelConfig:
    video = replace(tiny_config().video, encoder="networks", networks=networks)
    return replace(tiny_config("video"), video=replace(video, blstm=blstm, lstm=lstm))


def built(config: ModelConfig) -> Networks:
    torch.manual_seed(1)
    encoder = build_model(config, bins=20, face_size=16, classes=4).eval().video.encoder
    assert isinstance(encoder, Networks)
    return encoder


def test_several_are_concatenated_and_read_by_an_lstm() -> None:
    _, _, faces, lengths = tiny_batch()
    frames = NetworkConfig("frames")
    together = built(configured(frames, frames))
    encoded = together(faces, lengths)
    assert encoded.shape[2] == together.out_features == 22
    for place, part in enumerate(encoded.split(11, dim=2)):
        assert torch.equal(part, together.networks[place](faces, lengths))
    after = built(configured(frames, frames, blstm=3))
    assert after.out_features == 6
    states = after(faces, lengths)
    for row, n in enumerate(lengths.tolist()):
        inside = torch.cat([net(faces, lengths) for net in after.networks], 2)[row : row + 1, :n]
        assert after.blstm is not None
        alone = after.blstm(inside, lengths[row : row + 1])
        torch.testing.assert_close(states[row : row + 1, :n], alone)
        assert not states[row, n:].any()


def test_an_lstm_of_one_direction_or_of_two() -> None:
    _, _, faces, lengths = tiny_batch()
    encoder = built(configured(NetworkConfig(), lstm=3))
    assert (encoder.out_features, encoder.directions) == (3, 1)
    assert encoder.lstm is not None
    frames = encoder.networks[0](faces, lengths)
    torch.testing.assert_close(encoder(faces, lengths), encoder.lstm(frames, lengths))
    assert built(configured(NetworkConfig(), blstm=3)).directions == 2
    assert built(configured(NetworkConfig())).directions == 0
    with pytest.raises(ValueError, match="of one direction or of two; got lstm 3 and blstm 2"):
        built(configured(NetworkConfig(), lstm=3, blstm=2))


@pytest.mark.parametrize("units", ["lstm", "blstm"])
def test_the_last_state_is_that_of_the_last_face(units: str) -> None:
    """Where the clip ends without one, or begins so."""
    recurrent: Any = {units: 3}
    config = configured(NetworkConfig(), **recurrent)
    config = replace(config, video_attention=replace(config.video_attention, kind="last"))
    torch.manual_seed(1)
    model = build_model(config, bins=20, face_size=16, classes=4).eval().video
    _, _, faces, lengths = tiny_batch()
    faces, lengths = faces[:1].clone(), lengths[:1]
    n = int(lengths)
    faces[:, 0] = faces[:, n - 1] = 0
    states = model.encoder(faces, lengths)[0]
    expected = (
        states[n - 2, :3] if units == "lstm" else torch.cat([states[n - 2, :3], states[1, 3:]])
    )
    assert expected.abs().min() > 0
    torch.testing.assert_close(model(faces, lengths).vector[0], expected)


class Small(nn.Module):
    """As a network of torchvision: features, and a linear classifier at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 5, 3, padding=1)
        self.classifier = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1000))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return y


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library of one network where the real one cannot be imported; that has a test of its own."""
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")

    def get_model(name: str, weights: None) -> nn.Module:
        if name != "small":
            raise ValueError(f"Unknown model {name}")
        return Small()

    models.get_model = get_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.usefixtures("torchvision")
def test_a_network_of_a_library_sees_faces_in_three_colours_without_its_last_layer() -> None:
    _, _, faces, lengths = tiny_batch()
    encoder = built(configured(NetworkConfig("torchvision:small", size=9)))
    encoded = encoder(faces, lengths)
    hidden = faces.clone()
    hidden[0, 1] = 0
    for t, row in enumerate(encoder(hidden, lengths)[0]):
        torch.testing.assert_close(row, encoded[0, t] if t != 1 else torch.zeros(6))
    assert encoder.out_features == 6
    network: Any = encoder.networks[0].network
    for row, n in enumerate(lengths.tolist()):
        shown = nn.functional.interpolate(
            faces[row, :n, None], (9, 9), mode="bilinear", antialias=True
        )
        expected = network.classifier[:2](network.features(shown.repeat(1, 3, 1, 1)).mean((2, 3)))
        torch.testing.assert_close(encoded[row, :n], expected)
        assert not encoded[row, n:].any()
    with pytest.raises(ValueError, match="torchvision has no network 'other': Unknown model other"):
        built(configured(NetworkConfig("torchvision:other")))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("prefix", ["", "conv1_1."])
def test_weights_are_taken_by_name_or_in_their_order(tmp_path: Path, prefix: str) -> None:
    """As those of a VGG-Face are, whose layers have other names than torchvision's."""
    theirs = {prefix + name: x for name, x in Small().state_dict().items()}
    torch.save(theirs, tmp_path / "net.pth")
    config = configured(NetworkConfig("torchvision:small", tmp_path / "net.pth"))
    model = build_model(config, bins=20, face_size=16, classes=4)
    start_weights(model, config)
    network = model.video.encoder.networks[0].network
    assert all(torch.equal(x, theirs[prefix + name]) for name, x in network.state_dict().items())
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth do not fit: neither the names nor the shapes"):
        start_weights(model, config)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_without_the_library_it_is_one_line(
    library: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importable(library):
        pytest.skip("it is there")
    cache = write_cache(tmp_path / "cache")
    networks = f'[{{"name": "{library}:resnet18"}}]'
    arguments = ["--model.name", "video", "--model.video.encoder", "networks"]
    arguments += ["--model.video.networks", networks, "--data.cache", str(cache)]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{library}:resnet18 needs {library}, which cannot be imported here" in line
    with pytest.raises(ValueError, match="got 'resnet18'"):
        built(configured(NetworkConfig("resnet18")))


@pytest.mark.parametrize(
    "name", ["torchvision:vgg16", "torchvision:resnet50", "torchvision:densenet121",
             "torchvision:mobilenet_v2", "torchvision:vit_b_16", "timm:resnet18", "timm:convnext_atto"]
)  # fmt: skip
def test_a_real_network_of_the_library(name: str) -> None:
    """Where it can be imported: `make vision` makes such a place."""
    library, _, known_as = name.partition(":")
    if not importable(library):
        pytest.skip(f"{library} cannot be imported beside this torch")
    size = 224 if "vit" in name else 64
    encoder = Pictures(NetworkConfig(name, size=size)).eval()
    _, _, faces, lengths = tiny_batch((9, 5), (3, 2))
    with torch.no_grad():
        encoded = encoder(faces, lengths)
    assert encoded.shape == (2, 3, encoder.out_features)
    assert encoded[0].any(dim=1).all()
    assert not encoded[1, 2:].any()
    whole = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    known = (
        whole.create_model(known_as)
        if library == "timm"
        else whole.get_model(known_as, weights=None)
    )
    encoder.start_from(known.state_dict())
    own = encoder.network.state_dict()
    assert all(torch.equal(x, known.state_dict()[key]) for key, x in own.items())


def test_pretrain_face_learns_single_crops_and_a_system_starts_from_it(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", {"train": 12, "val": 8})
    sizes = ["--model.video.channels=[4,6]", "--model.video.out_features=5"]
    common = ["--data.cache", str(cache), "--data.batch_size", "4", "--trainer.accelerator", "cpu"]
    face = tmp_path / "face" / "face.safetensors"
    quick = ["--trainer.epochs", "6", "--optimizer.learning_rate", "0.01"]
    assert main(["pretrain-face", *common, *sizes, *quick, "--out", str(face.parent)]) == 0
    assert (
        main(["evaluate", str(face.parent / "best.safetensors"), str(cache), "--split", "train"])
        == 0
    )
    config = replace(
        ModelConfig("video"), video=VideoEncoderConfig((4, 6), out_features=5, weights=face)
    )
    model = build_model(config, bins=20, face_size=16, classes=4)
    start_weights(model, config)
    weights = load_file(face)
    assert all(torch.equal(x, weights[n]) for n, x in model.video.encoder.state_dict().items())
    save_file({"stages.0.weight": torch.zeros(2)}, face)
    with pytest.raises(ValueError, match="do not fit"):
        start_weights(model, config)


def test_each_crop_counts_and_clips_alike() -> None:
    model = tiny_model("faces").double()
    audio, a_len, faces, lengths = tiny_batch()
    output = model(audio, a_len, faces.double(), lengths)
    scores = model.classifier(model.video(faces.double(), lengths))
    assert len(output.trained) == 8
    for row, n in enumerate(lengths.tolist()):
        for t, crop in enumerate(output.trained):
            assert torch.equal(crop[row], scores[row, t % n])
        mean = scores[row, :n].softmax(1).mean(0)
        torch.testing.assert_close(output.logits[row].exp(), mean, rtol=1e-12, atol=1e-12)
