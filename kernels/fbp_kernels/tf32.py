"""Whether float32 products on a GPU may round to TF32: the one place that reads or sets what PyTorch has for it.

PyTorch has a new setting, `fp32_precision` (of these products; where that is "none", of CUDA, then of everything), and
an old one, `allow_tf32` or `set_float32_matmul_precision`. cuBLAS goes by the new one, reading it gives what holds once
all three levels are looked through, and setting the old one sets it too. Reading the old one raises where it differs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def allowed() -> bool:
    """Whether PyTorch's own products may, by whichever setting."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


@contextmanager
def products(allow: bool) -> Iterator[None]:
    """Within it, float32 products may round to TF32, or may not."""
    matmul = torch.backends.cuda.matmul
    old, new = _old(), _new()
    # By the old setting, which sets both: torch.compile still reads it where it searches for the fastest kernel.
    matmul.allow_tf32 = allow
    try:
        yield
    finally:
        if old == "medium":
            cpu = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
            torch.set_float32_matmul_precision(old)  # sets that one, too
            torch.backends.mkldnn.matmul.fp32_precision = cpu  # type: ignore[attr-defined]
        else:
            matmul.allow_tf32 = old == "high"
        matmul.fp32_precision = new


def _old() -> str:
    """The old setting: "highest", "high" or "medium"; where PyTorch refuses to read it, what follows from that."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the new setting differs, of these products or of those on the CPU
        pass
    try:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
    except RuntimeError:
        return "highest" if allowed() else "high"


def _new() -> str:
    """The new setting of the products themselves: "none" where that gives what holds now."""
    matmul = torch.backends.cuda.matmul
    now = matmul.fp32_precision
    matmul.fp32_precision = "none"
    inherited = matmul.fp32_precision
    matmul.fp32_precision = now
    return "none" if inherited == now else now
