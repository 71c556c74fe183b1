"""Adaptive and multi-level factorized bilinear pooling: both levels in one call."""

from typing import Any

from torch import Tensor

import fbp_kernels
from fbp_kernels import reference

from . import fbp, trunk_fbp
from .call import Call, Draw


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`am_fbp`, adaptive; sizes B, C, D, O_G, K_G, H, O_M, K_M."""
    B, H, C, D = (sizes[size] for size in "BHCD")
    K_G, K_M = sizes["K_G"], sizes["K_M"]
    level = {"B": B, "C": C, "D": D, "O": sizes["O_G"], "K": K_G}
    trunks = {"B": B, "H": H, "C": C, "D": D, "O": sizes["O_M"], "K": K_M}
    once, each = fbp.make(level, draw), trunk_fbp.make(trunks, draw)
    a, v, p, q = once.tensors
    a_trunks, v_trunks, p_trunks, q_trunks = each.tensors

    def ours(
        a: Tensor, v: Tensor, a_trunks: Tensor, v_trunks: Tensor,
        p: Tensor, q: Tensor, p_trunks: Tensor, q_trunks: Tensor, **how: Any,
    ) -> Tensor:  # fmt: skip
        return fbp_kernels.am_fbp(
            a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, K_G, K_M, **how
        )

    return Call(
        "am_fbp",
        sizes,
        ours,
        lambda a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks: reference.am_fbp(
            a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks, K_G, K_M
        ),
        (a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks),
        once.flops + each.flops,
        {"products": lambda: (*once.bare["products"](), *each.bare["products"]())},
        projections=once.projections + each.projections,
    )
