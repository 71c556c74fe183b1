"""The paper's tables made again: after a kill, once only, and as the runs say."""

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avemo import cli, models
from avemo import paper as paper_module
from avemo.evaluation.compare import compare
from avemo.jobs import Job
from avemo.models import ModelConfig
from avemo.paper import (
    Plan,
    Trainings,
    _first_alike,
    _left_out,
    _members,
    _validation_accuracies,
    paper,
)
from tests.avemo.tiny_cache import write_cache

EPOCHS = 8
SIZES = """
data: {batch_size: 9}
model:
  audio: {channels: [2, 2, 2, 2, 2], stride: [1, 2], out_features: 4}
  video: {channels: [2, 2], out_features: 4}
  audio_attention: {hidden: 4}
  video_attention: {hidden: 4}
  fusion: {global_features: 4, global_factor: 2, trunk_features: 4, trunk_factor: 2, trunks: 2}
trainer: {accelerator: cpu}
"""


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SIZES, "utf-8")
    return tmp_path / "tiny.yaml"


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(tmp_path: Path, sizes: Path) -> None:
    cache, out = write_cache(tmp_path / "cache"), tmp_path / "paper"
    options = ["--cache", cache, "--out", out, "--config", sizes]
    options += ["--epochs", EPOCHS, "--seeds", 1, "--tables", "[III]"]
    command = [sys.executable, "-m", "avemo", "paper", *map(str, options)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        run = out / "runs" / "g_fbp" / "seed0"
        while not (run / "resume.ckpt").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (run / "resume.ckpt").exists(), (tmp_path / "log").read_text()
    assert not (run / "trained").exists()  # killed within the first training
    unbroken = tmp_path / "unbroken"
    straight = ["--config", "g_fbp", "--config", sizes, "--data.cache", cache, "--out", unbroken]
    straight += ["--trainer.epochs", EPOCHS]
    # Not here, where the choice of backends is another one than in the process that was killed.
    both = [["paper", *map(str, options)], ["train", *map(str, straight)]]
    code = f"from avemo import cli\nfor words in {both}: cli.run(words)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (run / "best.safetensors").read_bytes() == (unbroken / "best.safetensors").read_bytes()
    curve = _validation_accuracies(run / "tensorboard")
    assert curve == _validation_accuracies(unbroken / "tensorboard")
    assert len(curve) == EPOCHS

    rows = table(out / "table-III.csv")
    assert [row["name"] for row in rows] == ["G-FBP", "AG-FBP", "M-FBP", "AM-FBP"]
    assert [float(row["paper_accuracy"]) for row in rows] == [61.10, 62.40, 63.18, 64.17]
    systems = ["g_fbp", "ag_fbp", "m_fbp", "am_fbp"]
    runs = [out / "runs" / name for name in systems]
    result = compare(runs, split="val", out=tmp_path / "compared")
    for row, system in zip(rows, result.systems, strict=True):
        assert row["system"] == system.name
        assert float(row["accuracy"]) == system.measures["accuracy"].value
        pair = result.against_first(system.name)
        assert row["p_mcnemar_holm"] == ("" if pair is None else repr(pair.mcnemar_holm))
    assert [row["epoch"] for row in table(out / "figure-6.csv")] == [*map(str, range(EPOCHS))] * 4
    weights = [r for r in table(out / "figure-7.csv") if r["stream"] == "video"]
    clips = {r["clip"] for r in weights}
    assert len(clips) == 2
    assert sum(float(r["attention"]) for r in weights) == pytest.approx(2, abs=1e-5)
    page = (out / "README.md").read_text("utf-8")
    for name in ("figure-6.png", "figure-7-1.png", "figure-7-2.png", "figure-10.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in page
    assert "| AM-FBP | 64.17% | 0.001 | " in page
    assert not (out / "table-I.csv").exists()

    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert len(times) == 8
    cli.run(["paper", *map(str, options)])
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == times
    with pytest.raises(FileExistsError, match=r"epochs is 8, asked for 9"):
        paper(cache=cache, out=out, config=str(sizes), epochs=9, seeds=1)


def test_networks_of_published_size_are_not_for_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avemo.models.library_of", lambda name: None)
    four = {"four_cnns_lmed_lstm", "four_cnns_blstm"}
    assert _left_out(["V"], quick=False) == {}
    left_out = _left_out(["II", "V"], quick=True)
    assert left_out.keys() == four
    assert all("not for --quick" in reason for reason in left_out.values())


def test_a_system_whose_package_is_missing_is_left_out_and_made_when_it_is_there(
    tmp_path: Path,
    sizes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache, out = write_cache(tmp_path / "cache"), tmp_path / "paper"
    options = {"cache": cache, "out": out, "config": str(sizes), "epochs": 1, "seeds": 1}
    reason = "the EmotiW baseline needs skimage: pip install 'avemo[baseline]'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "skimage", None)
        paper(**options, tables=["II"])
    assert f"avemo: emotiw_baseline is left out: {reason}" in capsys.readouterr().err
    assert f"- `emotiw_baseline`: {reason}" in (out / "README.md").read_text("utf-8")
    made = {row["system"]: row["accuracy"] for row in table(out / "table-II.csv")}
    assert made.pop("emotiw_baseline") == ""
    assert all(made[system] for system in ("audio", "video", "g_fbp"))

    paper(**options, tables=["II"])
    again = {row["system"]: row["accuracy"] for row in table(out / "table-II.csv")}
    assert again.pop("emotiw_baseline")
    assert again == made
    assert "Left out" not in (out / "README.md").read_text("utf-8")


def test_an_ensemble_goes_without_what_its_members_go_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(config: ModelConfig) -> None:
        if config.name == "g_fbp":
            raise ValueError("no package")

    monkeypatch.setattr(models, "check_packages", check)
    without = dict.fromkeys(["g_fbp", "4g_fbp", "2am_fbp_4g_fbp"], "no package")
    assert _left_out(["V"], quick=False) == without


def test_ensembles_are_made_of_runs_that_are_there_anyway() -> None:
    assert _members("2am_fbp_4g_fbp") == {"am_fbp": 2, "g_fbp": 4}
    assert not _members("am_fbp")
    assert _first_alike("audio") == "1d_abfcn"
    assert _first_alike("m_fbp") == "m_fbp"


def test_what_is_missing_is_trained_once_and_some_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[Job], int]] = []

    def run_at_once(jobs: list[Job], count: int, done: Callable[[Job], None]) -> None:
        asked.append((jobs, count))
        for job in jobs:
            job.log.with_suffix("").mkdir(parents=True)
            done(job)

    monkeypatch.setattr(paper_module, "run_at_once", run_at_once)
    work = Trainings(tmp_path, tmp_path / "cache", Plan("", "small", epochs=3, first_seed=5), 1)
    work.train(["g_fbp", "4g_fbp", "audio", "1d_abfcn"], 3)
    ((jobs, count),) = asked
    runs = [f"runs/g_fbp/seed{seed}" for seed in (5, 6, 7, 8)] + ["runs/1d_abfcn/seed5"]
    assert [str(job.log.relative_to(tmp_path)) for job in jobs] == [f"{r}.log" for r in runs]
    assert count == 3
    assert jobs[1].words == (
        *("train", "--config", "g_fbp", "--config", "small"),
        *("--data.cache", str(tmp_path / "cache"), "--seed", "6"),
        *("--out", str(tmp_path / runs[1]), "--resume", "--trainer.epochs", "3"),
    )
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith(f"trained: {tmp_path / runs[1]} (2 of 5, ")
    work.train(["4g_fbp", "am_fbp"], 2)
    assert [job.log.parent.name for job in asked[1][0]] == ["am_fbp"]


@pytest.mark.parametrize(("processors", "jobs"), [(1, 0), (3, 3), (64, 4)])
def test_quick_trains_as_many_at_once_as_there_are_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int, jobs: int
) -> None:
    """One alone is trained in the process itself."""
    asked: list[int] = []

    def run_at_once(*arguments: Any) -> None:
        asked.append(arguments[1])
        raise ChildProcessError

    def run_command(*words: object) -> None:
        raise ChildProcessError

    monkeypatch.setattr(paper_module, "run_at_once", run_at_once)
    monkeypatch.setattr(paper_module, "run_command", run_command)
    monkeypatch.setattr(paper_module, "processors", lambda: processors)
    cache = write_cache(tmp_path / "cache")
    for quick in (False, True):
        with pytest.raises(ChildProcessError):
            paper(cache=cache, out=tmp_path / f"{quick}", tables=["III"], quick=quick)
    assert asked == ([jobs] if jobs else [])


def test_wrong_arguments_are_told(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    with pytest.raises(ValueError, match="tables must be of I, II, III, V, VI; got 'IV'"):
        paper(cache=cache, out=tmp_path / "out", tables=["IV"])
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        paper(cache=cache, out=tmp_path / "out", seeds=0)
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        paper(cache=cache, out=tmp_path / "out", jobs=0)
    with pytest.raises(FileNotFoundError, match="no finished cache"):
        paper(cache=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
