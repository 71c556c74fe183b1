"""The script for a GPU machine: what it does where there is none, and when its steps fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "bench/gpu.sh", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    done = _script("--fast", OUT=str(tmp_path))
    assert done.returncode == 2
    assert "usage: bench/gpu.sh [--dry]" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_runs_nothing(tmp_path: Path) -> None:
    done = _script(OUT=str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 1
    assert "PyTorch finds no GPU here" in done.stderr
    assert "==" not in done.stdout


def test_failing_steps_do_not_stop_the_next_and_are_listed_last(tmp_path: Path) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 7\n")
    failing.chmod(0o755)
    out = tmp_path / "out"
    # Cheap steps that fail as well: neither tool of the build does anything.
    for tool in ("cmake", "ninja"):
        (tmp_path / tool).symlink_to(failing)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = _script("--dry", OUT=str(out), PYTHON=str(failing), PATH=path)
    assert done.returncode == 1
    summary = done.stdout[done.stdout.index("== dry,") :]
    for step in ("machine", "build", "parity", "timings", "profile of an operator"):
        line = next(line for line in summary.splitlines() if line.startswith(step))
        assert "FAILED with status 7" in line, line
    assert "sanitizer               left out: it needs a GPU" in summary
    assert (out / "gpu.log").read_text().count("FAILED") == 5


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    done = _script("--dry", OUT=str(tmp_path), PYTHON=sys.executable, GPU_SECONDS="5")
    assert done.returncode == 1
    assert done.stdout.count("FAILED: no time was left for it") == 5
