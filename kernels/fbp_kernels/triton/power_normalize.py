"""Signed square root and L2 normalisation of rows on a GPU: one launch forward, one backward.

With r = sign(z) sqrt(|z|) and n = max(|r|, eps), |r| the L2 norm of a row:

    y = r / n
    dz = (dy - q y) / (2 n sqrt(|z|)), 0 where z is 0, with q = sum of dy y, but 0 where eps is the divisor

A program takes some rows, in blocks of columns; a row that fits one block is read once.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .launch import Plan
from .tuning import Config, Key


@triton.jit
def _load(base, row, column, row_stride, column_stride, rows, columns):
    """A block of some rows, in float32; 0 outside of the tensor."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * row_stride + column[None, :].to(tl.int64) * column_stride
    return tl.load(base + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(base, value, row, column, rows, columns):
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row[:, None] * columns + column[None, :]
    tl.store(base + offset, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _root(z):
    """The signed square root; of NaN and 0 they themselves."""
    return tl.where(z < 0, -tl.sqrt_rn(tl.abs(z)), tl.sqrt_rn(tl.abs(z)))


@triton.jit
def _divisor(squares, eps):
    """n, from the sum of the squares of r over a row."""
    return tl.maximum(tl.sqrt_rn(squares), eps, propagate_nan=tl.PropagateNan.ALL)[:, None]


@triton.jit(do_not_specialize=["rows", "eps"])
def power_normalize_forward_kernel(
    z, y, rows, spaced, spaced_row, column_stride, eps,
    SPACING: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    columns, row_stride = spaced * SPACING, spaced_row.to(tl.int64) * SPACING
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, BN)
    if WHOLE:
        root = _root(_load(z, row, column, row_stride, column_stride, rows, columns))
        result = tl.div_rn(root, _divisor(tl.sum(root * root, 1), eps))
        _store(y, result, row, column, rows, columns)
    else:
        squares = tl.zeros([BM, BN], tl.float32)
        for first in range(0, columns, BN):
            at = first + column
            root = _root(_load(z, row, at, row_stride, column_stride, rows, columns))
            squares += root * root
        divisor = _divisor(tl.sum(squares, 1), eps)
        for first in range(0, columns, BN):
            at = first + column
            root = _root(_load(z, row, at, row_stride, column_stride, rows, columns))
            _store(y, tl.div_rn(root, divisor), row, at, rows, columns)


@triton.jit
def _gradient(root, slope, divisor, share, eps):
    """dz of a block, from n and q."""
    rest = slope - tl.where(divisor > eps, share, 0.0) * tl.div_rn(root, divisor)
    zero = root == 0
    return tl.where(zero, 0.0, tl.div_rn(rest, tl.where(zero, 1.0, 2.0 * tl.abs(root)) * divisor))


@triton.jit(do_not_specialize=["rows", "eps"])
def power_normalize_backward_kernel(
    dy, z, dz, rows, spaced, spaced_row, column_stride, spaced_dy_row, dy_column_stride, eps,
    SPACING: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    columns, row_stride = spaced * SPACING, spaced_row.to(tl.int64) * SPACING
    dy_row_stride = spaced_dy_row.to(tl.int64) * SPACING
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, BN)
    if WHOLE:
        root = _root(_load(z, row, column, row_stride, column_stride, rows, columns))
        slope = _load(dy, row, column, dy_row_stride, dy_column_stride, rows, columns)
        divisor = _divisor(tl.sum(root * root, 1), eps)
        # Not divided after the sum: a row of one column has a gradient of 0, exactly.
        share = tl.sum(slope * tl.div_rn(root, divisor), 1)[:, None]
        _store(dz, _gradient(root, slope, divisor, share, eps), row, column, rows, columns)
    else:
        squares, products = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
        for first in range(0, columns, BN):
            at = first + column
            root = _root(_load(z, row, at, row_stride, column_stride, rows, columns))
            slope = _load(dy, row, at, dy_row_stride, dy_column_stride, rows, columns)
            squares += root * root
            products += slope * root
        divisor = _divisor(tl.sum(squares, 1), eps)
        share = tl.div_rn(tl.sum(products, 1)[:, None], divisor)
        for first in range(0, columns, BN):
            at = first + column
            root = _root(_load(z, row, at, row_stride, column_stride, rows, columns))
            slope = _load(dy, row, at, dy_row_stride, dy_column_stride, rows, columns)
            _store(dz, _gradient(root, slope, divisor, share, eps), row, at, rows, columns)


def forward(z: Tensor, eps: float) -> Tensor:
    """The kernel of `power_normalize`; z has any strides, the result is contiguous."""
    y = z.new_empty(z.shape)
    if z.numel():
        z = _matrix(z)
        _forward((z.shape, z.stride(), z.dtype, eps), (z, y))
    return y


def backward(dy: Tensor, z: Tensor, eps: float, needs: int) -> Tensor:
    """The kernel of its gradient; there is one input, so it is needed."""
    dz = z.new_empty(z.shape)
    if z.numel():
        dy, z = _matrix(dy), _matrix(z)
        _backward((z.shape, z.stride(), z.dtype, eps, dy.stride()), (dy, z, dz))
    return dz


def _matrix(tensor: Tensor) -> Tensor:
    """A view as rows, where strides allow."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def _plan_forward(*arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    return _planned("forward", power_normalize_forward_kernel, *arguments)


def _plan_backward(*arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    return _planned("backward", power_normalize_backward_kernel, *arguments)


_forward, _backward = launch.launcher(_plan_forward), launch.launcher(_plan_backward)


def _planned(
    direction: str, kernel: Any, device: torch.device,
    shape: torch.Size, z_strides: tuple[int, ...], dtype: torch.dtype, eps: float,
    *others: tuple[int, ...],
) -> tuple[Key, Callable[[Config], Plan]]:  # fmt: skip
    rows, columns = shape
    # So that the compiler knows how rows are aligned.
    spacing = math.gcd(columns, z_strides[0], *(strides[0] for strides in others), 16)
    numbers = [s for row, column in (z_strides, *others) for s in (row // spacing, column)]

    def plan(config: Config) -> Plan:
        return Plan(
            kernel,
            (triton.cdiv(rows, config.blocks["BM"]),),
            (rows, columns // spacing, *numbers, eps),
            {"SPACING": spacing, "WHOLE": columns <= config.blocks["BN"]},
            config,
        )

    kind = "float32" if dtype == torch.float32 else "half"
    return Key(f"power_normalize_{direction}", kind, _size(columns)), plan


def _size(columns: int) -> str:
    """The class of size: by the width of rows, for it decides how many a program takes."""
    return "small" if columns <= 64 else "medium" if columns <= 1024 else "large"


SAMPLES = {"small": (512, 64), "medium": (512, 1000), "large": (512, 5000)}


def samples(size: str, dtype: torch.dtype, device: torch.device | str) -> list[Callable[[], Any]]:
    """Calls that launch every kernel at a shape of a class of size, for the compiler and for tuning."""
    z, dy = (torch.rand(SAMPLES[size], device=device).to(dtype) for _ in range(2))
    return [lambda: forward(z, 1e-12), lambda: backward(dy, z, 1e-12, 1)]


def _candidates(key: Key) -> list[Config]:
    """Whole rows up to 1024 columns, several where they are short."""
    widths = {"small": (64,), "medium": (256, 512, 1024), "large": (1024, 2048, 4096)}[key.size]
    return [
        Config(blocks={"BM": BM, "BN": BN}, warps=warps, stages=1)
        for BN in widths
        for BM in ((4, 8, 16) if key.size == "small" else (1, 2))
        for warps in (1, 2, 4, 8)
        if 2 <= BM * BN // (32 * warps) <= 32
    ]


CANDIDATES: dict[str, Callable[[Key], list[Config]]] = {
    "power_normalize_forward": _candidates,
    "power_normalize_backward": _candidates,
}
