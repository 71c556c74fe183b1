"""Says what runs where, and why the rest does not."""

import os
import platform

import torch

from . import backends, native


def report() -> str:
    """A table of operators and backends for every kind of device that is there, with reasons."""
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU capability "
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"C++ extension: {native.MISSING or 'loaded'}",
        f"{backends.ENVIRONMENT}: {os.environ.get(backends.ENVIRONMENT) or 'not set'}",
    ]
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        lines += ["", f"{device} ({name})"]
        lines += [_row(status) for status in backends.available_backends(device)]
    return "\n".join(lines)


def _row(status: backends.BackendStatus) -> str:
    verdict = "yes" if status.available else f"no: {status.reason}"
    return f"  {status.operator:<20} {status.backend:<10} {verdict}"
