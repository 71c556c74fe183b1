"""The controls of the synthetic corpus: what is switched off, and what then counts as being ahead."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from avemo import fairness as fairness_module
from avemo.evaluation.compare import compare_systems
from avemo.evaluation.predictions import Prediction, Predictions
from avemo.fairness import CORPORA, SYSTEMS, _verdict, fairness, tables
from avemo.systems import systems


def answers(right: int, of: int = 40) -> list[Predictions]:
    clips = [
        Prediction(f"{i}.mp4", "", 0, [1.0, 0.0] if i < right else [0.0, 1.0]) for i in range(of)
    ]
    return [Predictions(("a", "b"), clips)]


@pytest.mark.parametrize(
    ("baseline", "other", "passed"),
    [(20, 36, False), (36, 20, True), (30, 31, True), (30, 30, True), (30, 35, False)],
)
def test_only_being_significantly_ahead_fails(baseline: int, other: int, passed: bool) -> None:
    """By the bootstrap: five clips to none are too few for McNemar's test, with a p-value of 2 / 2^5."""
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
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_made(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fairness(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("there", "difference"),
    [
        ({"clips": 480}, "clips is 480, asked for 12"),
        ({"config": "full"}, "config is 'full', asked for 'small'"),
        ({"epochs": 3}, "epochs is 3, asked for None"),
    ],
)
def test_trainings_of_another_kind_are_not_taken_for_these(
    there: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    plan = {"clips": 12, "config": "small", "epochs": None} | there
    (tmp_path / "plan.json").write_text(json.dumps(plan), "utf-8")
    with pytest.raises(FileExistsError, match=difference):
        fairness(out=tmp_path, clips=12)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def corpus_found(name: str, options: tuple[str, ...], control: str | None, right: dict[str, int]):  # type: ignore[no-untyped-def]
    found = compare_systems({system: answers(n) for system, n in right.items()})
    return {"name": name, "options": options, "control": _verdict(found, control)} | asdict(found)


def test_the_tables_have_what_was_found() -> None:
    """40 clips, so that each is 2.5 points; one system of equals has no interval and p-values of 1."""
    result = {
        "corpora": [
            corpus_found("as it is", (), None, {"g_fbp": 20, "m_fbp": 40}),
            corpus_found(
                "no trunks", ("--expression", "whole"), "m_fbp", {"g_fbp": 20, "m_fbp": 40}
            ),
            corpus_found("clean", ("--noise", "0"), "m_fbp", {"g_fbp": 40, "m_fbp": 39}),
        ]
    }
    lines = tables(result)
    assert "| system | as it is | no trunks (`--expression whole`) | clean (`--noise 0`) |" in lines
    (row,) = (line for line in lines if line.startswith("| `g_fbp` |"))
    first, again, last = row.removeprefix("| `g_fbp` | ").removesuffix(" |").split(" | ")
    assert first == again
    assert first.startswith("50.0% (3")
    assert last == "100.0% (100.0% to 100.0%)"
    accuracy, gain = (line for line in lines if line.startswith("| `m_fbp` |"))
    assert accuracy.startswith("| `m_fbp` | 100.0% (100.0% to 100.0%) | 100.0% ")
    mcnemar = f"{2 / 2**20:.2g}"  # twenty clips to none
    assert gain.split(" | ")[1].startswith("+50.0 (p ")
    assert gain.split(" | ")[1].endswith(f", {mcnemar})")
    assert gain.split(" | ")[3].startswith("-2.5 (p ")
    assert gain.split(" | ")[3].endswith(", 1) |")
    failed, held = (line for line in lines if line.startswith("- "))
    assert failed.startswith(
        "- no trunks: `m_fbp` must not be ahead of `g_fbp`, and has +50.0 points (p "
    )
    assert failed.endswith(": **the control fails.**")
    assert held.startswith("- clean: `m_fbp` must not be ahead of `g_fbp`, and has -2.5 points (p ")
    assert held.endswith(": the control holds.")


@pytest.mark.slow
def test_a_control_from_corpus_to_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = "both streams clean"
    monkeypatch.setattr(fairness_module, "CORPORA", {clean: CORPORA[clean]})
    options: dict[str, Any] = {"clips": 12, "seeds": 1, "epochs": 1}
    options["systems"] = ("g_fbp", "ag_fbp")
    result = fairness(out=tmp_path, jobs=2, **options)
    folder = tmp_path / "both-streams-clean"
    assert json.loads((folder / "corpus" / "parameters.json").read_text())["noise"] == 0
    assert json.loads((tmp_path / "fairness.json").read_text()) == json.loads(json.dumps(result))
    (corpus,) = result["corpora"]
    assert corpus["control"]["system"] == "ag_fbp"
    assert [s["name"] for s in corpus["systems"]] == ["g_fbp", "ag_fbp"]
    with (folder / "systems.csv").open(newline="", encoding="utf-8") as file:
        written = {row["system"]: float(row["accuracy"]) for row in csv.DictReader(file)}
    assert written == {s["name"]: s["measures"]["accuracy"][0] for s in corpus["systems"]}
    page = (tmp_path / "README.md").read_text("utf-8")
    assert "12 clips in each corpus, 1 seed(s), epochs: 1." in page
    assert f"| `ag_fbp` | {written['ag_fbp']:.1%} (" in page
    assert "- both streams clean: `ag_fbp` must not be ahead of `g_fbp`" in page
    runs = [folder / "runs" / name / "seed0" for name in options["systems"]]
    assert all("best of 1 epochs" in run.with_suffix(".log").read_text("utf-8") for run in runs)
    weights = (runs[1] / "best.safetensors").stat().st_mtime_ns
    assert fairness(out=tmp_path, **options) == result
    assert (runs[1] / "best.safetensors").stat().st_mtime_ns == weights
