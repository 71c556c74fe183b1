"""What the command lines share."""

import argparse
from pathlib import Path

import pytest
import torch

from profiling import commands


def test_a_command_is_told_without_its_folder() -> None:
    assert (
        commands.command("m", ["a b", "--out", "x", "--steps", "2"])
        == "python -m m 'a b' --steps 2"
    )
    assert commands.command("m", ["--out=x", "c"]) == "python -m m c"


def test_results_go_to_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.folder(argparse.Namespace(out=None), "name").resolve().is_dir()
    assert (tmp_path / "runs" / "profiling" / "name").is_dir()
    told = tmp_path / "a" / "b"
    assert commands.folder(argparse.Namespace(out=told), "name") == told
    assert told.is_dir()


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        commands.device_of(argparse.Namespace(threads=1, device="cpu"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_gpus_profiler_is_told_when_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: seen.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: seen.append("stop"))
    commands.watch(lambda: seen.append("step"), 2, torch.device("cuda"))
    assert seen == ["step", "start", "step", "step", "stop"]
    seen.clear()
    commands.watch(lambda: seen.append("step"), 1, torch.device("cpu"))
    assert seen == ["step", "step"]


def test_the_line_for_nsight_systems() -> None:
    line = commands.nsys("profiling.step", ["--config", "small", "--out", "x"])
    assert line.startswith("nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi ")
    assert line.endswith("python -m profiling.step --config small --external")


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.fail("profiling.step", ValueError("first\nsecond")) == 2
    assert capsys.readouterr().err == "python -m profiling.step: error: first\n"
    commands.fail("p", OSError())
    assert "OSError" in capsys.readouterr().err
