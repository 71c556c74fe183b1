"""Batch normalisation with the statistics of the batch, and the ReLU after it."""

import torch

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`batch_norm` of a channels-last map without padding; sizes N, C, H, W."""
    x = draw(*(sizes[size] for size in "NCHW")).to(memory_format=torch.channels_last)
    weight, bias = draw(sizes["C"]), draw(sizes["C"])
    copy = draw.empty(*x.shape).to(memory_format=torch.channels_last)
    return Call(
        "batch_norm",
        sizes,
        lambda x, weight, bias, backend: fbp_kernels.batch_norm(
            x, weight, bias, relu=True, backend=backend
        )[0],
        lambda x, weight, bias: reference.batch_norm(
            x, weight.to(_wide(x)), bias.to(_wide(x)), relu=True
        )[0],
        (x, weight, bias),
        # Mean, offset, square, variance; scale, offset, ReLU.
        7.0 * x.numel(),
        {"copy": lambda: (copy.copy_(x),)},
    )


def _wide(x: torch.Tensor) -> torch.dtype:
    """The dtype that the operator computes its statistics and parameters in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
