"""Says what runs where, and why the rest does not."""

import importlib.util
import platform

import torch

from . import backends, choice, native, triton
from .triton import interpreted, tuning


def report() -> str:
    """A table of operators and backends for every kind of device that is there, with reasons."""
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU capability "
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"C++ extension: {native.MISSING or 'loaded'}",
        f"CUDA kernels: {native.CUDA_MISSING or 'loaded'}",
        f"Triton: {_triton()}",
        f"{backends.ENVIRONMENT}: {backends.asked_for() or 'not set'}",
    ]
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        lines += ["", f"{device} ({name})"]
        if device == "cuda":
            lines.append(f"  Triton kernels: {_configurations()}")
        lines += _choice(device, name)
        lines += [_row(status) for status in backends.available_backends(device)]
    return "\n".join(lines)


def _triton() -> str:
    """Its version, and what runs its kernels; or why there is none."""
    if importlib.util.find_spec("triton") is None:
        return "not installed; GPU builds of PyTorch for Linux bring it"
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"cannot be imported: {error}"
    if interpreted():
        return f"{version}, interpreted (TRITON_INTERPRET=1): to check kernels, not to be fast"
    return f"{version}, compiled for GPUs"


def _configurations() -> str:
    """Where the current GPU's configurations come from."""
    if reason := triton.why_not("cuda"):
        return reason
    from .triton.launch import architecture

    serving = architecture(torch.device("cuda"))
    major, minor = torch.cuda.get_device_capability()
    searched = "searched for at first calls" if tuning.autotuning() else "not searched for"
    return (
        f"capability {major}.{minor} has the configurations of {serving},"
        f" {searched} ({tuning.ENVIRONMENT})"
    )


def _choice(device: str, name: str) -> list[str]:
    """What the choice of backends was measured on; the rows where the reference won, and on a GPU all of them."""
    target = backends.TARGETS[device]
    rows = [row for row in choice.measured() if row.target == target]
    if not rows:
        return [f"  the choice of backends: nothing was measured with {target}"] if target else []
    sources = sorted({row.source for row in rows})
    here = device == "cpu" or any(name in source for source in sources)
    elsewhere = "" if here else f"; of a {name} nothing was measured"
    what = f"{len(rows)} measurements" + f" with {target}" * (device == "cpu")
    shown = [row for row in rows if device == "cuda" or row.loses]
    return [
        f"  the choice of backends: {what}, by {'; '.join(sources)}{elsewhere}",
        *(f"    {row}" for row in shown),
    ]


def _row(status: backends.BackendStatus) -> str:
    verdict = "yes" if status.available else f"no: {status.reason}"
    first = f", first {status.first}" * bool(status.available and status.first)
    return f"  {status.operator:<20} {status.backend:<10} {verdict}{first}"
