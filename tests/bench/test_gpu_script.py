"""The script for a GPU machine: what it does where there is none, and when its steps fail."""

import os
import re
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
    assert "usage: bench/gpu.sh [--dry] [STEP ...], steps: machine build" in done.stderr


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
    steps = ["machine", "build", "resources", "parity", "timings of the goals"]
    steps += ["timings of the rest", "profile of an operator"]
    for step in steps:
        line = next(line for line in summary.splitlines() if line.startswith(step))
        assert "FAILED with status 7" in line, line
    for step in ("sanitizer", "tuning"):
        assert f"{step:<26}left out: it needs a GPU" in summary
    assert (out / "gpu.log").read_text().count("FAILED") == len(steps)


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    done = _script("--dry", OUT=str(tmp_path), PYTHON=sys.executable, GPU_SECONDS="5")
    assert done.returncode == 1
    assert done.stdout.count("FAILED: no time was left for it") == 7


def test_only_the_steps_named_are_run(tmp_path: Path) -> None:
    done = _script("--dry", "machine", "tuning", OUT=str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout[done.stdout.index("== dry,") :].splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["machine", "tuning"]
    assert not any(step in done.stdout for step in ("parity", "timings", "profile"))


IMPORTS = """
import importlib, importlib.metadata, sys
there = importlib.metadata.distribution
def distribution(name):
    if name in {missing}:
        raise importlib.metadata.PackageNotFoundError(name)
    return there(name)
importlib.metadata.distribution = distribution
for name in {missing}:
    sys.modules[name] = None  # cannot be imported, and looks as if it were not there
for module in {modules}:
    importlib.import_module(module)
"""


def test_what_it_starts_imports_only_what_a_gpu_machine_has() -> None:
    missing = {"librosa", "av", "jsonargparse", "safetensors", "tensorboard", "nvtx"}
    script = (ROOT / "bench/gpu.sh").read_text()
    modules = sorted(set(re.findall(r"-m (\w+(?:\.\w+)?)", script)))
    assert {"bench", "fbp_kernels.tune", "fbp_kernels.resources", "profiling.ncu"} <= set(modules)
    started = [f"{m}.__main__" if m in ("bench", "fbp_kernels") else m for m in modules]
    # What their commands import when they run.
    started += ["bench.parity", "bench.conftest", "fbp_kernels.doctor", "fbp_kernels.triton.ahead"]
    started += [f"bench.{path.stem}" for path in (ROOT / "bench").glob("test_*.py")]
    code = IMPORTS.format(missing=missing, modules=started)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
