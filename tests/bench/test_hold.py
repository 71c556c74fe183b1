"""Everything that computes can be held to an instruction set, and says so itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import hold, machine
from bench.__main__ import main

BEST = torch.ops.fbp_native.cpu_isas().split(",")[0]
NEEDS_MORE = pytest.mark.skipif(BEST == "avx2", reason="this processor has nothing beyond AVX2")


def inside(code: str, **environment: str) -> str:
    """What a process prints."""
    command = [sys.executable, "-c", code]
    given = os.environ | environment
    return subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout


@NEEDS_MORE
def test_a_command_runs_where_all_libraries_are_held(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["goals", "power_normalize clip forward / eager", "--seconds", "0.01"]
    assert main([*command, "--hold", "avx2", "--out", str(tmp_path)]) == 0
    assert "power_normalize clip forward" in capfd.readouterr().out
    (written,) = tmp_path.glob("goals-*-avx2-held-*.json")
    found = json.loads(written.read_text())["machine"]
    assert found["instruction_set"] == "avx2"
    said = dict(part.split(": ") for part in found["held"].split("; "))
    assert (said["kernels"], said["PyTorch"], said["oneDNN"]) == ("avx2", "AVX2", "Intel AVX2")
    assert said["torch.compile"] == "avx2"
    assert "(Intel(R) AVX2)" in said["MKL"] or said["MKL"] == "Intel(R) Architecture processors"


@NEEDS_MORE
def test_a_library_that_is_not_held_is_found_out() -> None:
    """The kernels' own switch alone holds nothing else, and gives no result the name of a machine that is held."""
    code = (
        "from bench import hold, machine\n"
        "try:\n    hold.require('avx2')\nexcept ValueError as error:\n    print(error)\n"
        "print(machine.describe('cpu')['device'])"
    )
    said, name = inside(code, FBP_CPU_ISA="avx2").splitlines()
    assert said.startswith("not held to avx2: ")
    assert "PyTorch says 'AVX512', expected 'AVX2'" in said
    assert "oneDNN says" in said
    assert "kernels says" not in said
    assert name.endswith("-kernels-avx2")


def test_what_is_not_held_says_nothing_of_it() -> None:
    found = machine.describe("cpu")
    assert (hold.lowered(), found["held"]) == ("", "")
    assert not found["device"].endswith("held")


def test_every_library_has_a_switch_and_says_what_it_does() -> None:
    for name in hold.SETTINGS:
        assert hold._SAID[name].keys() == hold.reports().keys()
    assert all(hold.reports().values())
