"""Starts the kernels of `fbp`, `trunk_fbp` and `am_fbp`: one launch forward, two backward."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .. import reference
from . import tuning
from .bilinear_kernels import forward_kernel, gradients_kernel, projection_gradients_kernel
from .launch import Like, Plan, launcher, likes, multiprocessors, without_memory
from .levels import TENSORS, Level, Levels
from .tuning import Config, Key

Gradients = tuple[Tensor | None, ...]
_MISSING: Gradients = (None,) * 6


def forward(
    levels: Levels, seed: Tensor | None, dropout: float, keep: bool
) -> tuple[Tensor | None, ...]:
    """Pools, in one launch.

    Args:
        levels: what to pool.
        seed: int64 scalar that the dropout mask follows from; None means no dropout.
        dropout: its probability.
        keep: whether the projections are wanted.

    Returns:
        The result (B, sum of O), and two projections (H, B, N) of each part, or None where not wanted.
    """
    there = levels.there
    a, outputs = there[0].a, 0
    for level in there:
        outputs += level.outputs
    z = a.new_empty(a.shape[0], outputs)
    kept: tuple[Tensor | None, ...] = (None, None) * len(there)
    if keep:
        kept = tuple([projection for level in there for projection in _projections(level)])
    if z.numel():
        tensors = levels.tensors
        _forward(
            _arguments(levels, tensors, seed, dropout), (*tensors, seed, *_four(levels, kept), z)
        )
    return z, *kept


def backward(
    dz: Tensor,
    levels: Levels,
    seed: Tensor | None,
    kept: tuple[Tensor | None, ...],
    dropout: float,
    needs: tuple[tuple[bool, ...], ...],
) -> list[Gradients]:
    """Gradients, in two launches.

    Args:
        dz: (B, sum of O).
        levels: as the forward had them.
        seed: likewise.
        kept: the projections that the forward kept, or nothing: then they are computed again.
        dropout: as the forward had it.
        needs: for each part that is there, which of a, v, p, q, p_bias and q_bias need their gradient.

    Returns:
        For each part that is there those six gradients, contiguous; None where not needed.
    """
    there = levels.there
    gradients = [
        tuple(
            [_gradient(tensor) if due else None for tensor, due in zip(level, dues, strict=False)]
        )
        for level, dues in zip(there, needs, strict=True)
    ]
    if not dz.numel():
        for gradient in [g for part in gradients for g in part if g is not None]:
            gradient.zero_()
        return gradients
    columns = 0
    for level in there:
        columns += level.trunks * level.p.shape[-1]
    d = dz.new_empty(2 * dz.shape[0] * columns)
    tensors = levels.tensors
    arguments = _arguments(levels, tensors, seed, dropout)
    projections = _four(levels, kept or (None, None) * len(there))
    before, scratch = _projection_gradients(
        (*arguments, dz.stride()), (dz, *tensors, seed, *projections, d)
    )
    blocks = before.config.blocks
    _gradients(
        (*arguments, needs, blocks["BLOCK_M"], blocks["BLOCK_N"]),
        (*tensors, *_written(levels, gradients), scratch, d),
    )
    return gradients


def _arguments(
    levels: Levels, tensors: tuple[Tensor | None, ...], seed: Tensor | None, dropout: float
) -> tuple[Any, ...]:
    """What all plans follow from."""
    once, each = levels
    a = (each or levels.there[0]).a
    return (
        a.shape,
        once and once[TENSORS:],
        each and each[TENSORS:],
        None if seed is None else dropout,
        tuning.dtype_class(a.dtype),
        likes(tensors),
    )


def _four(levels: Levels, pairs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Two tensors of each part, where there are pairs only of parts that are there."""
    once, each = levels
    if once is None:
        return (None, None, *pairs)
    return pairs if each is not None else (*pairs, None, None)


def _written(levels: Levels, gradients: list[Gradients]) -> Gradients:
    """What the last kernel writes: it does a bias along with its weights, wanted or not."""
    parts = iter(gradients)
    written: Gradients = ()
    for level in levels:
        if level is None:
            written += _MISSING
            continue
        a, v, p, q, p_bias, q_bias = next(parts)
        if p is None and p_bias is not None:
            p = _gradient(level.p)
        if q is None and q_bias is not None:
            q = _gradient(level.q)
        written += a, v, p, q, p_bias, q_bias
    return written


def _projections(level: Level) -> tuple[Tensor, Tensor]:
    a = level.a
    H, B, N = level.trunks, a.shape[0], level.p.shape[-1]
    return a.new_empty(H, B, N), a.new_empty(H, B, N)


def _gradient(tensor: Any) -> Tensor:
    if tensor.is_contiguous():
        return torch.empty_like(tensor)  # which asks less of PyTorch than to name a format
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


# Plans: here tensors have no memory, and all parts a dimension of trunks.


class _Call(NamedTuple):
    """What all plans start from."""

    levels: Levels
    numbers: tuple[int | None, ...]  # sizes and strides of both parts, for the first two kernels
    mask: tuple[int | None, float | None]  # threshold and scale
    dtype: str  # class
    B: int

    @property
    def adaptive(self) -> bool:
        return self.levels.once is not None and self.levels.once.adaptive

    def key(self, kernel: str) -> Key:
        size = "small" if self.B <= 64 else "medium" if self.B <= 1024 else "large"
        return Key(kernel, self.dtype, size)

    def offset(self, config: Config, reach: int = 0) -> tl.dtype:
        """The type that offsets within a tile fit, of operands and of what moves by `reach`."""
        strides = (s for level in self.levels.there for t in level[:4] for s in t.stride())
        reach = max(reach, *strides)
        return tl.int32 if 2 * reach * max(config.blocks.values()) < 2**31 else tl.int64


def _call(
    _: torch.Size, once: Any, each: Any, dropout: float | None, dtype: str, likes: list[Like | None]
) -> _Call:
    tensors = [l if l is None else without_memory(l) for l in likes]
    levels = Levels(_level(tensors[:TENSORS], once), _level(tensors[TENSORS:], each))
    mask = (None, None) if dropout is None else _mask(dropout)
    numbers = (*_numbers(levels.once), *_numbers(levels.each))
    return _Call(levels, numbers, mask, dtype, levels.there[0].a.shape[0])


def _level(tensors: list[Tensor | None], options: tuple[int, bool] | None) -> Level | None:
    if options is None:
        return None
    a, v, p, q, p_bias, q_bias, lengths = tensors
    if p is not None and p.dim() == 2:
        a, v = (t if t is None else t.unsqueeze(1) for t in (a, v))
        p, q, p_bias, q_bias = (t if t is None else t.unsqueeze(0) for t in (p, q, p_bias, q_bias))
    return Level(a, v, p, q, p_bias, q_bias, lengths, *options)  # type: ignore[arg-type]


def _numbers(level: Level | None) -> tuple[int | None, ...]:
    """H, C, D, N, the strides of a, v, p and q, and the two of each bias."""
    if level is None:
        return (None,) * 20
    H, C, N = level.p.shape
    strides = [stride for tensor in level[:4] for stride in tensor.stride()]
    biases = [(None, None) if t is None else t.stride() for t in (level.p_bias, level.q_bias)]
    return (H, C, level.q.shape[1], N, *strides, *biases[0], *biases[1])


def _mask(dropout: float) -> tuple[int, float]:
    scale = 1.0 / (1.0 - dropout) if dropout < 1 else 0.0
    return min(int(dropout * 2**32), 2**32 - 1), scale


def _plan_forward(device: torch.device, *arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    call = _call(*arguments)
    levels, B = call.levels, call.B

    def plan(config: Config) -> Plan:
        rows = math.ceil(B / config.blocks["BLOCK_M"])
        tiles = [rows * _tiles(level, config.blocks["BLOCK_N"]) for level in levels]
        splits = 1
        if levels.each is not None:  # whatever the global part is, so that it changes no sum here
            H = levels.each.a.shape[1]
            splits = max(1, min(H, multiprocessors(device) // tiles[1]))
        columns = _columns(levels, config)
        cells = config.blocks["BLOCK_M"] * columns["BLOCK_O_M"]
        return Plan(
            forward_kernel,
            (tiles[0] + tiles[1] * splits,),
            (*call.numbers, *call.mask, B, rows, splits, tiles[1] * splits),
            columns | {
                "ADAPTIVE": call.adaptive, "PRECISION": tuning.precision(call.dtype),
                "SPLIT": splits > 1, "OFFSET": call.offset(config),
            },
            config,
            scratch=tiles[1] * splits * cells if splits > 1 else 0,
            counters=tiles[1] if splits > 1 else 0,
        )  # fmt: skip

    return call.key("fbp_forward"), plan


class _Scratch(NamedTuple):
    """What the first kernel of the backward leaves for the second, see `bilinear_kernels.ProjectionGradients`."""

    rows: int  # tiles of them
    R: int
    tiles_o: int | None  # of a part with adaptive scales
    biases: list[int | None]  # where they begin, of each part
    numbers: int

    @classmethod
    def of(cls, call: _Call, BLOCK_M: int, BLOCK_N: int) -> "_Scratch":
        rows = math.ceil(call.B / BLOCK_M)
        R = rows * BLOCK_M
        tiles_o = _tiles(call.levels.once, BLOCK_N) if call.adaptive else None
        numbers = 0 if tiles_o is None else 2 * R * (1 + tiles_o)
        biases: list[int | None] = []
        for level in call.levels:
            if level is None or (level.p_bias is None and level.q_bias is None):
                biases.append(None)
            else:
                biases.append(numbers)
                H, _, N = level.p.shape
                numbers += math.ceil(rows * 2 * H * N / 16) * 16  # so that the next one is aligned
        return cls(rows, R, tiles_o, biases, numbers)


def _plan_projection_gradients(
    device: torch.device, *arguments: Any
) -> tuple[Key, Callable[[Config], Plan]]:
    *common, dz_strides = arguments
    call = _call(*common)
    levels = call.levels

    def plan(config: Config) -> Plan:
        BLOCK_M, BLOCK_N = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
        scratch = _Scratch.of(call, BLOCK_M, BLOCK_N)
        tiles = [scratch.rows * _tiles(level, BLOCK_N) for level in levels]
        programs = 0 if levels.each is None else tiles[1] * levels.each.a.shape[1]
        columns = _columns(levels, config)
        del columns["BLOCK_O_G"], columns["BLOCK_O_M"]
        return Plan(
            projection_gradients_kernel,
            (programs + tiles[0],),
            (*dz_strides, *call.numbers, *call.mask, *scratch.biases, call.B, scratch.rows, programs),
            columns | {
                "ADAPTIVE": call.adaptive, "PRECISION": tuning.precision(call.dtype),
                "OFFSET": call.offset(config),
            },
            config,
            scratch=scratch.numbers,
        )  # fmt: skip

    return call.key("fbp_projection_gradients"), plan


def _plan_gradients(device: torch.device, *arguments: Any) -> tuple[Key, Callable[[Config], Plan]]:
    *common, needs, BLOCK_M, BLOCK_N = arguments
    call = _call(*common)
    levels, B = call.levels, call.B
    before = _Scratch.of(call, BLOCK_M, BLOCK_N)

    def plan(config: Config) -> Plan:
        blocks = config.blocks
        rows = math.ceil(B / blocks["BLOCK_M"])
        programs = reach = 0
        for level, due in zip(levels.there, needs, strict=True):
            for second in range(2):
                H, W, N = (level.p, level.q)[second].shape
                reach = max(reach, B * N)
                if due[2 + second] or due[4 + second]:
                    widths = math.ceil(W / blocks["WEIGHT_C"])
                    programs += H * widths * math.ceil(N / blocks["WEIGHT_N"])
                if due[second]:
                    programs += H * rows * math.ceil(W / blocks["BLOCK_C"])
        numbers = [
            (*_numbers(level)[:16], at) for level, at in zip(levels, before.biases, strict=True)
        ]
        return Plan(
            gradients_kernel,
            (programs,),
            (*numbers[0], *numbers[1], before.tiles_o, B, rows, before.rows, before.R),
            {"PRECISION": tuning.precision(call.dtype), "OFFSET": call.offset(config, reach)},
            config,
        )

    return call.key("fbp_gradients"), plan


_forward, _projection_gradients, _gradients = map(
    launcher, (_plan_forward, _plan_projection_gradients, _plan_gradients)
)


def _tiles(level: Level | None, block: int) -> int:
    """How many tiles of outputs a part has."""
    if level is None:
        return 0
    return math.ceil(level.outputs / _groups(level.factor, block, level.a.dtype))


def _groups(factor: int, block: int, dtype: torch.dtype) -> int:
    """Outputs of a tile: as many as its columns hold, but so that tiles begin at 16 bytes where K allows it."""
    groups = max(1, block // factor)
    unit = 16 // dtype.itemsize
    unit //= math.gcd(unit, factor)
    return groups - groups % unit if groups > unit else groups


def _columns(levels: Levels, config: Config) -> dict[str, Any]:
    """The compile-time sizes that follow from K."""
    constants = {"STREAM_G": reference.GLOBAL_STREAM, "STREAM_M": reference.TRUNK_STREAM}
    for name, level in zip("GM", levels, strict=True):
        block = config.blocks["BLOCK_N"]
        K, groups = 0, 1
        if level is not None:
            K, groups = level.factor, _groups(level.factor, block, level.a.dtype)
        constants |= {
            f"K_{name}": K,
            f"GROUPS_{name}": groups,
            f"CHUNKS_{name}": math.ceil(groups * K / block),
            f"BLOCK_O_{name}": max(16, 1 << (groups - 1).bit_length()),
        }
    return constants


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
