"""What timings depend on, and where a result goes that was measured on it."""

import importlib
import importlib.util
import json
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

from avemo import storage
from avemo.machine import processor, slug, slugged
from fbp_kernels import native

from . import hold

_ROOT = Path(__file__).parents[1]


def describe(device: str) -> dict[str, Any]:
    """The machine, the software and the commit, as `bench.records.Run` has them."""
    cpu, lowered = processor(), hold.lowered()
    held = lowered if lowered and hold.is_held(lowered) else ""
    return {
        "device": slug(_gpu()) if device == "cuda" else _name(lowered, held),
        "date": date.today().isoformat(),
        "processor": cpu.name,
        "family": cpu.family,
        "threads": torch.get_num_threads(),
        "instruction_set": "" if native.MISSING else torch.ops.fbp_native.cpu_isa(),
        "held": "; ".join(f"{who}: {what}" for who, what in hold.reports().items()) if held else "",
        "gpu": _gpu(),
        "driver": _driver(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit(),
    }


def _name(lowered: str, held: str) -> str:
    """What results are named after: what differs in speed has another name, and so has what is held."""
    cpu = processor()
    if held:
        return slugged(cpu.family or cpu.name, held.replace("_", "-"), "held")
    return f"{cpu.slug}-kernels-{slug(lowered)}" if lowered else cpu.slug


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


def save_result(out: Path, device: str, kind: str, values: dict[str, Any]) -> None:
    """Writes a result with the machine that it is of, and says where.

    Args:
        out: a JSON file, or a folder, in which it is called as `result_name` has it.
        device: "cpu" or "cuda".
        kind: what was measured.
        values: the rest of the file.
    """
    out = out / result_name(device, kind) if out.is_dir() else out
    storage.write(out, json.dumps({"machine": describe(device)} | values, indent=1) + "\n")
    print(f"written to {out}")


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
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
