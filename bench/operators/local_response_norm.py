"""Local response normalisation with the ReLU before it."""

import torch

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw

WINDOW = 5


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`local_response_norm` of a channels-last map; sizes N, C, H, W."""
    x = draw(*(sizes[size] for size in "NCHW")).to(memory_format=torch.channels_last)
    copy = draw.empty(*x.shape).to(memory_format=torch.channels_last)
    return Call(
        "local_response_norm",
        sizes,
        lambda x, backend: fbp_kernels.local_response_norm(x, WINDOW, relu=True, backend=backend),
        lambda x: reference.local_response_norm(x, WINDOW, relu=True),
        (x,),
        # ReLU, square, the window's sum, scale and offset, power, quotient.
        x.numel() * (WINDOW + 5.0),
        {"copy": lambda: (copy.copy_(x),)},
    )
