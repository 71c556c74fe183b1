"""A run that is killed at random moments ends with the weights of one that never was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """Once at a moment of each kind; in a process of its own, which has no threads when it forks."""
    command = [sys.executable, "-m", "tests.avemo.training.kills", str(tmp_path), "--kills", "4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "{'step': 1, 'file': 1, 'name': 1, 'log': 1, 'steps': 8" in done.stdout
