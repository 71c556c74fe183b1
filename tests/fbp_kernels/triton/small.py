"""A family of kernels as small as can be, laid out as those of the package: what tests of tuning and resources run."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from fbp_kernels.triton import launch, tuning
from fbp_kernels.triton.tuning import Config, Key

CANDIDATES = {
    "small_product": [
        Config({"BLOCK": 64, "BLOCK_C": 32}, 4, 2),
        Config({"BLOCK": 128, "BLOCK_C": 32}, 8, 3),
    ]
}


@triton.jit(do_not_specialize=["B"])
def small_product(
    a, p, z, B, C, O, stride, TF32: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        inner = start + tl.arange(0, BLOCK_C)
        x = tl.load(
            a + row[:, None] * stride + inner[None, :],
            mask=(row[:, None] < B) & (inner[None, :] < C),
            other=0.0,
        )
        y = tl.load(
            p + inner[:, None] * O + column[None, :],
            mask=(inner[:, None] < C) & (column[None, :] < O),
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision="tf32" if TF32 else "ieee")
    keep = (row[:, None] < B) & (column[None, :] < O)
    tl.store(z + row[:, None] * O + column[None, :], total, mask=keep)


def forward(a: Tensor, p: Tensor) -> Tensor:
    """The product of a (B, C) and p (C, O)."""
    z = a.new_empty(a.shape[0], p.shape[1])
    _product((a.shape, p.shape[1], a.stride(0), tuning.dtype_class(a.dtype)), (a, p, z))
    return z


def _planned(
    device: torch.device, shape: torch.Size, O: int, stride: int, dtype: str
) -> tuple[Key, Callable[[Config], launch.Plan]]:
    B, C = shape

    def plan(config: Config) -> launch.Plan:
        block = config.blocks["BLOCK"]
        grid = (-(-B // block), -(-O // block))
        constants = {"TF32": dtype == "tf32"}
        return launch.Plan(small_product, grid, (B, C, O, stride), constants, config)

    return Key("small_product", dtype, "small" if B < 64 else "large"), plan


_product = launch.launcher(_planned)


def samples(
    size: str, dtype: torch.dtype, device: torch.device | str
) -> list[Callable[[], object]]:
    """One product; there is no medium size."""
    rows = {"small": 32, "large": 4096}.get(size)
    if rows is None:
        return []
    generator = torch.Generator().manual_seed(0)
    a, p = (
        torch.randn(s, generator=generator).to(device, dtype) for s in ((rows, 256), (256, 128))
    )
    return [lambda: forward(a, p)]
