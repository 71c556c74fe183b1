"""Commands of the packaging tests."""

import os
import subprocess
from pathlib import Path


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; fails with all that it says where it fails."""
    done = subprocess.run(
        [os.fspath(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
