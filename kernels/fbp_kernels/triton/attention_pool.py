"""Attention over frames: scores, softmax and the sums over clip and trunks in one launch, its gradients in three.

A program has BT frames of one row. Frames from the row's length on are never read, whatever they hold.

Shapes: x (B, T, C), weight (C, A), H trunks, n frames of a row that count.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, tuning
from .functions import arrive, carry
from .launch import Like, Plan
from .tuning import Config, Key


class Strided(NamedTuple):
    """A tensor that a kernel reads, any strides; its data is None where there is none.

    Kernels take flat arguments, for a launch is prepared from those, and put them together.
    """

    data: Any
    s0: Any
    s1: Any = 0
    s2: Any = 0


# What the programs share


@triton.jit
def _length(lengths, row, T):
    """How many frames of a row count; never more than there are, for they are read."""
    n = T
    if lengths is not None:
        n = tl.minimum(tl.maximum(tl.load(lengths + row), 0), T).to(tl.int32)
    return n


@triton.jit
def _scale(scale, factor):
    """The factor of the scores: a number, or a tensor's value (then the number is 1)."""
    value = factor
    if scale is not None:
        value = tl.load(scale).to(tl.float32) * factor
    return value


@triton.jit
def _trunk(frame, H, n):
    """The trunk that a frame falls in: the last h with floor(h n / H) <= frame."""
    return (((frame + 1).to(tl.int64) * H - 1) // n).to(tl.int32)


@triton.jit
def _load(tensor, i, j, mask):
    """A tile of a matrix, zeros outside of the mask; 64-bit offsets, for any strides."""
    offsets = i.to(tl.int64)[:, None] * tensor.s0 + j.to(tl.int64)[None, :] * tensor.s1
    return tl.load(tensor.data + offsets, mask=mask, other=0.0)


@triton.jit
def _load_frames(x, row, frame, c, mask):
    """A tile of one row of x (frames x channels), zeros outside of the mask."""
    offsets = frame.to(tl.int64)[:, None] * x.s1 + c.to(tl.int64)[None, :] * x.s2
    return tl.load(x.data + row.to(tl.int64) * x.s0 + offsets, mask=mask, other=0.0)


@triton.jit
def _in_tile(a, A, BT: tl.constexpr):
    """Offsets of some columns of the hidden layer in a tile of frames."""
    return tl.arange(0, BT)[:, None] * A + a[None, :]


@triton.jit
def _load_vector(vector, i, mask):
    return tl.load(vector.data + i.to(tl.int64) * vector.s0, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _tanh(x):
    """tanh of a float32, about as exact as its rounding, and its slope, with digits where 1 - tanh^2 has none left."""
    size = tl.abs(x)
    decay = tl.exp(-2.0 * size)
    square = size * size
    # Either way the answer is a number less a small one, so that what rounds the small one hardly counts: 1 less what
    # is missing to it or, near 0, x less x - tanh(x), that by four terms of Lambert's continued fraction.
    near = size < 0.875
    above = tl.where(near, size * square * (315.0 + square * 14.0), 2.0 * decay)
    below = tl.where(near, 945.0 + square * (420.0 + square * 15.0), 1.0 + decay)
    small = above / below
    y = tl.where(near, size, 1.0) - small
    slope = tl.where(near, 1.0 - y * y, small * (2.0 - small))
    return tl.where(x < 0, -y, y), slope


@triton.jit
def _hidden(
    x, weight, bias, row, frame, alive, a, C, A,
    BT: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x weight + bias of some frames and columns (BT, BA), before the tanh."""
    acc = tl.zeros((BT, BA), tl.float32)
    total = acc
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        frames = _load_frames(x, row, frame, c, alive[:, None] & (c < C)[None, :])  # (BT, BC)
        columns = _load(weight, c, a, (c < C)[:, None] & (a < A)[None, :])  # (BC, BA)
        acc = tl.dot(frames, columns, acc, input_precision=PRECISION)
        if PRECISION == "ieee":
            total, acc = carry(total, acc, c0, BC)
    if PRECISION == "ieee":
        acc += total
    return acc + _load_vector(bias, a, a < A)[None, :]


# Forward


@triton.jit
def _left(scratch, B, T, tiles, C, H):
    """Where programs leave sums (B, tiles + H - 1, C), scores (B, T), tops (B, tiles) and totals (B, tiles).

    Asked for where they are needed: pointers that wait take registers from the products.
    """
    rows = tl.cast(B, tl.int64)
    scores = scratch + rows * (tiles + H - 1) * C
    tops = scores + rows * T
    return scratch, scores, tops, tops + rows * tiles


@triton.jit(do_not_specialize=["B", "T"])
def forward_kernel(
    x, weight, bias, query, scale, lengths, hidden, pooled, trunk_pooled, weights, scratch, counters,
    x0, x1, x2, weight0, weight1, bias0, query0, factor, B, T, C, A, H,
    BT: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, their maximum and the sums weighted relative to it; the last of a row joins the tiles.

    Grid: rows times tiles of frames. The sum of tile i for trunk h goes to slot i + h of the row: tiles and trunks
    both follow the frames, so no two sums want the same slot and tiles + H - 1 are enough. `hidden` (B, T, A) is
    what is kept for the backward, zeros at frames that do not count.
    """
    x, weight = Strided(x, x0, x1, x2), Strided(weight, weight0, weight1)
    bias, query = Strided(bias, bias0), Strided(query, query0)
    tiles = tl.maximum(tl.cdiv(T, BT), 1)
    row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    n = _length(lengths, row, T)
    start = tile * BT
    frame = start + tl.arange(0, BT)
    first_frame = row.to(tl.int64) * T
    padding = (frame >= n) & (frame < T)
    tl.store(weights + first_frame + frame, tl.zeros((BT,), weights.dtype.element_ty), mask=padding)
    if hidden is not None:
        hidden += (first_frame + start) * A
        for a0 in range(0, A, BA):
            a = a0 + tl.arange(0, BA)
            zeros = tl.zeros((BT, BA), hidden.dtype.element_ty)
            mask = padding[:, None] & (a < A)[None, :]
            tl.store(hidden + _in_tile(a, A, BT), zeros, mask=mask)
    if start < n:
        alive = frame < n
        score = tl.zeros((BT,), tl.float32)
        for a0 in range(0, A, BA):
            a = a0 + tl.arange(0, BA)
            y, _ = _tanh(
                _hidden(x, weight, bias, row, frame, alive, a, C, A, BT, BA, BC, PRECISION)
            )
            score += tl.sum(y * _load_vector(query, a, a < A)[None, :], 1)
            if hidden is not None:
                mask = alive[:, None] & (a < A)[None, :]
                y = y.to(hidden.dtype.element_ty)
                tl.store(hidden + _in_tile(a, A, BT), y, mask=mask)
        # Scaled after the difference to the top, which saves the scores that count a rounding.
        slope = _scale(scale, factor)
        score = tl.where(slope < 0, -score, score)
        sums, scores, tops, totals = _left(scratch, B, T, tiles, C, H)
        tl.store(scores + first_frame + frame, score, mask=alive)
        top = tl.max(tl.where(alive, score, -float("inf")), 0)
        share = tl.where(alive, tl.exp(tl.abs(slope) * (score - top)), 0.0)
        tl.store(tops + row * tiles + tile, top)
        tl.store(totals + row * tiles + tile, tl.sum(share, 0))
        trunk = _trunk(frame, H, n)
        last = _trunk(tl.minimum(start + BT, n) - 1, H, n)
        slots = sums + (row.to(tl.int64) * (tiles + H - 1) + tile) * C
        for h0 in range(_trunk(start, H, n), last + 1, BH):
            h = h0 + tl.arange(0, BH)
            shares = tl.where(h[:, None] == trunk[None, :], share[None, :], 0.0)  # (BH, BT)
            shares = shares.to(weights.dtype.element_ty)
            for c0 in range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                frames = _load_frames(x, row, frame, c, alive[:, None] & (c < C)[None, :])
                partial_sum = tl.dot(shares, frames, input_precision=PRECISION)  # (BH, BC)
                offsets = h.to(tl.int64)[:, None] * C + c[None, :]
                tl.store(slots + offsets, partial_sum, mask=(h <= last)[:, None] & (c < C)[None, :])
    if (start < n) | (tile == 0):  # a row without frames has one program, to write its zeros
        last_of_row = arrive(counters + row, tl.maximum(tl.cdiv(n, BT), 1))
        if last_of_row:
            _join(
                pooled, trunk_pooled, weights, scratch, tl.abs(_scale(scale, factor)),
                row, n, tiles, B, T, C, H, BT, BC, BH,
            )  # fmt: skip


@triton.jit
def _join(
    pooled, trunk_pooled, weights, scratch, slope, row, n, tiles, B, T, C, H,
    BT: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The results of a row from those of its tiles, in the order of the tiles."""
    sums, scores, tops, totals = _left(scratch, B, T, tiles, C, H)
    tops += row * tiles
    totals += row * tiles
    sums += row.to(tl.int64) * (tiles + H - 1) * C
    top = -float("inf")
    for i0 in range(0, tl.cdiv(n, BT), 64):
        i = i0 + tl.arange(0, 64)
        there = i * BT < n
        some = tl.load(tops + i, mask=there, other=-float("inf"), cache_modifier=".cg")
        top = tl.maximum(top, tl.max(some, 0))
    total = 0.0
    for i0 in range(0, tl.cdiv(n, BT), 64):
        i = i0 + tl.arange(0, 64)
        there = i * BT < n
        some = tl.load(tops + i, mask=there, other=0.0, cache_modifier=".cg")
        part = tl.load(totals + i, mask=there, other=0.0, cache_modifier=".cg")
        total += tl.sum(tl.where(there, part * tl.exp(slope * (some - top)), 0.0), 0)
    total = tl.where(n > 0, total, 1.0)

    for t0 in range(0, n, 1024):
        t = t0 + tl.arange(0, 1024)
        at = row.to(tl.int64) * T + t
        score = tl.load(scores + at, mask=t < n, other=0.0, cache_modifier=".cg")
        weight = tl.exp(slope * (score - top)) / total
        tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=t < n)

    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        over_trunks = tl.zeros((BC,), tl.float32)
        for h0 in range(0, H, BH):
            h = h0 + tl.arange(0, BH)
            low = (h.to(tl.int64) * n // H).to(tl.int32)
            high = ((h.to(tl.int64) + 1) * n // H).to(tl.int32)  # past the trunk's last frame
            first = low // BT
            count = tl.where((high > low) & (h < H), (high - 1) // BT - first + 1, 0)
            acc = tl.zeros((BH, BC), tl.float32)
            sum_of_tiles = acc
            for j in range(0, tl.max(count, 0)):
                i = first + j
                there = j < count
                some = tl.load(tops + i, mask=there, other=0.0, cache_modifier=".cg")
                share = tl.where(there, tl.exp(slope * (some - top)) / total, 0.0)
                offsets = (i + h).to(tl.int64)[:, None] * C + c[None, :]
                mask = there[:, None] & (c < C)[None, :]
                part = tl.load(sums + offsets, mask=mask, other=0.0, cache_modifier=".cg")
                acc += part * share[:, None]
                sum_of_tiles, acc = carry(sum_of_tiles, acc, j, 1)
            acc += sum_of_tiles
            offsets = (row.to(tl.int64) * H + h)[:, None] * C + c[None, :]
            mask = (h < H)[:, None] & (c < C)[None, :]
            tl.store(trunk_pooled + offsets, acc.to(trunk_pooled.dtype.element_ty), mask=mask)
            over_trunks += tl.sum(acc, 0)
        at = row.to(tl.int64) * C + c
        tl.store(pooled + at, over_trunks.to(pooled.dtype.element_ty), mask=c < C)


# Backward


@triton.jit
def _load_gradient(d_pooled, d_trunks, row, trunk, c, mask):
    """The gradient of what each frame's weight multiplies x into: its clip's plus its trunk's, float32."""
    gradient = tl.zeros(mask.shape, tl.float32)
    if d_pooled.data is not None:
        at = row.to(tl.int64) * d_pooled.s0 + c.to(tl.int64) * d_pooled.s1
        gradient += tl.load(d_pooled.data + at[None, :], mask=mask, other=0.0).to(tl.float32)
    if d_trunks.data is not None:
        gradient += _load_frames(d_trunks, row, trunk, c, mask).to(tl.float32)
    return gradient


@triton.jit(do_not_specialize=["B", "T"])
def weights_backward_kernel(
    d_pooled, d_trunks, d_weights, x, lengths, weights, scratch,
    d_pooled0, d_pooled1, d_trunks0, d_trunks1, d_trunks2, d_weights0, d_weights1, x0, x1, x2,
    B, T, C, H, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """gamma, the gradient of each frame's weight, and the tile's part of its mean under the weights.

    Both in scratch: (B, T), and behind it (B, tiles).
    """
    d_pooled = Strided(d_pooled, d_pooled0, d_pooled1)
    d_trunks = Strided(d_trunks, d_trunks0, d_trunks1, d_trunks2)
    d_weights, x = Strided(d_weights, d_weights0, d_weights1), Strided(x, x0, x1, x2)
    gamma = scratch
    means = gamma + tl.cast(B, tl.int64) * T
    tiles = tl.cdiv(T, BT)
    row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    n = _length(lengths, row, T)
    if tile * BT < n:
        frame = tile * BT + tl.arange(0, BT)
        alive = frame < n
        at = row.to(tl.int64) * T + frame
        acc = tl.zeros((BT,), tl.float32)
        if d_weights.data is not None:
            d_at = row.to(tl.int64) * d_weights.s0 + frame.to(tl.int64) * d_weights.s1
            acc += tl.load(d_weights.data + d_at, mask=alive, other=0.0).to(tl.float32)
        trunk = _trunk(frame, H, n)
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            mask = alive[:, None] & (c < C)[None, :]
            frames = _load_frames(x, row, frame, c, mask).to(tl.float32)
            acc += tl.sum(frames * _load_gradient(d_pooled, d_trunks, row, trunk, c, mask), 1)
        tl.store(gamma + at, acc, mask=alive)
        weight = tl.load(weights + at, mask=alive, other=0.0).to(tl.float32)
        tl.store(means + row * tiles + tile, tl.sum(weight * acc, 0))


@triton.jit(do_not_specialize=["B", "T"])
def inputs_backward_kernel(
    d_pooled, d_trunks, x, weight, bias, query, scale, lengths, weights, kept, gamma, dx, d_hidden,
    parts,
    d_pooled0, d_pooled1, d_trunks0, d_trunks1, d_trunks2, x0, x1, x2, weight0, weight1, bias0,
    query0, factor, B, T, C, A, H,
    GT: tl.constexpr, BT: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients before the tanh, kept for the weight's; from them dx, and parts of the vectors' gradients.

    Grid: rows times tiles of frames. GT is the tile of the kernel that wrote `gamma`, and the means behind it. `kept`
    is the hidden layer, which is computed again where there is none. `parts` has a row for each program: its part of
    the gradients of bias (A), query (A) and scale (1).
    """
    d_pooled = Strided(d_pooled, d_pooled0, d_pooled1)
    d_trunks = Strided(d_trunks, d_trunks0, d_trunks1, d_trunks2)
    x, weight = Strided(x, x0, x1, x2), Strided(weight, weight0, weight1)
    bias, query = Strided(bias, bias0), Strided(query, query0)
    means = gamma + tl.cast(B, tl.int64) * T
    tiles = tl.cdiv(T, BT)
    row = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    program = tl.program_id(0).to(tl.int64)
    n = _length(lengths, row, T)
    start = tile * BT
    frame = start + tl.arange(0, BT)
    alive = frame < n
    at = row.to(tl.int64) * T + frame
    hidden = Strided(d_hidden + row.to(tl.int64) * T * A, A, 1)

    d_score = tl.zeros((BT,), tl.float32)
    value = tl.zeros((BT,), tl.float32)
    if start < n:
        groups = tl.cdiv(T, GT)
        mean = 0.0
        for i0 in range(0, tl.cdiv(n, GT), 64):
            i = i0 + tl.arange(0, 64)
            mean += tl.sum(tl.load(means + row * groups + i, mask=i * GT < n, other=0.0), 0)
        value = tl.load(weights + at, mask=alive, other=0.0).to(tl.float32)
        # Where a row has one frame only, both are the same number and the difference is exactly 0.
        d_score = value * (tl.load(gamma + at, mask=alive, other=0.0) - mean)
        d_score = tl.where(alive, d_score, 0.0)

    d_tanh = d_score * _scale(scale, factor)
    plain = tl.zeros((BT,), tl.float32)  # the score before the scale
    for a0 in range(0, A, BA):
        a = a0 + tl.arange(0, BA)
        bias_part = tl.zeros((BA,), tl.float32)
        query_part = tl.zeros((BA,), tl.float32)
        if start < n:
            if kept is not None:
                own = kept + (row.to(tl.int64) * T + start) * A
                mask = alive[:, None] & (a < A)[None, :]
                y = tl.load(own + _in_tile(a, A, BT), mask=mask, other=0.0).to(tl.float32)
                slope = (1.0 - y) * (1.0 + y)
            else:
                y, slope = _tanh(
                    _hidden(x, weight, bias, row, frame, alive, a, C, A, BT, BA, BC, PRECISION)
                )
            q = _load_vector(query, a, a < A)[None, :]
            gradient = d_tanh[:, None] * q * slope
            mask = alive[:, None] & (a < A)[None, :]
            offsets = frame.to(tl.int64)[:, None] * A + a[None, :]
            tl.store(hidden.data + offsets, gradient.to(x.data.dtype.element_ty), mask=mask)
            bias_part = tl.sum(gradient, 0)
            query_part = tl.sum(d_tanh[:, None] * y, 0)
            plain += tl.sum(y * q, 1)
        if parts is not None:
            part = parts + program * (2 * A + 1)
            tl.store(part + a, bias_part, mask=a < A)
            tl.store(part + A + a, query_part, mask=a < A)
    if parts is not None:
        tl.store(parts + program * (2 * A + 1) + 2 * A, tl.sum(d_score * plain, 0) * factor)

    if dx is not None:
        tl.debug_barrier()  # every thread has written its part of the gradients that all now read
        trunk = _trunk(frame, H, tl.maximum(n, 1))
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            acc = tl.zeros((BT, BC), tl.float32)
            total = acc
            if start < n:
                for a0 in range(0, A, BA):
                    a = a0 + tl.arange(0, BA)
                    gradient = _load(hidden, frame, a, alive[:, None] & (a < A)[None, :])
                    offsets = (
                        c.to(tl.int64)[None, :] * weight.s0 + a.to(tl.int64)[:, None] * weight.s1
                    )
                    mask = (c < C)[None, :] & (a < A)[:, None]
                    rows = tl.load(weight.data + offsets, mask=mask, other=0.0)  # (BA, BC)
                    acc = tl.dot(gradient, rows, acc, input_precision=PRECISION)
                    if PRECISION == "ieee":
                        total, acc = carry(total, acc, a0, BA)
                if PRECISION == "ieee":
                    acc += total
                mask = alive[:, None] & (c < C)[None, :]
                acc += value[:, None] * _load_gradient(d_pooled, d_trunks, row, trunk, c, mask)
            offsets = at[:, None] * C + c[None, :]
            mask = (frame < T)[:, None] & (c < C)[None, :]
            tl.store(dx + offsets, acc.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _sum_rows(rows, columns, width, first, last, BP: tl.constexpr):
    """The sum of rows first..last - 1 of a float32 matrix, at some of its columns."""
    acc = tl.zeros(columns.shape, tl.float32)
    total = acc
    for p0 in range(first, last, BP):
        p = p0 + tl.arange(0, BP)
        offsets = p.to(tl.int64)[:, None] * width + columns[None, :]
        mask = (p < last)[:, None] & (columns < width)[None, :]
        acc += tl.sum(tl.load(rows + offsets, mask=mask, other=0.0, cache_modifier=".cg"), 0)
        total, acc = carry(total, acc, p0 - first, BP)
    return total + acc


@triton.jit
def _vectors(scratch, d_weight, splits, C, A):
    """Where splits leave their sums for the vectors, (splits, 2 A + 1): behind the weight's, (splits, C, A)."""
    if d_weight is not None:
        scratch += tl.cast(splits, tl.int64) * C * A
    return scratch


@triton.jit(do_not_specialize=["B", "T", "programs", "splits"])
def parameters_backward_kernel(
    x, lengths, parts, d_weight, d_bias, d_query, d_scale, d_hidden, scratch, counters,
    x0, x1, x2, B, T, C, A, programs, splits,
    BT: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of the parameters, sums over all frames: split, and joined by the last split of a tile.

    Grid: splits of the frames times tiles (BC, BA) of the weight. The first row of tiles does the vectors as well,
    whose parts the kernel before has left in `parts`. Without `d_weight` there are the vectors only.
    """
    x = Strided(x, x0, x1, x2)
    columns = tl.cdiv(A, BA)
    outputs = columns
    if d_weight is not None:
        outputs = columns * tl.cdiv(C, BC)
    output = tl.program_id(0) % outputs
    split = tl.program_id(0) // outputs
    a = output % columns * BA + tl.arange(0, BA)
    width = 2 * A + 1
    if output < columns:
        per_split = tl.cdiv(programs, splits)
        first = split * per_split
        last = tl.minimum(first + per_split, programs)
        mine = _vectors(scratch, d_weight, splits, C, A) + split * width
        tl.store(mine + a, _sum_rows(parts, a, width, first, last, BP), mask=a < A)
        tl.store(mine + A + a, _sum_rows(parts, A + a, width, first, last, BP), mask=a < A)
        if output == 0:
            end = 2 * A + tl.arange(0, 16)  # of which the first is the last column there is
            tl.store(mine + end, _sum_rows(parts, end, width, first, last, BP), mask=end < width)
    if d_weight is not None:
        c = output // columns * BC + tl.arange(0, BC)
        offsets = c.to(tl.int64)[:, None] * A + a[None, :]
        mask = (c < C)[:, None] & (a < A)[None, :]
        tiles = tl.cdiv(T, BT)
        per_split = tl.cdiv(B * tiles, splits)
        first = split * per_split
        acc = tl.zeros((BC, BA), tl.float32)
        total = acc
        for unit in range(first, tl.minimum(first + per_split, B * tiles)):
            row = unit // tiles
            n = _length(lengths, row, T)
            t = unit % tiles * BT + tl.arange(0, BT)
            alive = t < n
            frames = _load_frames(x, row, t, c, alive[:, None] & (c < C)[None, :])  # (BT, BC)
            at = (row.to(tl.int64) * T + t)[:, None] * A + a[None, :]
            gradient = tl.load(d_hidden + at, mask=alive[:, None] & (a < A)[None, :], other=0.0)
            acc = tl.dot(tl.trans(frames), gradient, acc, input_precision=PRECISION)
            if PRECISION == "ieee":
                total, acc = carry(total, acc, (unit - first) * BT, BT)
        if PRECISION == "ieee":
            acc += total
        tl.store(scratch + split.to(tl.int64) * C * A + offsets, acc, mask=mask)
    if arrive(counters + output, splits):
        if d_weight is not None:
            acc = tl.zeros((BC, BA), tl.float32)
            part = scratch + offsets
            for _ in range(0, splits):
                acc += tl.load(part, mask=mask, other=0.0, cache_modifier=".cg")
                part += C * A
            tl.store(d_weight + offsets, acc.to(d_weight.dtype.element_ty), mask=mask)
        if output < columns:
            vectors = _vectors(scratch, d_weight, splits, C, A)
            if d_bias is not None:
                _join_rows(d_bias, a, a < A, vectors, a, width, splits, BP)
            if d_query is not None:
                _join_rows(d_query, a, a < A, vectors, A + a, width, splits, BP)
            if d_scale is not None:
                end = tl.arange(0, 16)
                here = end + output == 0  # one element, of one program
                _join_rows(d_scale, end, here, vectors, 2 * A + end, width, splits, BP)


@triton.jit
def _join_rows(target, at, mask, rows, columns, width, count, BP: tl.constexpr):
    total = _sum_rows(rows, columns, width, 0, count, BP)
    tl.store(target + at, total.to(target.dtype.element_ty), mask=mask)


# Launchers

_X, _WEIGHT, _BIAS, _QUERY, _SCALE = (1 << i for i in range(5))  # bits of `needs`
_SPLITS = 16  # at most, for one program adds them up


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: Tensor | None,
    lengths: Tensor | None,
    trunks: int,
    factor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The results of `fbp_kernels.attention_pool`, and the hidden layer or None.

    The scores are multiplied by `scale` and by `factor`.
    """
    B, T, C = x.shape
    hidden = x.new_empty(B, T, weight.shape[1]) if keep else None
    pooled, trunk_pooled = x.new_empty(B, C), x.new_empty(B, trunks, C)
    weights = x.new_empty(B, T)
    if B:
        given = (x, weight, bias, query)
        _forward(
            (x.shape, trunks, factor, tuning.dtype_class(x.dtype), *launch.likes(given)),
            (*given, scale, lengths, hidden, pooled, trunk_pooled, weights),
        )
    return pooled, trunk_pooled, weights, hidden


def backward(
    d_pooled: Tensor | None,
    d_trunks: Tensor | None,
    d_weights: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    query: Tensor,
    scale: Tensor | None,
    lengths: Tensor | None,
    weights: Tensor,
    hidden: Tensor | None,
    trunks: int,
    factor: float,
    needs: int,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, query and scale, of which `needs` says by bits which are due."""
    B, T, _ = x.shape
    weights = weights.contiguous()
    hidden = None if hidden is None else hidden.contiguous()
    gradients = tuple(
        [
            torch.empty_like(t, memory_format=torch.contiguous_format)
            if t is not None and needs >> i & 1
            else None
            for i, t in enumerate((x, weight, bias, query, scale))
        ]
    )
    dx, *d_parameters = gradients
    parameters = bool(needs & ~_X)
    dtype = tuning.dtype_class(x.dtype)
    d_hidden = x.new_empty(B, T, weight.shape[1])
    parts, programs = None, 0
    if B and T:
        strides = [None if d is None else d.stride() for d in (d_pooled, d_trunks, d_weights)]
        plan, gamma = _weights(
            (x.shape, trunks, dtype, *launch.likes((x,)), *strides),
            (d_pooled, d_trunks, d_weights, x, lengths, weights),
        )
        given = (x, weight, bias, query)
        plan, parts = _inputs(
            (
                x.shape, trunks, factor, dtype, parameters, plan.config.blocks["BT"], *strides[:2],
                *launch.likes(given),
            ),
            (d_pooled, d_trunks, *given, scale, lengths, weights, hidden, gamma, dx, d_hidden),
        )  # fmt: skip
        (programs,) = plan.grid
    if parameters:
        parts = x.new_empty(0, dtype=torch.float32) if parts is None else parts
        _parameters(
            (x.shape, weight.shape[1], programs, dtype, bool(needs & _WEIGHT), *launch.likes((x,))),
            (x, lengths, parts, *d_parameters, d_hidden),
        )
    return gradients


_Planned = tuple[Key, Callable[[Config], Plan]]
Strides = tuple[int, ...] | None


def _plan_forward(
    device: torch.device, shape: torch.Size, trunks: int, factor: float, dtype: str, *given: Like
) -> _Planned:  # fmt: skip
    B, T, C = shape
    A = given[1][0][1]

    def plan(config: Config) -> Plan:
        tiles = max(triton.cdiv(T, config.blocks["BT"]), 1)
        return Plan(
            forward_kernel,
            (B * tiles,),
            (*_strides(*given), factor, B, T, C, A, trunks),
            {"PRECISION": tuning.precision(dtype)},
            config,
            scratch=B * ((tiles + trunks - 1) * C + T + 2 * tiles),
            counters=B,
        )

    return _key("forward", dtype, shape), plan


def _plan_weights(
    device: torch.device, shape: torch.Size, trunks: int, dtype: str, x: Like, *gradients: Strides
) -> _Planned:
    B, T, C = shape
    strides = (*_gradient_strides(*gradients), *_strides(x))

    def plan(config: Config) -> Plan:
        tiles = triton.cdiv(T, config.blocks["BT"])
        numbers = (*strides, B, T, C, trunks)
        scratch = B * (T + tiles)
        return Plan(weights_backward_kernel, (B * tiles,), numbers, {}, config, scratch=scratch)

    return _key("weights_backward", dtype, shape), plan


def _plan_inputs(
    device: torch.device, shape: torch.Size, trunks: int, factor: float, dtype: str,
    parameters: bool, GT: int, d_pooled: Strides, d_trunks: Strides, *given: Like,
) -> _Planned:  # fmt: skip
    B, T, C = shape
    A = given[1][0][1]
    strides = (*_gradient_strides(d_pooled, d_trunks), *_strides(*given))

    def plan(config: Config) -> Plan:
        programs = B * triton.cdiv(T, config.blocks["BT"])
        return Plan(
            inputs_backward_kernel,
            (programs,),
            (*strides, factor, B, T, C, A, trunks),
            {"GT": GT, "PRECISION": tuning.precision(dtype)},
            config,
            scratch=programs * (2 * A + 1) if parameters else 0,
        )

    return _key("inputs_backward", dtype, shape), plan


def _plan_parameters(
    device: torch.device, shape: torch.Size, A: int, programs: int, dtype: str, weighted: bool,
    x: Like,
) -> _Planned:  # fmt: skip
    B, T, C = shape

    def plan(config: Config) -> Plan:
        tiles = triton.cdiv(A, config.blocks["BA"])
        if weighted:
            tiles *= triton.cdiv(C, config.blocks["BC"])
        splits = min(_SPLITS, max(1, launch.multiprocessors(device) // tiles))
        return Plan(
            parameters_backward_kernel,
            (tiles * splits,),
            (*_strides(x), B, T, C, A, programs, splits),
            {"PRECISION": tuning.precision(dtype)},
            config,
            scratch=splits * (C * A * weighted + 2 * A + 1),
            counters=tiles,
        )

    return _key("parameters_backward", dtype, shape), plan


_forward, _weights = launch.launcher(_plan_forward), launch.launcher(_plan_weights)
_inputs, _parameters = launch.launcher(_plan_inputs), launch.launcher(_plan_parameters)


def _key(kernel: str, dtype: str, shape: torch.Size) -> Key:
    frames = shape[0] * shape[1]
    size = "small" if frames < 2**14 else "medium" if frames < 2**17 else "large"
    return Key(f"attention_pool_{kernel}", dtype, size)


def _strides(*likes: Like) -> list[int]:
    return [stride for _, strides, _ in likes for stride in strides]


def _gradient_strides(*gradients: Strides) -> list[int | None]:
    """Of those of pooled, trunk_pooled and weights, of which any may be missing."""
    found: list[int | None] = []
    for strides, dimensions in zip(gradients, (2, 3, 2), strict=False):
        found += (None,) * dimensions if strides is None else strides
    return found


def _product(*pipelines: tuple[int, int], **blocks: tuple[int, ...]) -> list[Config]:
    return [
        Config(dict(zip(blocks, sizes, strict=True)), warps, stages)
        for sizes in product(*blocks.values())
        for warps, stages in pipelines
    ]


_PIPELINES = (4, 3), (8, 2), (8, 3), (8, 4)

# What a search on a device tries. A launch reads x once for each BA columns of the weight.
CANDIDATES = {
    "attention_pool_forward": _product(
        *_PIPELINES, BT=(32, 64, 128), BA=(64, 128, 256), BC=(32, 64), BH=(16,)
    ),
    "attention_pool_weights_backward": _product(
        (2, 2), (4, 2), (8, 2), BT=(8, 16, 32, 64), BC=(64, 128, 256)
    ),
    "attention_pool_inputs_backward": _product(
        *_PIPELINES, BT=(32, 64, 128), BA=(32, 64, 128), BC=(32, 64)
    ),
    "attention_pool_parameters_backward": _product(
        *_PIPELINES, BT=(32, 64), BA=(64, 128), BC=(64, 128), BP=(4, 16)
    ),
}

# By class of size: B, T, C, A, H; voices of the paper's length, a larger batch, and throughput.
SAMPLES = {
    "small": (32, 300, 256, 128, 8),
    "medium": (256, 300, 256, 128, 8),
    "large": (256, 1000, 512, 256, 8),
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
    B, T, C, A, H = SAMPLES[size]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, weight, bias, query, scale = (
        draw(B, T, C),
        draw(C, A).mul_(C**-0.5),
        draw(A),
        draw(A),
        draw(),
    )
    d_pooled, d_trunks, d_weights = draw(B, C), draw(B, H, C), draw(B, T)

    def train(
        d_weights: Tensor | None,
        scale: Tensor | None,
        lengths: Tensor | None,
        keep: bool,
        needs: int,
    ) -> Callable[[], object]:
        def call() -> object:
            results = forward(x, weight, bias, query, scale, lengths, H, 1.0, keep)
            gradients = backward(
                d_pooled, d_trunks, d_weights,
                x, weight, bias, query, scale, lengths, *results[2:], H, 1.0, needs,
            )  # fmt: skip
            return results, gradients

        return call

    lengths = torch.full((B,), T, dtype=torch.int64, device=device)
    parameters = _X | _WEIGHT | _BIAS | _QUERY
    return [
        train(None, None, None, True, parameters),
        train(d_weights, scale, lengths, False, parameters | _SCALE),
    ]
