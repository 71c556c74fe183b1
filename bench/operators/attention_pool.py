"""Attention over frames, pooled over the clip and over its trunks."""

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`attention_pool` of clips that all have T frames; sizes B, T, C, A, H."""
    B, T, C, A, H = (sizes[size] for size in "BTCAH")
    tensors = (draw(B, T, C), draw(C, A, scale=C**-0.5), draw(A), draw(A, scale=A**-0.5))
    scale = 1.0
    return Call(
        "attention_pool",
        sizes,
        lambda x, weight, bias, query, **how: fbp_kernels.attention_pool(
            x, weight, bias, query, scale, trunks=H, **how
        ),
        lambda x, weight, bias, query: reference.attention_pool(
            x, weight, bias, query, scale, trunks=H
        ),
        tensors,
        # The hidden layer, its tanh and bias, the scores, and the weighted sum.
        2.0 * B * T * C * A + 4.0 * B * T * A + 2.0 * B * T * C,
    )
