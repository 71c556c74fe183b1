"""Memory layouts of (N, C, *) that the kernels over channels read: contiguous, or channels last."""

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def readable(x: Tensor) -> Tensor:
    """x itself where a kernel can read it, else a contiguous copy."""
    if x.is_contiguous():
        return x
    channels_last = _CHANNELS_LAST.get(x.dim())
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return x
    return x.contiguous()
