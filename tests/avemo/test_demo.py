"""The demo on a corpus of a few clips, and the parts of its table against hand computation."""

import json
from pathlib import Path

import pytest

from avemo import demo as demo_module
from avemo.demo import _compare_systems, _one_of_each_class, demo
from avemo.evaluation.predictions import Prediction, write_predictions
from avemo.training.compare import Quartiles, compare_steps
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import tiny_config
from tests.avemo.tiny_cache import write_cache


@pytest.mark.slow
def test_the_whole_road_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def road() -> dict[str, object]:
        return demo(out=tmp_path, clips=24, epochs=1, steps=6)

    result = road()
    shown = capsys.readouterr().out
    for command in ("synth", "prepare", "train", "evaluate", "predict"):
        assert f"$ avemo {command} " in shown
    for word in ("AM-FBP", "chance", "ratio of the two", "largest difference", "demo.json"):
        assert word in shown.rpartition("$ avemo")[2]
    saved = json.loads((tmp_path / "demo.json").read_text("utf-8"))
    assert saved == json.loads(json.dumps(result))
    for stream, share in saved["attention"]["am_fbp"].items():
        there = json.loads((tmp_path / "am_fbp/evaluation-test/attention.json").read_text("utf-8"))
        assert share == there[stream]
        assert f"{share['ratio']:.2f} times its share" in shown.rpartition("$ avemo")[2]
    for picture in result["pictures"]:
        signature = {".png": b"\x89PNG", ".svg": b"<svg "}[Path(picture).suffix]
        assert Path(picture).read_bytes().startswith(signature)
    weights = (tmp_path / "am_fbp" / "best.safetensors").read_bytes()
    again = road()  # skips what is done
    assert (tmp_path / "am_fbp" / "best.safetensors").read_bytes() == weights
    assert again["scores"] == result["scores"]


def test_one_test_clip_of_each_class(tmp_path: Path) -> None:
    rows = ["path,label,speaker,split", "1,b,x,train", "2,b,y,test", "3,a,y,test", "4,b,y,test"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    assert _one_of_each_class(tmp_path / "manifest.csv") == [tmp_path / "3", tmp_path / "2"]


def test_systems_are_compared_clip_by_clip(tmp_path: Path) -> None:
    right = {"ours": [1, 1, 1, 1, 1, 1, 0, 0], "theirs": [0, 0, 0, 0, 0, 1, 1, 0]}
    for name, hits in right.items():
        order = list(enumerate(hits))
        clips = [
            Prediction(str(i), "", 0, [float(hit), float(not hit)])
            for i, hit in (order if name == "ours" else reversed(order))
        ]
        write_predictions(tmp_path / name / "evaluation-test", ("a", "b"), clips)
    compared = _compare_systems(tmp_path / "ours", tmp_path / "theirs")
    assert compared["only_am_fbp"] == 5
    assert compared["only_other"] == 1
    assert compared["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)


def test_quartiles_by_hand() -> None:
    assert Quartiles.of([5, 1, 3, 2, 4]) == Quartiles(2, 3, 4)


def test_a_side_against_itself_does_not_differ(tmp_path: Path) -> None:
    """The same operators on both sides: equal losses to the bit, whichever goes first."""
    config = TrainConfig(DataConfig(write_cache(tmp_path), batch_size=5), tiny_config(dropout=0.3))
    result = compare_steps(config, steps=12, backend="reference")
    assert result.loss_difference == result.operator_difference == 0
    assert 0 < result.rounding_difference < 1
    assert result.steps == 12
    assert result.first_loss != result.last_loss
    assert result.speedup.lower <= result.speedup.median <= result.speedup.upper
    with pytest.raises(ValueError, match="more than 5, got 5"):
        compare_steps(config, steps=5)


def test_the_machine_is_described() -> None:
    import torch

    machine = demo_module._machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["processor"]
