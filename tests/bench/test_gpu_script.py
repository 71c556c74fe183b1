"""The script for a GPU machine: what it does where there is none, and when its steps fail."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def _script(
    *arguments: str, checkout: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "bench/gpu.sh", *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=600,
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


STEPS = [
    "machine",
    "build",
    "warm",
    "parity",
    "goals (small)",
    "goals",
    "rest",
    "resources",
    "profile of an operator",
]
GPU_ALONE = ["memcheck", "racecheck", "synccheck", "tuning"]


def _tools(folder: Path, body: str) -> dict[str, str]:
    """A folder of programs that stand in for Python and the tools of the build, and an environment that has them."""
    for name in ("python", "cmake", "ninja"):
        tool = folder / name
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    return {"PYTHON": str(folder / "python"), "PATH": f"{folder}:{os.environ['PATH']}"}


def _checkout(folder: Path) -> Path:
    """The script and what it builds, where it may write; a copy of what the tests do not run from."""
    checkout = folder / "checkout"
    for name in ("bench", "kernels/csrc", "kernels/cmake"):
        left = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(ROOT / name, checkout / name, ignore=left)
    (checkout / "kernels/fbp_kernels").mkdir()
    for name in ("CMakeLists.txt", "kernels/sources.py"):
        shutil.copy(ROOT / name, checkout / name)
    return checkout


def _summary(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = done.stdout[done.stdout.index("== dry,") :].splitlines()[1:]
    found = (line for line in lines if line[26:] and not line.startswith(("total", "-", "d")))
    return {line[:26].rstrip(): line[26:] for line in found}


def test_failing_steps_do_not_stop_the_next_and_are_listed_last(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = _script("--dry", OUT=str(out), **_tools(tmp_path, "exit 7"))
    assert done.returncode == 1
    summary = _summary(done)
    for name in STEPS:
        assert summary[name].startswith("FAILED with status 7"), (name, summary)
    for name in GPU_ALONE:
        assert summary[name] == "left out: it needs a GPU"
    assert (out / "gpu.log").read_text().count("FAILED") == len(STEPS)
    assert len((out / "steps").read_text().splitlines()) == 1  # nothing is done


def test_no_step_begins_when_the_time_is_up(tmp_path: Path) -> None:
    done = _script("--dry", OUT=str(tmp_path), GPU_SECONDS="5", **_tools(tmp_path, "exit 0"))
    assert done.returncode == 1
    late = [name for name, verdict in _summary(done).items() if "no time was left" in verdict]
    assert late == [name for name in STEPS if name != "warm"]


def test_what_is_done_is_left_out_by_the_next_call(tmp_path: Path) -> None:
    """A rehearsal begins anew; so this one is of a GPU that is made up."""
    out, checkout = tmp_path / "out", _checkout(tmp_path)
    body = (
        'case "$*" in\n'
        '*"parity"*) test -e "$OUT/again" ;;\n'  # fails in the first call
        '*"machine.describe"*) echo made up ;;\n'
        "*) exit 0 ;;\nesac"
    )
    tools = _tools(tmp_path, body) | {"OUT": str(out)}
    for name in ("compute-sanitizer", "ncu", "nvidia-smi"):
        (tmp_path / name).symlink_to(tmp_path / "python")
    first = _script(checkout=checkout, **tools)
    assert first.returncode == 1
    assert "parity                    FAILED with status 1" in first.stdout
    done = (out / "steps").read_text().splitlines()
    assert done[0] == "made up"
    assert {"machine", "warm", "goals", "rest", "counters"} <= set(done)
    assert not {"parity", "memcheck"} & set(done)
    (out / "again").touch()
    second = _script(checkout=checkout, **tools)
    assert second.returncode == 0, second.stdout
    for name in ("goals", "rest", "counters"):
        assert f"{name:<26}done by an earlier call" in second.stdout
    for name in ("parity", "parity (large)", "memcheck"):
        assert f"\n{name:<26}ran, " in second.stdout
    named = _script("goals", checkout=checkout, **tools)
    assert "goals                     ran, " in named.stdout
    assert "parity" not in named.stdout.split("== gpu,")[1]
    assert len(list(out.iterdir())) <= 8
    assert (out / "gpu.log").read_text().count("a call of") == 3
    other = _script(
        checkout=checkout, **(tools | _tools(tmp_path, body.replace("made up", "another commit")))
    )
    assert other.returncode == 2
    assert "there: made up" in other.stderr
    assert "here:  another commit" in other.stderr


def test_nothing_is_timed_before_the_peers_are_compiled(tmp_path: Path) -> None:
    """And what takes too long there is cut off."""
    body = (
        'case "$*" in\n'
        '*"bench warm"*) sleep 3; echo warm >>"$OUT/order" ;;\n'
        '*"bench parity"*) echo parity >>"$OUT/order" ;;\n'
        '*"bench run"*) echo run >>"$OUT/order" ;;\nesac'
    )
    tools = _tools(tmp_path, body) | {"OUT": str(tmp_path / "out")}
    done = _script("--dry", "warm", "parity", "goals", **tools)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "out" / "order").read_text().split() == ["parity", "warm", "run", "run"]


@pytest.mark.parametrize(
    ("stamp", "missing", "built"),
    [("right", "", False), ("right", "it does not load", True), ("old", "", True), ("", "", True)],
)
def test_a_prebuilt_extension_is_taken_where_it_is_of_these_sources_and_loads(
    stamp: str, missing: str, built: bool, tmp_path: Path
) -> None:
    checkout = _checkout(tmp_path)
    prebuilt = tmp_path / "prebuilt"
    prebuilt.mkdir()
    (prebuilt / "_native.so").touch()
    number = subprocess.check_output(
        [sys.executable, "kernels/sources.py"], cwd=checkout, text=True
    )
    if stamp:
        (prebuilt / "_native.sources").write_text(number if stamp == "right" else "0  -\n")
    body = (
        'case "$*" in\n'
        f"*'native.CUDA_MISSING or'*) echo '{missing}' ;;\n"
        f"*kernels/sources.py*) exec {sys.executable} kernels/sources.py ;;\n"
        "*get_device_capability*) echo 90a-real ;;\nesac"
    )
    tools = _tools(tmp_path, body)
    given = {"OUT": str(tmp_path / "out"), "FBP_PREBUILT": str(prebuilt)}
    done = _script("build", checkout=checkout, **(tools | given))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("taken as it is" in done.stdout) is not built
    assert ("the extension is built: of the one that is there, " in done.stdout) is built
    kept = (checkout / "kernels/fbp_kernels/_native.sources").read_text()
    assert kept == number


def test_only_the_steps_named_are_run(tmp_path: Path) -> None:
    done = _script("--dry", "machine", "tuning", OUT=str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(_summary(done))[:2] == ["machine", "tuning"]
    assert not any(step in done.stdout for step in ("parity", "goals", "profile"))


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
    missing.add("transformers")  # which torchmetrics imports where it is there
    script = (ROOT / "bench/gpu.sh").read_text()
    modules = sorted(set(re.findall(r"-m (\w+(?:\.\w+)*)", script)))
    assert {
        "bench",
        "fbp_kernels.tools.tune",
        "fbp_kernels.tools.resources",
        "profiling.ncu",
    } <= set(modules)
    started = [f"{m}.__main__" if m in ("bench", "fbp_kernels") else m for m in modules]
    # What their commands import when they run.
    started += [
        "bench.parity",
        "bench.warm",
        "bench.merge",
        "bench.conftest",
        "fbp_kernels.doctor",
        "fbp_kernels.triton.ahead",
    ]
    started += [f"bench.{path.stem}" for path in (ROOT / "bench").glob("test_*.py")]
    code = IMPORTS.format(missing=missing, modules=started)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
