"""Convolution, of which the gradient of the weights is ours."""

import torch
from torch.nn import functional as F

import fbp_kernels

from .call import Call, Draw


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`conv2d` of a channels-last map; sizes N, C, H, W, and O channels by kernels of side k, every S positions."""
    x = draw(*(sizes[size] for size in "NCHW")).to(memory_format=torch.channels_last)
    side, stride = sizes["k"], sizes["S"]
    weight = draw(sizes["O"], sizes["C"], side, side, scale=(sizes["C"] * side**2) ** -0.5)
    weight = weight.to(memory_format=torch.channels_last)
    padding = side // 2
    positions = sizes["N"] * -(-sizes["H"] // stride) * -(-sizes["W"] // stride)
    return Call(
        "conv2d",
        sizes,
        lambda x, weight, backend: fbp_kernels.conv2d(
            x, weight, stride=stride, padding=padding, backend=backend
        ),
        lambda x, weight: F.conv2d(x, weight, stride=stride, padding=padding),
        (x, weight),
        2.0 * positions * weight.numel(),
    )
