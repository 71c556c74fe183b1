"""What timings depend on."""

import importlib
import importlib.util
import platform
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from avemo.machine import processor
from fbp_kernels import native

_ROOT = Path(__file__).parents[1]


def describe(device: str) -> dict[str, Any]:
    """The machine, the software and the commit, as `bench.records.Run` has them."""
    return {
        "device": slug(_gpu() if device == "cuda" else processor()),
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction_set": "" if native.MISSING else torch.ops.fbp_native.cpu_isa(),
        "gpu": _gpu(),
        "driver": _driver(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit(),
    }


def require_same(there: dict[str, Any], here: dict[str, Any], what: str) -> None:
    """Makes sure that two runs are of one machine, software and commit, on whatever day.

    Raises:
        ValueError: they are not; the message begins with `what` and says how.
    """
    other = [
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in here
        if name != "date" and there.get(name) != here[name]
    ]
    if other:
        raise ValueError(f"{what}: {'; '.join(other)}")


def result_name(device: str, kind: str = "bench") -> str:
    """Name of a run's file among the committed results; of `python -m bench goals`, where `kind` is "goals"."""
    machine = describe(device)
    return f"{kind}-{machine['device']}-{machine['date']}.json"


def slug(name: str) -> str:
    """A device's name as part of a file's name."""
    words = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it; "" outside a checkout."""
    revision = _output("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return revision + ("+" if revision and changed else "")


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _driver() -> str:
    if not torch.cuda.is_available():
        return ""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return ""
    return str(importlib.import_module(package).__version__)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
