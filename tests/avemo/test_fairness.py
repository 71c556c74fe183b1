"""The controls of the synthetic corpus: what is switched off, and what then counts as being ahead."""

import json
from pathlib import Path
from typing import Any

import pytest

from avemo import fairness as fairness_module
from avemo.evaluation.compare import compare_systems
from avemo.evaluation.predictions import Prediction, Predictions
from avemo.fairness import CORPORA, SYSTEMS, _verdict, fairness
from avemo.systems import systems


def answers(right: int, of: int = 40) -> list[Predictions]:
    clips = [
        Prediction(f"{i}.mp4", "", 0, [1.0, 0.0] if i < right else [0.0, 1.0]) for i in range(of)
    ]
    return [Predictions(("a", "b"), clips)]


@pytest.mark.parametrize(
    ("baseline", "other", "passed"),
    [(20, 36, False), (36, 20, True), (30, 31, True), (30, 30, True)],
)
def test_only_being_significantly_ahead_fails(baseline: int, other: int, passed: bool) -> None:
    found = compare_systems({"g_fbp": answers(baseline), "m_fbp": answers(other)})
    verdict = _verdict(found, "m_fbp")
    assert verdict is not None
    assert verdict["passed"] is passed
    assert verdict["difference"] == pytest.approx((other - baseline) / 40)
    assert _verdict(found, None) is None
    assert _verdict(found, "ag_fbp") is None


def test_every_control_names_a_system_that_is_trained() -> None:
    assert set(SYSTEMS) <= set(systems())
    assert {control for _, control in CORPORA.values()} == {None, "m_fbp", "ag_fbp"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": ("m_fbp",)}, "must begin with g_fbp, got m_fbp"),
        ({"systems": ()}, "must begin with g_fbp, got none"),
        ({"systems": ("g_fbp", "h_fbp")}, "systems must be of .*, m_fbp, .*; got h_fbp"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_made(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fairness(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_control_from_corpus_to_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = "both streams clean"
    monkeypatch.setattr(fairness_module, "CORPORA", {clean: CORPORA[clean]})
    result = fairness(out=tmp_path, clips=12, seeds=1, systems=("g_fbp", "ag_fbp"), epochs=1)
    folder = tmp_path / "both-streams-clean"
    assert json.loads((folder / "corpus" / "parameters.json").read_text())["noise"] == 0
    assert json.loads((tmp_path / "fairness.json").read_text()) == json.loads(json.dumps(result))
    (corpus,) = result["corpora"]
    assert corpus["control"]["system"] == "ag_fbp"
    assert [s["name"] for s in corpus["systems"]] == ["g_fbp", "ag_fbp"]
    weights = (folder / "runs" / "ag_fbp" / "seed0" / "best.safetensors").stat().st_mtime_ns
    assert (
        fairness(out=tmp_path, clips=12, seeds=1, systems=("g_fbp", "ag_fbp"), epochs=1) == result
    )
    assert (folder / "runs" / "ag_fbp" / "seed0" / "best.safetensors").stat().st_mtime_ns == weights
