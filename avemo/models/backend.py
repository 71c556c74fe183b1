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
        report = fbp_kernels.accelerate(model, backend)
    except RuntimeError as error:
        raise ValueError(f"backend {backend!r} cannot be used: {error}") from error
    swapped = sorted(report, key=lambda r: (r.backend, r.operator))
    parts = [
        f"{name}: {', '.join(sorted({r.operator for r in group}))}"
        for name, group in groupby(swapped, key=lambda r: r.backend)
    ]
    left = any(r.reason for r in swapped)
    return "; ".join(parts) + (" (why: `python -m fbp_kernels doctor`)" if left else "")
