"""Local response normalisation with the ReLU before it."""

import torch
from torch import Tensor
from torch.nn import functional as F

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw, Peer

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
        {"plain": lambda tensors: Peer(plain, tensors, lambda gradients: gradients)},
    )


def plain(x: Tensor) -> Tensor:
    """The fastest of the expressions in plain PyTorch that were tried: shifted sums, roots in place of a power."""
    half = WINDOW // 2
    y = x.relu()
    squares = F.pad(y * y, (0, 0) * (x.dim() - 2) + (half, half))
    total = squares[:, : x.shape[1]]
    for shift in range(1, WINDOW):
        total = total + squares[:, shift : shift + x.shape[1]]
    root = torch.rsqrt(total * (1e-4 / WINDOW) + 1.0)
    return y * (root * root.sqrt())
