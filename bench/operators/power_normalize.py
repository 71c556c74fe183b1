"""Signed square root and L2 normalisation."""

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`power_normalize`; sizes B, O."""
    z = draw(sizes["B"], sizes["O"])
    copy = draw.empty(*z.shape)
    return Call(
        "power_normalize",
        sizes,
        lambda z, backend: fbp_kernels.power_normalize(z, backend=backend),
        reference.power_normalize,
        (z,),
        6.0 * z.numel(),  # magnitude, root, sign, square, sum, quotient
        {"copy": lambda: (copy.copy_(z),)},
    )
