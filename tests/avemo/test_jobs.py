"""Commands in processes of their own: what they say, how they fail, and that none is left or cut short."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from avemo.jobs import Job, run_at_once
from avemo.machine import processors
from tests.avemo.test_paper import SIZES
from tests.avemo.tiny_cache import write_cache

EPOCHS = 30


def test_the_failure_of_one_is_told_when_the_others_are_done(tmp_path: Path) -> None:
    words = [("systems",), ("nonesuch",), ("systems",), ("systems",)]
    jobs = [Job(w, tmp_path / "logs" / f"{n}.log") for n, w in enumerate(words)]
    ended: list[Job] = []
    with pytest.raises(ChildProcessError, match=r"^1 of 4 commands failed") as told:
        run_at_once(jobs, 2, ended.append)
    assert "there is no command 'nonesuch'" in str(told.value)
    assert str(jobs[1].log) in str(told.value)
    assert "there is no command 'nonesuch'" in jobs[1].log.read_text("utf-8")
    assert sorted(job.log.name for job in ended) == ["0.log", "2.log", "3.log"]
    for job in ended:
        assert "am_fbp" in job.log.read_text("utf-8")


def test_what_ends_a_process_ends_all(tmp_path: Path) -> None:
    """Help leaves a command by the exception by which a signal does."""
    jobs = [Job(("systems", "--help"), tmp_path / "0.log")]
    with pytest.raises(ChildProcessError, match=r"one of 1 commands was killed or stopped.*0\.log"):
        run_at_once(jobs, 2, lambda job: None)


def test_nothing_to_do() -> None:
    run_at_once([], 2, lambda job: None)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Trains four systems, two at once."""
    (tmp_path / "tiny.yaml").write_text(SIZES, "utf-8")
    options = ["--cache", write_cache(tmp_path / "cache"), "--out", tmp_path / "paper"]
    options += ["--config", tmp_path / "tiny.yaml", "--epochs", EPOCHS, "--seeds", 1]
    options += ["--tables", "[III]", "--jobs", 2]
    return [sys.executable, "-m", "avemo", "paper", *map(str, options)]


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.01)


def begun(command: list[str], out: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A run of which two trainings have saved something, and its processes."""
    before = {file: file.stat().st_mtime_ns for file in out.rglob("resume.ckpt")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE)

    def saved() -> bool:
        files = [*out.rglob("resume.ckpt")]
        return sum(file.stat().st_mtime_ns != before.get(file) for file in files) >= 2

    until(lambda: process.poll() is not None or saved())
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
def test_signals_are_passed_on_and_nothing_survives(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "paper"
    process, children = begun(command, out)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(children, timeout=20)[1] == []

    runs = [out / "runs" / name / "seed0" for name in ("ag_fbp", "g_fbp")]
    for all_are_told in (False, True):  # as Slurm does; who is told twice saves all the same
        process, children = begun(command, out)
        for each in (*(children if all_are_told else ()), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM, said
        assert psutil.wait_procs(children, timeout=20)[1] == []
        assert not [*out.rglob("trained")]
        assert sorted(out.rglob("seed0.log")) == [run.with_suffix(".log") for run in runs]
        for run in runs:
            told = run.with_suffix(".log").read_text("utf-8")
            assert told.count("stopped by SIGTERM, and saved; go on by") == 1 + all_are_told

    said = subprocess.run(command, capture_output=True, check=True).stdout
    assert b"(4 of 4, " in said
    assert (out / "table-III.csv").is_file()
    share = max(1, processors() // 2)
    start = json.loads((runs[0] / "run.json").read_text())["starts"][-1]
    assert start["machine"]["threads"] == share
    straight = ["train", "--config", "ag_fbp", "--config", tmp_path / "tiny.yaml"]
    straight += ["--data.cache", tmp_path / "cache", "--out", tmp_path / "unbroken"]
    straight += ["--trainer.epochs", EPOCHS]
    subprocess.run(
        [sys.executable, "-m", "avemo", *map(str, straight)],
        env=os.environ | {"OMP_NUM_THREADS": str(share)},
        check=True,
    )
    files = [folder / "best.safetensors" for folder in (runs[0], tmp_path / "unbroken")]
    assert files[0].read_bytes() == files[1].read_bytes()
