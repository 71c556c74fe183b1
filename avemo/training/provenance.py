"""How a run was made: what it takes to make it again, beside its configuration."""

import platform
import subprocess
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from avemo.machine import processor

TIME = "%Y-%m-%dT%H:%M:%S%z"
_PACKAGES = ("avemo", "torch", "lightning", "numpy", "safetensors")


def provenance(command: list[str]) -> dict[str, Any]:
    """Versions, commit, machine and command of a start, as JSON can hold them.

    Args:
        command: its words.
    """
    import torch

    return {
        "command": command,
        "started": time.strftime(TIME),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            **asdict(processor()),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _commit() -> str | None:
    """The commit of the sources, with a mark where files differ from it; None where they are of no repository."""
    folder = Path(__file__).parents[1]
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", "cli.py"]
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
