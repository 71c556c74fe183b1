"""Per-trunk factorized bilinear pooling."""

import torch
from torch import Tensor

import fbp_kernels
from fbp_kernels import reference

from . import fbp
from .call import Call, Draw, Thunk


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`trunk_fbp` with all trunks alive; sizes B, H, C, D, O, K."""
    B, H, C, D, K = (sizes[size] for size in "BHCDK")
    N = sizes["O"] * K
    a, v = draw(B, H, C), draw(B, H, D)
    p, q = draw(H, C, N, scale=C**-0.5), draw(H, D, N, scale=D**-0.5)
    return Call(
        "trunk_fbp",
        sizes,
        lambda a, v, p, q, **how: fbp_kernels.trunk_fbp(a, v, p, q, K, **how),
        lambda a, v, p, q: reference.trunk_fbp(a, v, p, q, K),
        (a, v, p, q),
        H * fbp.flops(sizes),
        {"products": products(a, v, p, q, draw)},
        projections=B * H * N,
    )


def products(a: Tensor, v: Tensor, p: Tensor, q: Tensor, draw: Draw) -> Thunk:
    """The two batched matrix products alone; their operands are contiguous, which the operator's are not."""
    a, v = (t.transpose(0, 1).contiguous() for t in (a, v))
    u, w = (draw.empty(a.shape[0], a.shape[1], p.shape[2]) for _ in range(2))
    return lambda: (torch.bmm(a, p, out=u), torch.bmm(v, q, out=w))
