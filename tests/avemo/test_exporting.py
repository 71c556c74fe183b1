"""Exported models answer as PyTorch does, in programs that have no avemo."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import avemo
from avemo import exporting
from avemo.data.features import FeatureConfig
from avemo.exporting import INPUTS, TOLERANCE, drawn, export
from avemo.models import build_model
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_config, tiny_model
from tests.avemo.test_systems import small

CLASSES = ("angry", "happy", "neutral", "sad")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / f"{request.param}.safetensors"
    config = TrainConfig(data=DataConfig(Path("none")), model=tiny_config(request.param))
    features = FeatureConfig(bins=BINS, face_size=FACE_SIZE)
    avemo.save(path, tiny_model(request.param), config, CLASSES, features)
    return path


def example(name: str, *arguments: Path, env: dict[str, str] | None = None) -> list[list[str]]:
    """What a sample program prints, where importing what it must not need fails."""
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1].split(','): sys.modules[name] = None\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    missing = "avemo,fbp_kernels" + (",torch" if "onnx" in name else "")
    words = [sys.executable, "-c", code, missing, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | (env or {})
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def check_example(rows: list[list[str]], batch: Path) -> None:
    logits = torch.from_numpy(np.load(batch)["logits"])
    expected = logits.softmax(1)
    assert [row[1] for row in rows] == [CLASSES[i] for i in expected.argmax(1)]
    shares = [[float(cell.split("=")[1]) for cell in row[2:]] for row in rows]
    assert np.allclose(shares, expected, atol=2e-5)


def with_lstm(system: str, folder: Path) -> Path:
    """A checkpoint of a system with an LSTM, at the sizes of a test."""
    config = small(system)
    model = build_model(config, bins=BINS, face_size=FACE_SIZE, classes=len(CLASSES)).eval()
    path = folder / "model.safetensors"
    trained = TrainConfig(data=DataConfig(Path("none")), model=config)
    avemo.save(path, model, trained, CLASSES, FeatureConfig(bins=BINS, face_size=FACE_SIZE))
    return path


def test_a_model_whose_graph_would_take_one_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's of its own LSTM: before anything is written."""
    monkeypatch.setattr("avemo.models.ragged.states", lambda lstm, x: lstm(x)[0])
    path = with_lstm("cnn_lstm", tmp_path)
    with pytest.raises(ValueError, match=r"one size alone.*Guard failed: audio\.size"):
        export(path, out=tmp_path / "model.pt2", format="pt2")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "system", ["cnn_lstm", "att_blstm_fcn", "four_cnns_blstm", "four_cnns_lmed_lstm"]
)
def test_an_lstm_of_any_number_of_clips_and_frames(
    system: str, format: Any, tmp_path: Path
) -> None:
    path = with_lstm(system, tmp_path)
    assert max(export(path, out=tmp_path / "model", format=format).values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor compiles C++")
def test_what_aotinductor_cannot_compile_is_told_in_a_line(tmp_path: Path) -> None:
    path = with_lstm("cnn_lstm", tmp_path)
    with pytest.raises(
        ValueError, match=r"^format aot: .* cannot the loop of an LSTM .*onnx and pt2"
    ):
        export(path, out=tmp_path / "model", format="aot")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["am_fbp"], indirect=True)
def test_onnx_in_onnxruntime(checkpoint: Path) -> None:
    out = checkpoint.with_suffix(".onnx")
    assert max(export(checkpoint, out=out).values()) <= TOLERANCE
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}, "standard operators alone"
    trained = avemo.load(checkpoint)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for clips, sound, faces in [(1, 21, 3), (2, 400, 50), (7, 33, 4)]:
        batch = drawn(trained, clips, sound, faces)
        given = dict(zip(INPUTS, (x.numpy() for x in batch), strict=True))
        taken = {i.name: given[i.name] for i in session.get_inputs()}
        with torch.no_grad():
            answer = trained.model(*batch)
        for name, found in zip(
            (o.name for o in session.get_outputs()), session.run(None, taken), strict=True
        ):
            wanted = getattr(answer, name).numpy()
            assert np.abs(found - wanted).max() <= TOLERANCE, (name, clips)
    check_example(example("run_onnx.py", out, Path(f"{out}.npz")), Path(f"{out}.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["am_fbp", "video"], indirect=True)
def test_a_program_of_torch_export(checkpoint: Path) -> None:
    out = checkpoint.with_suffix(".pt2")
    assert max(export(checkpoint, out=out, format="pt2").values()) <= TOLERANCE
    extra = {"avemo": ""}
    program = torch.export.load(out, extra_files=extra)
    assert json.loads(extra["avemo"])["features"]["bins"] == BINS
    kinds = {
        str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"
    }
    assert not [kind for kind in kinds if "fbp" in kind]
    check_example(example("run_pt2.py", out, Path(f"{out}.npz")), Path(f"{out}.npz"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("checkpoint", ["video"], indirect=True)
def test_a_compiled_program(checkpoint: Path) -> None:
    """In a process without a compiler, too: it was needed to write the file. What is beside it stays."""
    out, other = checkpoint.with_suffix(".aot"), checkpoint.with_suffix(".pt2")
    other.write_text("somebody's")
    assert max(export(checkpoint, out=out, format="aot").values()) <= TOLERANCE
    assert other.read_text() == "somebody's"
    rows = example("run_pt2.py", out, Path(f"{out}.npz"), env={"PATH": "", "CXX": "none"})
    check_example(rows, Path(f"{out}.npz"))


@pytest.mark.parametrize("checkpoint", ["video"], indirect=True)
@pytest.mark.parametrize(("wrong", "said"), [((2e-4, 2e-4), "2.0e-04"), ((0.0, np.nan), "nan")])
def test_what_does_not_answer_as_pytorch_does_is_an_error(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: tuple[float, float],
    said: str,
) -> None:
    def spoilt(program: object, out: Path, names: list[str], described: str) -> exporting.Runner:
        out.write_bytes(b"")
        trained = avemo.load(checkpoint)

        def run(batch: tuple) -> list:
            with torch.no_grad():
                answer = trained.model(*batch)
                right = (answer.logits, answer.video_attention)
                return [x.numpy() + y for x, y in zip(right, wrong, strict=True)]

        return run

    monkeypatch.setitem(exporting._WRITERS, "pt2", spoilt)
    monkeypatch.setattr(exporting, "exported", lambda trained: None)
    out = tmp_path / "a.pt2"
    out.write_text("good")
    with pytest.raises(
        ValueError, match=rf"{out} differs from PyTorch by {said}, more than 0.0001"
    ):
        export(checkpoint, out=out, format="pt2")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.pt2": "good"}


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["video"], indirect=True)
@pytest.mark.parametrize("format", ["onnx", "pt2", "aot"])
def test_nothing_is_written_under_the_name_before_it_is_checked(
    checkpoint: Path, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill at any moment leaves a file that is whole, or none."""
    if format == "aot" and not shutil.which("g++"):
        pytest.skip("AOTInductor needs a C++ compiler")
    out, sample = tmp_path / "model", tmp_path / "model.npz"
    seen = []

    def check(*arguments: Any) -> dict[str, float]:
        found = checked(*arguments)
        seen.append((out.read_text(), sample.read_text()))
        return found

    checked = exporting._check
    monkeypatch.setattr(exporting, "_check", check)
    for path in (out, sample):
        path.write_text("good")
    export(checkpoint, out=out, format=cast("Any", format))
    assert seen == [("good", "good")]
    assert np.load(sample)["logits"].shape == (5, len(CLASSES))
    assert out.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.npz"]


def test_what_is_no_file_is_told_before_anything_is_made(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match=f"out must be the name of a file, got {place}"):
            export(tmp_path / "no.safetensors", out=place)


@pytest.mark.parametrize("checkpoint", ["video"], indirect=True)
@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_is_told_before_anything_is_made(
    checkpoint: Path, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    said = rf"onnx needs {missing}: pip install 'avemo\[export\]'"
    with pytest.raises(ValueError, match=said):
        export(checkpoint, out=tmp_path / "new" / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_exporter_is_quiet_for_as_long_as_it_works(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    with contextlib.suppress(RuntimeError), exporting._quiet():
        log.warning("within")
        raise RuntimeError
    log.warning("after")
    assert [record.message for record in caplog.records if record.name == log.name] == ["after"]
