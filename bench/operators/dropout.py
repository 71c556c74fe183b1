"""Dropout with torch's generator."""

import torch
from torch import Tensor
from torch.nn import functional as F

import fbp_kernels
from fbp_kernels import generator, reference

from .call import Call, Draw

_P = 0.2


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`dropout`; sizes B, O. Every call draws the same mask."""
    x = draw(sizes["B"], sizes["O"])
    copy, state = draw.empty(*x.shape), torch.Generator().manual_seed(0).get_state()

    def ours(x: Tensor, backend: str) -> Tensor:
        torch.set_rng_state(state)
        return fbp_kernels.dropout(x, _P, backend=backend)

    def plain(x: Tensor) -> Tensor:
        """What `torch.nn.Dropout` calls, or the definition where that draws another mask."""
        if not generator.draws_alike():
            return reference.dropout(x, state.view(torch.int64), _P)[0]
        torch.set_rng_state(state)
        return F.dropout(x, _P)

    return Call(
        "dropout",
        sizes,
        ours,
        plain,
        (x,),
        3.0 * x.numel(),  # number, comparison, product
        {"copy": lambda: (copy.copy_(x),)},
    )
