"""Starts the kernels of `fbp`, `trunk_fbp` and `am_fbp`: one launch forward, two backward."""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .. import reference
from . import tuning, workspace
from .bilinear_kernels import (
    Mask,
    Operand,
    Part,
    ProjectionGradients,
    Side,
    forward_kernel,
    gradients_kernel,
    projection_gradients_kernel,
)
from .launch import ABSENT, NO, YES, architecture, flag, launch, multiprocessors
from .levels import Level, Levels
from .tuning import Config, Key


def forward(levels: Levels, seed: Tensor | None, dropout: float, keep: bool) -> tuple[Tensor, ...]:
    """Pools, in one launch.

    Args:
        levels: what to pool.
        seed: int64 scalar that the dropout mask follows from; None means no dropout.
        dropout: its probability.
        keep: whether the projections are wanted.

    Returns:
        The result (B, sum of O), and two projections (H, B, N) of each part, or empty tensors where not wanted.
    """
    first = levels.there[0].a
    z = first.new_empty(first.shape[0], sum(level.outputs for level in levels.there))
    kept = tuple(tensor for level in levels.there for tensor in _projections(level, keep))
    if z.numel():
        parts = _parts(levels, kept if keep else ())
        mask = _mask(seed, dropout)
        _run("fbp_forward", z, lambda config: _forward(config, z, levels, parts, mask))
    return z, *kept


def backward(
    dz: Tensor,
    levels: Levels,
    seed: Tensor | None,
    kept: tuple[Tensor, ...],
    dropout: float,
    needs: tuple[tuple[bool, ...], ...],
) -> list[list[Tensor]]:
    """Gradients, in two launches.

    Args:
        dz: (B, sum of O).
        levels: as the forward had them.
        seed: likewise.
        kept: the projections that the forward kept, or nothing: then they are computed again.
        dropout: as the forward had it.
        needs: for each part that is there, which of a, v, p, q, p_bias and q_bias need their gradient.

    Returns:
        For each part that is there those six gradients, contiguous; empty where not needed.
    """
    gradients = [
        [_gradient(dz, tensor, need) for tensor, need in zip(level[:6], due, strict=True)]
        for level, due in zip(levels.there, needs, strict=True)
    ]
    if not dz.numel():
        return [[gradient.zero_() for gradient in part] for part in gradients]
    parts = _parts(levels, kept)
    mask = _mask(seed, dropout)
    found: list[ProjectionGradients] = _run(
        "fbp_projection_gradients",
        dz,
        lambda config: _projection_gradients(config, dz, levels, parts, mask),
    )
    sides = []
    for level, out, part, due in zip(levels.there, found, gradients, needs, strict=True):
        sides += _sides(level, out, part, due)
    _run("fbp_gradients", dz, lambda config: _gradients(config, dz, sides))
    return gradients


def _run(kernel: str, like: Tensor, call: Any) -> Any:
    rows = like.shape[0]
    size = "small" if rows <= 64 else "medium" if rows <= 1024 else "large"
    key = Key(kernel, tuning.dtype_class(like.dtype), size)
    return tuning.run(key, architecture(like.device), call, like.device)


def _forward(config: Config, z: Tensor, levels: Levels, parts: list[Part], mask: Mask) -> None:
    once, each = levels
    rows = math.ceil(z.shape[0] / config.blocks["BLOCK_M"])
    tiles = [rows * _tiles(level, config, z.dtype) for level in levels]
    splits = 1
    if each is not None:  # whatever the global part is, so that it changes no sum here
        splits = max(1, min(each.a.shape[1], multiprocessors(z) // tiles[1]))
    columns = _columns(levels, config, z.dtype)
    blocks = [columns[f"BLOCK_O_{part}"] for part in "GM"]
    partials = counters = None
    if splits > 1:
        cells = tiles[1] * splits * config.blocks["BLOCK_M"] * blocks[1]
        partials = z.new_empty(cells, dtype=torch.float32)
        counters = workspace.counters(z.device, tiles[1])
    launch(
        forward_kernel, (tiles[0] + tiles[1] * splits,),
        z, *parts, mask, partials, counters, z.shape[0], rows, splits, tiles[1] * splits,
        **columns, ADAPTIVE=once is not None and once.adaptive,
        PRECISION=tuning.precision(z.dtype),
        SPLIT=splits > 1, OFFSET=_offset(config, *_tensors(levels)),
        device=z.device, config=config,
    )  # fmt: skip


def _projection_gradients(
    config: Config, dz: Tensor, levels: Levels, parts: list[Part], mask: Mask
) -> list[ProjectionGradients]:
    B = dz.shape[0]
    once, each = levels
    rows = math.ceil(B / config.blocks["BLOCK_M"])
    padded = rows * config.blocks["BLOCK_M"]
    tiles = [_tiles(level, config, dz.dtype) for level in levels]
    programs = 0 if each is None else rows * tiles[1] * each.a.shape[1]
    outs = []
    for level, count in zip(levels, tiles, strict=True):
        if level is None:
            outs.append(ProjectionGradients(*[ABSENT] * 6))
            continue
        H, _, N = level.p.shape
        du, dw = _projections(level, True)
        norms = scales = biases = ABSENT
        if level.adaptive:
            norms = dz.new_empty(2, padded, dtype=torch.float32)
            scales = dz.new_empty(count, 2, padded, dtype=torch.float32)
        if level.p_bias is not None or level.q_bias is not None:
            biases = dz.new_empty(rows, 2, H, N, dtype=torch.float32)
        outs.append(ProjectionGradients(du, dw, norms, scales, biases, flag(biases is not ABSENT)))
    columns = _columns(levels, config, dz.dtype)
    del columns["BLOCK_O_G"], columns["BLOCK_O_M"]
    launch(
        projection_gradients_kernel, (programs + rows * tiles[0],),
        dz, dz.stride(0), dz.stride(1), *parts, *outs, mask, B, rows, programs,
        **columns, ADAPTIVE=once is not None and once.adaptive, PRECISION=tuning.precision(dz.dtype),
        OFFSET=_offset(config, *_tensors(levels)), device=dz.device, config=config,
    )  # fmt: skip
    return [out for out, level in zip(outs, levels, strict=True) if level is not None]


def _sides(
    level: Level, out: ProjectionGradients, gradients: list[Tensor], needs: tuple[bool, ...]
) -> list[Side]:
    """The part's modalities, of those that anything is needed of."""
    sides = []
    for second in range(2):
        x, weight = level.tensors[second], level.tensors[2 + second]
        dx, d_weight, d_bias = gradients[second], gradients[2 + second], gradients[4 + second]
        needs_x, needs_weight, needs_bias = needs[second], needs[2 + second], needs[4 + second]
        if not (needs_x or needs_weight or needs_bias):
            continue
        if needs_bias and not needs_weight:
            d_weight = weight.new_empty(weight.shape)
        H, W, N = weight.shape
        sides.append(
            Side(
                x=_operand(x),
                weight=_operand(weight),
                d=out.dw if second else out.du,
                dx=dx,
                d_weight=d_weight,
                d_bias=d_bias if needs_bias else ABSENT,
                biases=out.biases[:, second] if needs_bias else ABSENT,
                lengths=ABSENT if level.lengths is None else level.lengths,
                own_norm=out.norms[second] if level.adaptive else ABSENT,
                other_norm=out.norms[1 - second] if level.adaptive else ABSENT,
                own_scale=out.scales[:, second] if level.adaptive else ABSENT,
                other_scale=out.scales[:, 1 - second] if level.adaptive else ABSENT,
                tiles_o=len(out.scales) if level.adaptive else 0,
                H=H,
                W=W,
                N=N,
                needs_weight=flag(needs_weight or needs_bias),
                needs_x=flag(needs_x),
                biased=flag(needs_bias),
                scaled=flag(level.adaptive),
                ragged=flag(level.lengths is not None),
            )
        )
    return sides


def _gradients(config: Config, dz: Tensor, sides: list[Side]) -> None:
    blocks = config.blocks
    B = dz.shape[0]
    rows = math.ceil(B / blocks["BLOCK_M"])
    before = next((side for side in sides if side.own_norm is not ABSENT), None)
    padded = 0 if before is None else before.own_norm.shape[0]
    tiles_p = next((len(side.biases) for side in sides if side.biases is not ABSENT), 0)
    programs = 0
    for side in sides:
        if side.needs_weight:
            widths = math.ceil(side.W / blocks["WEIGHT_C"])
            programs += side.H * widths * math.ceil(side.N / blocks["WEIGHT_N"])
        if side.needs_x:
            programs += side.H * rows * math.ceil(side.W / blocks["BLOCK_C"])
    operands = [t for side in sides for t in (side.x.data, side.weight.data, side.d)]
    launch(
        gradients_kernel, (programs,), tuple(sides), B, rows, tiles_p, padded,
        PRECISION=tuning.precision(dz.dtype), OFFSET=_offset(config, *operands), device=dz.device,
        config=config,
    )  # fmt: skip


def _tensors(levels: Levels) -> list[Tensor]:
    return [tensor for level in levels.there for tensor in level.tensors]


def _offset(config: Config, *tensors: Tensor) -> tl.dtype:
    """The type that offsets within a tile of these tensors fit."""
    reach = max(stride for tensor in tensors for stride in tensor.stride())
    return tl.int32 if 2 * reach * max(config.blocks.values()) < 2**31 else tl.int64


def _tiles(level: Level | None, config: Config, dtype: torch.dtype) -> int:
    """How many tiles of outputs a part has."""
    if level is None:
        return 0
    return math.ceil(level.outputs / _groups(level.factor, config.blocks["BLOCK_N"], dtype))


def _groups(factor: int, block: int, dtype: torch.dtype) -> int:
    """Outputs of a tile: as many as its columns hold, but so that tiles begin at 16 bytes where K allows it."""
    groups = max(1, block // factor)
    unit = 16 // dtype.itemsize
    unit //= math.gcd(unit, factor)
    return groups - groups % unit if groups > unit else groups


def _columns(levels: Levels, config: Config, dtype: torch.dtype) -> dict[str, int]:
    """The compile-time sizes that follow from K."""
    constants = {"STREAM_G": reference.GLOBAL_STREAM, "STREAM_M": reference.TRUNK_STREAM}
    for name, level in zip("GM", levels, strict=True):
        K, block = 0 if level is None else level.factor, config.blocks["BLOCK_N"]
        groups = _groups(K, block, dtype) if K else 1
        constants |= {
            f"K_{name}": K,
            f"GROUPS_{name}": groups,
            f"CHUNKS_{name}": math.ceil(groups * K / block),
            f"BLOCK_O_{name}": max(16, 1 << (groups - 1).bit_length()),
        }
    return constants


def _projections(level: Level, keep: bool) -> tuple[Tensor, Tensor]:
    H, _, N = level.p.shape
    shape = (H, level.a.shape[0], N) if keep else (0,)
    return level.a.new_empty(shape), level.a.new_empty(shape)


def _gradient(dz: Tensor, tensor: Tensor | None, need: bool) -> Tensor:
    return dz.new_empty(0 if tensor is None or not need else tensor.shape)


def _parts(levels: Levels, kept: tuple[Tensor, ...]) -> list[Part]:
    """The kernels' arguments; `kept` has two projections for each part that is there, or none at all."""
    parts = []
    pairs = iter(zip(kept[::2], kept[1::2], strict=True))
    for level in levels:
        if level is None:
            parts.append(Part(*[ABSENT] * len(Part._fields)))
            continue
        u, w = next(pairs, (ABSENT, ABSENT))
        H, C, N = level.p.shape
        parts.append(
            Part(
                a=_operand(level.a),
                v=_operand(level.v),
                p=_operand(level.p),
                q=_operand(level.q),
                p_bias=_operand(level.p_bias),
                q_bias=_operand(level.q_bias),
                u=u,
                w=w,
                lengths=ABSENT if level.lengths is None else level.lengths,
                H=H,
                C=C,
                D=level.q.shape[1],
                N=N,
                p_biased=flag(level.p_bias is not None),
                q_biased=flag(level.q_bias is not None),
                kept=flag(bool(kept)),
                ragged=flag(level.lengths is not None),
            )
        )
    return parts


def _operand(tensor: Tensor | None) -> Operand:
    """Of three dimensions; a bias (H, N) has one in the middle."""
    if tensor is None:
        return Operand(ABSENT, ABSENT, ABSENT, ABSENT)
    stride0, *middle, stride2 = tensor.stride()
    return Operand(tensor, stride0, middle[0] if middle else ABSENT, stride2)


def _mask(seed: Tensor | None, dropout: float) -> Mask:
    if seed is None:
        return Mask(ABSENT, ABSENT, ABSENT, NO)
    scale = 1.0 / (1.0 - dropout) if dropout < 1 else 0.0
    return Mask(seed, min(int(dropout * 2**32), 2**32 - 1), scale, YES)


# Tiles that a search tries, with the warps that hold them: (rows, columns) of a projection; two are held in registers.
_TILES = {
    "small": ((16, 32, 4), (32, 32, 4), (32, 64, 4)),
    "medium": ((64, 64, 4), (64, 64, 8), (64, 128, 8), (128, 64, 8), (128, 128, 8)),
    "large": ((128, 64, 4), (128, 64, 8), (128, 128, 8), (256, 64, 8), (64, 256, 8)),
}
# Of a product of gradients: (rows, width) and (width, columns).
_PRODUCTS = {
    "small": ((16, 64), (32, 64), (32, 128)),
    "medium": ((64, 64), (64, 128), (128, 64)),
    "large": ((128, 64), (128, 128), (64, 256)),
}
_WEIGHTS = ((64, 64, 4), (64, 128, 4), (128, 128, 8), (128, 256, 8))
_DEPTHS = {"half": (32, 64), "tf32": (16, 32), "float32": (16,)}


def _projecting(key: Key) -> list[Config]:
    """Configurations of the two kernels that project."""
    small = key.size == "small"
    return [
        Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c, "GROUP": 1 if small else 8},
            warps,
            stages,
        )
        for m, n, warps in _TILES[key.size]
        for c in _DEPTHS[key.dtype]
        for stages in ((3, 5) if small else (3, 4))
    ]


def _multiplying(key: Key) -> list[Config]:
    """Configurations of the kernel of products, whose two kinds of tile share warps and stages."""
    return [
        Config(
            {
                "BLOCK_M": m, "BLOCK_C": c, "BLOCK_N": depth,
                "WEIGHT_C": wc, "WEIGHT_N": wn, "WEIGHT_M": depth, "GROUP": 8,
            },
            warps, stages,
        )
        for m, c in _PRODUCTS[key.size]
        for wc, wn, warps in _WEIGHTS
        for depth in _DEPTHS[key.dtype]
        for stages in (3, 4)
    ]  # fmt: skip


# What a search on a device tries.
CANDIDATES = {
    "fbp_forward": _projecting,
    "fbp_projection_gradients": _projecting,
    "fbp_gradients": _multiplying,
}

# By class of size: B, C, D, O_G, K_G, H, O_M, K_M; a training batch of clips, a larger one, and throughput.
SAMPLES = {
    "small": (32, 256, 512, 128, 4, 8, 128, 4),
    "medium": (256, 256, 512, 256, 5, 10, 256, 5),
    "large": (8192, 1024, 1024, 1024, 4, 4, 512, 4),
}


def samples(
    size: str, dtype: torch.dtype, device: torch.device | str
) -> list[Callable[[], object]]:
    """Calls that launch every kernel here at a representative shape.

    Args:
        size: a class of size.
        dtype: of the tensors.
        device: where they are; "meta" where only the compiler runs.
    """
    B, C, D, O_G, K_G, H, O_M, K_M = SAMPLES[size]

    def draw(*shape: int, width: int = 1) -> Tensor:
        return torch.randn(shape, device=device).mul_(width**-0.5).to(dtype)

    def level(H: int, O: int, K: int, lengths: Tensor | None, biased: bool, scaled: bool) -> Level:
        N = O * K
        return Level(
            a=draw(B, H, C),
            v=draw(B, H, D),
            p=draw(H, C, N, width=C),
            q=draw(H, D, N, width=D),
            p_bias=draw(H, N) if biased else None,
            q_bias=draw(H, N) if biased else None,
            lengths=lengths,
            factor=K,
            adaptive=scaled,
        )

    def train(levels: Levels, keep: bool, dropout: float) -> Callable[[], object]:
        seed = torch.ones((), dtype=torch.int64, device=device) if dropout else None
        dz = draw(B, sum(level.outputs for level in levels.there))
        due = tuple(tuple(t is not None for t in level[:6]) for level in levels.there)

        def call() -> object:
            z, *kept = forward(levels, seed, dropout, keep)
            pairs = tuple(kept) if keep else ()
            return z, backward(dz, levels, seed, pairs, dropout, due)

        return call

    lengths = torch.full((B,), H, dtype=torch.int64, device=device)
    keep = size != "large"
    both = Levels(level(1, O_G, K_G, None, False, True), level(H, O_M, K_M, lengths, False, False))
    mfb = Levels(level(1, O_G, 5, None, True, False), None)
    return [train(both, keep, 0.0), train(mfb, not keep, 0.1)]
