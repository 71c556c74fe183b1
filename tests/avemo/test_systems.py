"""Every system by its name: it builds, it learns, and accelerated operators train it like the reference's."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from avemo.cli import find_config, main
from avemo.data.features import FeatureConfig
from avemo.models import ModelConfig, build_model, needed_streams
from avemo.models import networks as networks_of_pictures
from avemo.models.config import NetworkConfig
from avemo.models.networks import OURS as OURS_BY_NAME
from avemo.systems import figures, system_names, systems
from avemo.training import checkpoint
from avemo.training.compare import compare_steps
from avemo.training.config import DataConfig, OptimizerConfig, TrainConfig, from_dict
from tests.avemo.models.test_networks import importable
from tests.avemo.models.tiny_model import tiny_batch, tiny_config
from tests.avemo.tiny_cache import write_cache
from tests.marks import slow

# Of all parts at the paper's sizes: 200 bins, faces of 64 pixels, seven classes.
PAPER = {"bins": 200, "face_size": 64, "classes": 7}

Layers = tuple[list[tuple[int, ...]], int]

# The shapes of matrices and kernels in order, and how many other parameters there are: biases and normalisations.
ALEXNET: Layers = (
    [(96, 1, 11, 11), (256, 96, 5, 5), (384, 256, 3, 3), (384, 384, 3, 3), (256, 384, 3, 3)],
    2 * (96 + 256 + 384 + 384 + 256),
)
ATTENTION: Layers = ([(256, 128)], 128 + 128)
ABFCN: Layers = ([*ALEXNET[0], (256, 256, 11, 1), *ATTENTION[0]], ALEXNET[1] + 256 + ATTENTION[1])
VIDEO: Layers = (
    [
        (64, 2, 3, 3),
        (128, 64, 3, 3),
        (256, 128, 3, 3),
        (512, 256, 3, 3),
        (512, 512 * 4 * 4),
        (512, 128),
    ],
    2 * (64 + 128 + 256 + 512) + 512 + 128 + 128,
)
GLOBAL: Layers = ([(256, 128 * 4), (512, 128 * 4)], 2 * 128)
TRUNKS: Layers = ([(8, 256, 128 * 4), (8, 512, 128 * 4)], 2 * 128)


def head(features: int) -> Layers:
    return [(7, features)], 7


def together(*parts: Layers) -> Layers:
    return [shape for shapes, _ in parts for shape in shapes], sum(others for _, others in parts)


def blstm(features: int, hidden: int) -> Layers:
    gates = 4 * hidden
    return [(gates, features), (gates, hidden)] * 2, 2 * 2 * gates


def tcn(features: int, channels: int, blocks: int) -> Layers:
    """Norms and directions of two weight-normalised kernels in each block, and a residual of another width."""
    shapes: list[tuple[int, ...]] = []
    for _ in range(blocks):
        shapes += [
            (channels, 1, 1),
            (channels, features, 3),
            (channels, 1, 1),
            (channels, channels, 3),
        ]
        shapes += [(channels, features, 1)] if features != channels else []
        features = channels
    return shapes, (2 * blocks + 1) * channels


NORM: Layers = ([], 2 * 256)

# By system, as the sources say that are named where the parts are.
LAYERS: dict[str, Layers] = {
    "1d_abfcn": together(ABFCN, NORM, head(256)),
    "2d_abfcn": together(ALEXNET, ATTENTION, NORM, head(256)),
    "video": together(VIDEO, NORM, NORM, head(512)),
    "g_fbp": together(ABFCN, VIDEO, GLOBAL, head(128)),
    "m_fbp": together(ABFCN, VIDEO, TRUNKS, head(128)),
    "am_fbp": together(ABFCN, VIDEO, GLOBAL, TRUNKS, head(256)),
    "encoder_concat": together(ABFCN, VIDEO, NORM, NORM, NORM, head(768)),
}
LAYERS["cnn_lstm"] = together(
    ([(16, 1, 12, 16), (24, 16, 8, 12), (32, 24, 5, 7)], 2 * (16 + 24 + 32)),
    blstm(32 * 25, 128),
    NORM,
    head(256),
)
LAYERS["att_blstm_fcn"] = together(
    blstm(200, 128),
    ([(128, 200, 1, 8), (256, 128, 1, 5), (128, 256, 1, 3)], 2 * (128 + 256 + 128)),
    ATTENTION,
    ([], 2 * 384),
    head(384),
)
LAYERS["fusion_tacn"] = together(
    ([(64, 200, 4), (64, 64, 4)], 64 + 64),
    tcn(200, 128, 4),
    tcn(64, 128, 4),
    ATTENTION,
    NORM,
    head(256),
)
LAYERS["mafn"] = together(
    ABFCN, VIDEO, ([(128, 256), (128, 512), (128, 128), (1, 128)], 3 * 128 + 2 * 128), head(128)
)
LAYERS["decision_fusion"] = together(ABFCN, VIDEO, NORM, head(256), NORM, NORM, head(512))
LAYERS["1d_abfcn_no_lrn"] = LAYERS["audio"] = LAYERS["1d_abfcn"]
LAYERS["ag_fbp"] = LAYERS["g_fbp"]
LAYERS["4g_fbp"] = together(*[LAYERS["g_fbp"]] * 4)
LAYERS["2am_fbp"] = together(*[LAYERS["am_fbp"]] * 2)
LAYERS["2am_fbp_4g_fbp"] = together(LAYERS["2am_fbp"], LAYERS["4g_fbp"])


def described(name: str) -> dict[str, Any]:
    """What a system's file says of the model."""
    values: dict[str, Any] = yaml.safe_load(Path(find_config(name)).read_text("utf-8"))["model"]
    return values


def small(name: str) -> ModelConfig:
    """A system at the sizes of a test."""
    sizes = tiny_config(name=described(name)["name"])
    sizes = replace(sizes, audio=replace(sizes.audio, width=0.05))
    config = from_dict(ModelConfig, merged(asdict(sizes), described(name)))
    video = config.video
    ours = tuple(n if n.name in OURS_BY_NAME else NetworkConfig() for n in video.networks)
    units = {name: min(getattr(video, name), 4) for name in ("blstm", "lstm")}
    return replace(config, video=replace(video, networks=ours, **units))


def merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; the second has the last word."""
    result = dict(first)
    for key, value in then.items():
        result[key] = merged(result[key], value) if isinstance(value, Mapping) else value
    return result


# Ensembles are what their members are; models of transformers have tests of their own.
OURS = [n for n in system_names() if "/" not in described(n).get("audio", {}).get("encoder", "")]
TRAINED = [
    n for n in OURS if described(n)["name"] != "lbp_top_svm"
]  # which learns without gradients
ALONE = [n for n in TRAINED if described(n)["name"] != "ensemble"]


@pytest.mark.parametrize("name", [n for n in TRAINED if n in LAYERS])
def test_layers_and_parameters_are_those_of_the_source(name: str) -> None:
    with torch.device("meta"):
        model = build_model(from_dict(ModelConfig, described(name)), **PAPER)
    shapes, others = LAYERS[name]
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == shapes
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) == others


# Of torchvision's networks without their last layer: features, and parameters as its documentation counts them.
PUBLISHED = {
    "vgg16": (4096, 138_357_544 - 4097 * 1000),
    "resnet50": (2048, 25_557_032 - 2049 * 1000),
    "densenet121": (1024, 7_978_856 - 1025 * 1000),
    "mobilenet_v2": (1280, 3_504_872 - 1281 * 1000),
}
LANDMARKS: Layers = (
    [*VIDEO[0][:4], (2 * 68, 512 * 4 * 4)],
    2 * (64 + 128 + 256 + 512) + 2 * 68 + 2 * 28,
)
FOUR = 4096 + 2048 + 1024 + 1280
WITH_FOUR = {
    "four_cnns_blstm": together(ABFCN, blstm(FOUR, 128), NORM, NORM, head(256 + 256)),
    "four_cnns_lmed_lstm": together(
        ABFCN,
        LANDMARKS,
        ([(512, FOUR + 28), (512, 128)], 2 * 512),
        NORM,
        head(256),
        ([], 2 * 128),
        head(128),
    ),
}


@pytest.mark.parametrize("name", WITH_FOUR)
def test_layers_beside_those_of_four_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def published(network: str) -> tuple[nn.Module, int]:
        return nn.Identity(), PUBLISHED[network.removeprefix("torchvision:")][0]

    monkeypatch.setattr(networks_of_pictures, "_without_classifier", published)
    with torch.device("meta"):
        model = build_model(from_dict(ModelConfig, described(name)), **PAPER)
    shapes, others = WITH_FOUR[name]
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == shapes
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) == others


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_four_networks_have_the_parameters_that_are_published(name: str) -> None:
    """Where torchvision can be imported: `make vision` makes such a place."""
    if not importable("torchvision"):
        pytest.skip("torchvision cannot be imported beside this torch")
    with torch.device("meta"):
        network = networks_of_pictures.Pictures(NetworkConfig(f"torchvision:{name}"))
    parameters = sum(p.numel() for p in network.parameters())
    assert (network.out_features, parameters) == PUBLISHED[name]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is so small is slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name", slow(ALONE, "att_blstm_fcn", "four_cnns_blstm", "four_cnns_lmed_lstm")
)
def test_it_learns_and_accelerated_as_by_the_reference(name: str, tmp_path: Path) -> None:
    """Four clips by heart after 50 steps; on equal weights both sides' losses are one but for rounding."""
    cache = write_cache(tmp_path, {"train": 4, "val": 4})
    config = TrainConfig(
        DataConfig(cache, batch_size=4),
        small(name),
        OptimizerConfig(learning_rate=0.01, label_smoothing=0.0),
    )
    compared = compare_steps(config, steps=50)
    assert "native" in compared.backends
    assert 0.5 * math.log(4) < compared.first_loss < 3 * math.log(4)
    assert compared.last_loss < 0.2 * math.log(4)
    assert compared.operator_difference < 1e-4


@pytest.mark.parametrize("name", OURS)
def test_a_clip_is_the_same_alone_and_in_a_batch(name: str) -> None:
    """However far its batch is padded, and whatever is in the padding."""
    torch.manual_seed(1)
    model = build_model(small(name), bins=20, face_size=16, classes=4).double().eval()
    audio, a_len, video, v_len = tiny_batch()
    audio, video = F.pad(audio.double(), (0, 5)), F.pad(video.double(), (0, 0, 0, 0, 0, 2))
    for b in range(len(a_len)):
        audio[b, :, a_len[b] :] = 1e3
        video[b, v_len[b] :] = 1e3
    together = model(audio, a_len, video, v_len)
    for b in range(len(a_len)):
        row = slice(b, b + 1)
        alone = model(audio[row, :, : a_len[b]], a_len[row], video[row, : v_len[b]], v_len[row])
        torch.testing.assert_close(alone.logits[0], together.logits[b], rtol=1e-9, atol=1e-9)
        for mine, ours in zip(alone[1:3], together[1:3], strict=True):
            assert (mine is None) == (ours is None)
            if mine is not None:
                torch.testing.assert_close(ours[b, : mine.shape[1]], mine[0], rtol=1e-9, atol=1e-9)
                assert not ours[b, mine.shape[1] :].any()
                assert mine.sum().item() == pytest.approx(1)


RUN = """
import sys
from pathlib import Path
from avemo import imports
folder, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "without":
    imports.in_a_process_of_its_own()
    imports.put_off_kernels_without_data()
from safetensors.torch import load_file, save_file
from avemo.models.backend import use_backend
from avemo.training.checkpoint import load
import torch
batch = [load_file(folder / "batch.safetensors")[name] for name in "abcd"]
results = {}
for file in folder.glob("*.model.safetensors"):
    model = load(file).model
    use_backend(model, None)
    with torch.inference_mode():
        results[file.name] = model(*batch).logits.clone()
assert ("torch._decomp" in sys.modules) == (kind == "with"), "what was put off was asked for"
save_file(results, folder / f"{kind}.safetensors")
"""


def test_each_runs_alike_without_what_predict_leaves_out_of_pytorch(tmp_path: Path) -> None:
    """Bit by bit, in a process that has never imported it."""
    save_file(dict(zip("abcd", tiny_batch(), strict=True)), tmp_path / "batch.safetensors")
    for name in ALONE:
        torch.manual_seed(1)
        model = build_model(small(name), bins=20, face_size=16, classes=4)
        config = TrainConfig(DataConfig(tmp_path), small(name))
        features = FeatureConfig(bins=20, face_size=16)
        file = tmp_path / f"{name}.model.safetensors"
        checkpoint.save(file, model, config, ("a", "b", "c", "d"), features)
    results = []
    for kind in ("with", "without"):
        command = [sys.executable, "-c", RUN, str(tmp_path), kind]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        results.append(load_file(tmp_path / f"{kind}.safetensors"))
    assert len(results[0]) == len(ALONE)
    assert all(torch.equal(results[1][name], x) for name, x in results[0].items())


@pytest.mark.parametrize("name", TRAINED)
def test_a_batch_may_have_no_clips(name: str) -> None:
    """As a process gets where clips do not go round; its gradients are zeros, and all are there."""
    model = build_model(small(name), bins=20, face_size=16, classes=4).train()
    nothing = (torch.zeros(0, 20, 1), torch.zeros(0, dtype=torch.int64))
    output = model(*nothing, torch.zeros(0, 1, 16, 16), nothing[1])
    assert output.logits.shape == (0, 4)
    sum(x.sum() for x in output.trained or (output.logits,)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_streams_are_those_that_the_parts_attend_to() -> None:
    for name in TRAINED:
        system = systems()[name]
        model = build_model(small(name), bins=20, face_size=16, classes=4)
        children = {name.split(".")[-1] for name, _ in model.named_modules()}
        heard_and_seen = tuple(s for s in ("audio", "video") if s in children)
        assert system.streams == needed_streams(model) == heard_and_seen, name


def test_every_figure_of_the_slides_is_there() -> None:
    rows = [(f.table, f.name) for f in figures()]
    assert [sum(t == table for t, _ in rows) for table in ("I", "II", "III", "V", "VI")] == [
        6,
        4,
        4,
        11,
        11,
    ]
    assert len(rows) == len(set(rows)) == 36
    assert all(30 < f.accuracy < 80 for f in figures())
    assert {f.accuracy for f in figures() if f.system == "am_fbp"} == {64.17, 62.17, 75.49}


def test_systems_are_listed_with_the_papers_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems"]) == 0
    listed = capsys.readouterr().out
    for name, system in systems().items():
        (line,) = [line for line in listed.splitlines() if line.split()[:1] == [name]]
        assert system.summary in line
        assert " and ".join(system.streams) in line
    assert listed.count("Table ") == len(figures())
    assert "Table VI (IEMOCAP, test): 75.49%, p-value < 0.001" in listed
