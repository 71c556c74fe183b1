"""Local response normalisation on a GPU: one launch forward, one backward, each reads and writes memory once.

    s_c = k + alpha / size * sum of x_j^2 over j from c - size // 2 to c + (size - 1) // 2
    y_c = x_c s_c^-beta
    dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum of dy_j x_j s_j^(-beta - 1) over the j whose windows hold c

A program takes a tile of channels and positions. For s it loads the tile again, moved by every step of the window,
and finds the numbers in the cache. The second sum, of the backward, is over what was computed: the tile reaches beyond
the channels that it writes, and its rows are exchanged within a warp.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .launch import Plan
from .tuning import Config, Key


@triton.jit
def _tile(
    channels, positions, LAST: tl.constexpr, WIDE: tl.constexpr,
    BELOW: tl.constexpr, ABOVE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """The tile of a program, of which the first BELOW and the last ABOVE channels are other programs' too.

    Programs go through the channels first, so that the cache serves the neighbours.

    Returns:
        Where its first element is, where the others are from there, by how much a channel moves them, its channels,
        and which of its positions there are.
    """
    blocks, across = tl.cdiv(channels, BC - BELOW - ABOVE), tl.cdiv(positions, BP)
    index = tl.program_id(0)
    channel = index % blocks * (BC - BELOW - ABOVE) - BELOW
    index = index // blocks
    position = (index % across).to(tl.int64) * BP
    row = (index // across).to(tl.int64)
    c, p = tl.arange(0, BC), tl.arange(0, BP)
    there = ((position + p) < positions)[None, :]
    if LAST:
        first = row * channels * positions + position * channels + channel
        if WIDE:
            p = p.to(tl.int64)
        return first, p[None, :] * channels + c[:, None], 1, channel + c, there
    else:
        first = row * channels * positions + channel * positions + position
        step = positions if WIDE else positions.to(tl.int32)
        return first, c[:, None] * step + p[None, :], step, channel + c, there


@triton.jit
def _load(pointers, channel, j, step, channels, there, RELU: tl.constexpr):
    """A tile moved by j channels, in float32; 0 beyond the first and the last channel."""
    moved = channel + j
    inside = ((moved >= 0) & (moved < channels))[:, None] & there
    value = tl.load(pointers + j * step, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return value


@triton.jit
def _sum_of_squares(
    pointers, channel, centre, step, channels, there,
    RELU: tl.constexpr, BELOW: tl.constexpr, ABOVE: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Over the windows of a tile that is moved by `centre` channels."""
    value = _load(pointers, channel, centre - BELOW, step, channels, there, RELU)
    total = value * value
    if UNROLL:
        for j in tl.static_range(1 - BELOW, ABOVE + 1):
            value = _load(pointers, channel, centre + j, step, channels, there, RELU)
            total += value * value
    else:
        for j in range(1 - BELOW, ABOVE + 1):
            value = _load(pointers, channel, centre + j, step, channels, there, RELU)
            total += value * value
    return total


@triton.jit
def _power(s, beta, ROOTS: tl.constexpr):
    """s^-beta for s > 0; with ROOTS, beta is 0.75."""
    if ROOTS:
        root = tl.rsqrt(s)
        # A GPU gives an estimate, to which one step of Newton's adds the last bits; of infinity it would make NaN.
        root = tl.where(s < float("inf"), root * tl.fma(-0.5 * s * root, root, 1.5), root)
        return root * tl.sqrt(root)
    else:
        # The digits of a logarithm are spent on the exponent, and the power would lack as many. So the exponent is
        # taken out before, and its product with beta kept exactly, as a rounded one and what that is off by.
        bits = s.to(tl.int32, bitcast=True)
        exponent = ((bits >> 23) - 127).to(tl.float32)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        product = exponent * beta
        rest = tl.fma(exponent, beta, -product)
        whole = tl.floor(product)
        part = (product - whole) + (rest + beta * tl.log2(mantissa))
        # Infinity and NaN have no such parts; 1 / s is 0 and NaN, as their power is.
        return tl.where(s < float("inf"), tl.exp2(-part) * tl.exp2(-whole), 1.0 / s)


@triton.jit(do_not_specialize=["spaced", "scale", "k", "beta"])
def local_response_norm_forward_kernel(
    x, y, channels, spaced, scale, k, beta,
    SPACING: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BELOW: tl.constexpr,
    ABOVE: tl.constexpr, UNROLL: tl.constexpr, ROOTS: tl.constexpr, RELU: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    positions = spaced.to(tl.int64) * SPACING
    first, offset, step, channel, there = _tile(channels, positions, LAST, WIDE, 0, 0, BC, BP)
    at = x + first + offset
    value = _load(at, channel, 0, step, channels, there, RELU)
    total = _sum_of_squares(at, channel, 0, step, channels, there, RELU, BELOW, ABOVE, UNROLL)
    result = value * _power(k + scale * total, beta, ROOTS)
    mine = (channel < channels)[:, None] & there
    tl.store(y + first + offset, result.to(y.dtype.element_ty), mask=mine)


@triton.jit
def _pull(
    dy, x, channel, j, step, channels, there, scale, k, beta,
    BELOW: tl.constexpr, ABOVE: tl.constexpr, UNROLL: tl.constexpr, ROOTS: tl.constexpr,
    RELU: tl.constexpr,
):  # fmt: skip
    """Of a tile moved by j channels: dy x s^(-beta - 1), s^-beta, x and dy."""
    value = _load(x, channel, j, step, channels, there, RELU)
    slope = _load(dy, channel, j, step, channels, there, False)
    total = _sum_of_squares(x, channel, j, step, channels, there, RELU, BELOW, ABOVE, UNROLL)
    s = k + scale * total
    power = _power(s, beta, ROOTS)
    return slope * power * (value / s), power, value, slope


@triton.jit(do_not_specialize=["spaced", "scale", "k", "beta"])
def local_response_norm_backward_kernel(
    dy, x, dx, channels, spaced, scale, k, beta,
    SPACING: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, BELOW: tl.constexpr,
    ABOVE: tl.constexpr, UNROLL: tl.constexpr, ROOTS: tl.constexpr, RELU: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    positions = spaced.to(tl.int64) * SPACING
    # The windows that hold a channel are those of the channels from ABOVE before it to BELOW after it.
    BEFORE: tl.constexpr = ABOVE if UNROLL else 0
    AFTER: tl.constexpr = BELOW if UNROLL else 0
    first, offset, step, channel, there = _tile(
        channels, positions, LAST, WIDE, BEFORE, AFTER, BC, BP
    )
    x += first + offset
    dy += first + offset
    pull, power, value, slope = _pull(
        dy, x, channel, 0, step, channels, there, scale, k, beta, BELOW, ABOVE, UNROLL, ROOTS, RELU
    )
    c = tl.arange(0, BC)
    pulled = pull
    if UNROLL:
        rows = c[:, None] + tl.zeros([BC, BP], tl.int32)
        for j in tl.static_range(-ABOVE, BELOW + 1):
            if j != 0:  # rows that wrap around meet those that are not written
                pulled += tl.gather(pull, (rows + j) & (BC - 1), axis=0)
    else:
        for j in range(-ABOVE, BELOW + 1):
            moved, _, _, _ = _pull(
                dy, x, channel, j, step, channels, there, scale, k, beta,
                BELOW, ABOVE, UNROLL, ROOTS, RELU,
            )  # fmt: skip
            pulled += tl.where(j == 0, 0.0, moved)
    result = slope * power - 2 * beta * scale * value * pulled
    if RELU:
        result = tl.where(value <= 0, 0.0, result)
    mine = (c >= BEFORE) & (c < BC - AFTER) & (channel < channels)
    tl.store(dx + first + offset, result.to(dx.dtype.element_ty), mask=mine[:, None] & there)


def forward(x: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool) -> Tensor:
    """The kernel of `local_response_norm`; x is contiguous or channels-last."""
    y = torch.empty_like(x)
    _forward((x.shape, x.stride(), x.dtype, size, alpha, beta, k, relu), (x, y))
    return y


def backward(
    dy: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, relu: bool, needs: int
) -> Tensor:
    """The kernel of its gradient; there is one input, so it is needed."""
    dx = torch.empty_like(x)
    strides = x.stride()
    if dy.stride() != strides:
        dy = torch.empty_like(x).copy_(dy)
    _backward((x.shape, strides, x.dtype, size, alpha, beta, k, relu), (dy, x, dx))
    return dx


def _plan_forward(*arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    return _planned("forward", local_response_norm_forward_kernel, *arguments)


def _plan_backward(*arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    return _planned("backward", local_response_norm_backward_kernel, *arguments)


_forward, _backward = launch.launcher(_plan_forward), launch.launcher(_plan_backward)


def _planned(
    direction: str, kernel: Any, device: torch.device,
    shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype,
    size: int, alpha: float, beta: float, k: float, relu: bool,
) -> tuple[Key, Callable[[Config], Plan]]:  # fmt: skip
    x = launch.without_memory((shape, strides, dtype))
    channels = x.shape[1]
    # Where the channels lie together, the batch is just more positions.
    last = not x.is_contiguous() or x.numel() == x.shape[0] * channels
    positions = math.prod(x.shape[2:])
    rows, positions = (1, x.shape[0] * positions) if last else (x.shape[0], positions)
    spacing = math.gcd(positions, 16)  # so that the compiler knows how rows are aligned
    # What lies further off than the last channel is 0.
    below, above = (min(reach, channels - 1) for reach in (size // 2, (size - 1) // 2))

    def plan(config: Config) -> Plan:
        BC, BP = config.blocks["BC"], config.blocks["BP"]
        # Loops, where the window would leave less than half of a tile; slow, but such windows are rare.
        unroll = below + above <= min(BC // 2, 16)
        shared = below + above if unroll and direction == "backward" else 0
        return Plan(
            kernel,
            (rows * triton.cdiv(channels, BC - shared) * triton.cdiv(positions, BP),),
            (channels, positions // spacing, alpha / size, k, beta),
            {
                "SPACING": spacing, "LAST": last, "WIDE": channels * positions >= 2**31,
                "BELOW": below, "ABOVE": above, "UNROLL": unroll, "ROOTS": beta == 0.75,
                "RELU": relu,
            },
            config,
        )  # fmt: skip

    name = f"local_response_norm_{direction}_{'last' if last else 'apart'}"
    kind = "float32" if dtype == torch.float32 else "half"
    return Key(name, kind, _size(x)), plan


def _size(x: Tensor) -> str:
    """The class of size: whether there are enough elements for every multiprocessor, and for many turns."""
    return "small" if x.numel() < 1 << 18 else "medium" if x.numel() < 1 << 22 else "large"


SAMPLES = {"small": (2, 64, 12, 37), "medium": (8, 256, 24, 74), "large": (8, 96, 50, 150)}


def samples(size: str, dtype: torch.dtype, device: torch.device | str) -> list[Callable[[], Any]]:
    """Calls that launch every kernel at a shape of a class of size, for the compiler and for tuning."""
    options = (5, 1e-4, 0.75, 1.0, True)
    calls: list[Callable[[], Any]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x, dy = (
            torch.rand(SAMPLES[size], device=device).to(dtype).contiguous(memory_format=layout)
            for _ in range(2)
        )
        calls += [partial(forward, x, *options), partial(backward, dy, x, *options, 1)]
    return calls


# Tiles of 4 to 16 elements a thread.
_TILES = [
    Config(blocks={"BC": BC, "BP": BP}, warps=warps, stages=1)
    for BC in (16, 32, 64, 128)
    for BP in (8, 16, 32, 64, 128, 256)
    for warps in (4, 8)
    if 4 <= BC * BP // (32 * warps) <= 16
]
CANDIDATES: dict[str, list[Config]] = {
    f"local_response_norm_{direction}_{layout}": _TILES
    for direction in ("forward", "backward")
    for layout in ("apart", "last")
}
