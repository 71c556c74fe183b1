"""Which kernels run a model's operators: decided here, for training and inference alike."""

from itertools import groupby
from typing import Literal

from torch import nn

import fbp_kernels

BackendName = Literal["reference", "native", "triton"]


def use_backend(model: nn.Module, backend: BackendName | None = None) -> str:
    """Switches a model's operators to a backend, in place.

    Args:
        model: on the device that it will run on.
        backend: by name, or None for the best there is for each operator.

    Returns:
        One line that says which operator runs where.

    Raises:
        ValueError: the backend asked for by name can run none of the operators here.
    """
    try:
        report = fbp_kernels.accelerate(model, backend, channels_last=True)
    except RuntimeError as error:
        raise ValueError(f"backend {backend!r} cannot be used: {error}") from error
    swapped = sorted(report, key=lambda r: (r.backend, r.operator))
    parts = [
        f"{name}: {', '.join(sorted({r.operator for r in group}))}"
        for name, group in groupby(swapped, key=lambda r: r.backend)
    ]
    slower = _slower(model, {r.operator for r in swapped if r.backend != "reference"})
    if slower and not backend:
        parts.append(f"plain PyTorch where nothing faster was measured: {', '.join(slower)}")
    left = any(r.reason for r in swapped) or (slower and not backend)
    return "; ".join(parts) + (" (why: `python -m fbp_kernels doctor`)" if left else "")


def _slower(model: nn.Module, operators: set[str]) -> list[str]:
    """For which calls of operators the reference comes first although there is a kernel."""
    device = next((p.device for p in model.parameters()), "cpu")
    return [
        f"{status.operator} {status.first}"
        for status in fbp_kernels.available_backends(device)
        if status.operator in operators and status.backend == "reference" and status.first
    ]
