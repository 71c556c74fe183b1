"""Device code of factorized bilinear pooling; `bilinear` starts it.

Everything works on parts: the global part is one trunk. A part's operands are (B, H, C), (B, H, D), (H, C, N) and
(H, D, N) with N = O * K, column o * K + k factor k of output o. Names: rows are rows of the batch, columns those of N.

A program's tile has the columns of GROUPS whole outputs: GROUPS * K of them, in CHUNKS chunks of BLOCK_N. Only K above
BLOCK_N makes that more than one.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .functions import arrive, carry, swizzle


class Operand(NamedTuple):
    """A tensor of three dimensions and its strides, in elements."""

    data: Any
    stride0: Any
    stride1: Any
    stride2: Any


class Part(NamedTuple):
    """One level of pooling. What is missing is None, a compile-time constant.

    Kernels take flat arguments, for a launch is prepared from those, and put them together here.
    """

    a: Any  # Operand (B, H, C)
    v: Any  # Operand (B, H, D)
    p: Any  # Operand (H, C, N)
    q: Any  # Operand (H, D, N)
    p_bias: Any  # Operand (H, 1, N)
    q_bias: Any
    lengths: Any  # (B,) int64
    u: Any  # (H, B, N) contiguous: a p, kept by the forward; in the backward where they were kept
    w: Any  # (H, B, N) contiguous: v q
    H: Any
    C: Any
    D: Any
    N: Any


class Mask(NamedTuple):
    """What product dropout follows from."""

    seed: Any  # int64 scalar tensor, None where nothing drops
    threshold: Any  # words of the generator below it drop their element
    scale: Any  # of what is kept


@triton.jit
def project(
    x, weight, h, width, row0, alive, column0, inside,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    NORMS: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The rows of a trunk times columns of its weights, (BLOCK_M, BLOCK_N), and the rows' sums of squares.

    Offsets within a tile have the type OFFSET: 32 bits take half the registers. What is not alive is not read: it
    counts as 0, whatever it is. Sums are in pieces where products are exact, for nothing coarser hides what one running
    sum is off by.
    """
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    product_total = product
    squares = tl.zeros((BLOCK_M,), tl.float32)
    squares_total = squares
    m = tl.arange(0, BLOCK_M).to(OFFSET)
    n = tl.arange(0, BLOCK_N).to(OFFSET)
    c = tl.arange(0, BLOCK_C).to(OFFSET)
    x_tile = x.data + h * x.stride1 + tl.cast(row0, tl.int64) * x.stride0
    weight_tile = weight.data + h * weight.stride0 + tl.cast(column0, tl.int64) * weight.stride2
    x_offsets = m[:, None] * x.stride0 + c[None, :] * x.stride2
    weight_offsets = c[:, None] * weight.stride1 + n[None, :] * weight.stride2
    for first in range(0, width, BLOCK_C):
        left = c < width - first
        x_block = tl.load(x_tile + x_offsets, mask=alive[:, None] & left[None, :], other=0.0)
        weight_block = tl.load(
            weight_tile + weight_offsets, mask=left[:, None] & inside[None, :], other=0.0
        )
        product = tl.dot(x_block, weight_block, product, input_precision=PRECISION)
        if NORMS:
            wide = x_block.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
        if PRECISION == "ieee":
            product_total, product = carry(product_total, product, first, BLOCK_C)
            squares_total, squares = carry(squares_total, squares, first, BLOCK_C)
        x_tile += tl.cast(x.stride2, tl.int64) * BLOCK_C
        weight_tile += tl.cast(weight.stride1, tl.int64) * BLOCK_C
    if PRECISION == "ieee":
        product += product_total
        squares += squares_total
    return product, squares


@triton.jit
def sum_of_squares(x, width, rows, alive, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of each row of the only trunk, (BLOCK_M,)."""
    c = tl.arange(0, BLOCK_C)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    total = squares
    for first in range(0, width, BLOCK_C):
        block = tl.load(
            x.data + rows[:, None] * x.stride0 + (first + c)[None, :] * x.stride2,
            mask=alive[:, None] & (first + c < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        squares += tl.sum(block * block, 1)
        total, squares = carry(total, squares, first, BLOCK_C)
    return total + squares


@triton.jit
def row_scales(a_squares, v_squares):
    """mu and eta from sums of squares, and the two norms; 0.5 each where both norms are 0."""
    a_norm = tl.sqrt_rn(a_squares)
    v_norm = tl.sqrt_rn(v_squares)
    total = a_norm + v_norm
    silent = total == 0
    safe = tl.where(silent, 1.0, total)
    mu = tl.where(silent, 0.5, a_norm / safe)
    eta = tl.where(silent, 0.5, v_norm / safe)
    return mu, eta, a_norm, v_norm


@triton.jit
def biased(projection, scale, bias, h, columns, inside, SCALED: tl.constexpr):
    """scale * projection + bias, of which either may be missing."""
    if SCALED:
        projection = projection * scale[:, None]
    if bias.data is not None:
        row = tl.load(bias.data + h * bias.stride0 + columns * bias.stride2, mask=inside, other=0.0)
        projection += row.to(tl.float32)[None, :]
    return projection


@triton.jit
def dropout(
    mask, row0, h, columns, STREAM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """What multiplies the product, (BLOCK_M, BLOCK_N): `reference.dropout_mask` of these elements.

    One call of the generator gives the words of four rows.
    """
    quads = (row0 // 4 + tl.arange(0, BLOCK_M // 4)).to(tl.uint32)
    like = tl.zeros((BLOCK_M // 4, BLOCK_N), tl.uint32)
    word0, word1, word2, word3 = tl.philox(
        tl.load(mask.seed),
        like + columns.to(tl.uint32)[None, :],
        like + tl.cast(h, tl.uint32),
        like + quads[:, None],
        like + STREAM,
    )
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))  # word 2 i + j at [..., i, j]
    words = tl.reshape(tl.permute(words, (0, 2, 3, 1)), (BLOCK_M, BLOCK_N))
    return tl.where(words >= tl.cast(mask.threshold, tl.uint32), mask.scale, 0.0)


@triton.jit
def sum_factors(
    product, group, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr
):
    """Sums over the factors of each output, (M, BLOCK_N) to (M, BLOCK_O); `group` names each column's output.

    A product with a matrix of zeros and ones, so any K will do, on the tensor cores: they take bfloat16 in two parts,
    16 digits of the product. In IEEE float32, and where a product is not finite, they are added output by output:
    infinity times 0 is NaN, and one overflow would reach every output of its row.
    """
    outputs = tl.arange(0, BLOCK_O)
    sums = tl.zeros((product.shape[0], BLOCK_O), tl.float32)
    one_by_one = True
    if PRECISION != "ieee":
        one_by_one = tl.max(tl.where(tl.abs(product) < float("inf"), 0, 1)) > 0
    if one_by_one:
        for output in range(BLOCK_O):
            one = tl.sum(tl.where((group == output)[None, :], product, 0.0), 1)
            sums = tl.where((outputs == output)[None, :], one[:, None], sums)
    else:
        ones = (group[:, None] == outputs[None, :]).to(tl.bfloat16)
        high = product.to(tl.bfloat16)
        low = (product - high.to(tl.float32)).to(tl.bfloat16)
        sums = tl.dot(high, ones, tl.dot(low, ones))
    return sums


@triton.jit
def forward_tile(
    part, mask, tile_m, tile_o, first, last, B,
    K: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr, STREAM: tl.constexpr,
    ADAPTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """A tile of one part's result, over the trunks first to last, (BLOCK_M, BLOCK_O) in float32."""
    row0 = tile_m * BLOCK_M
    rows = (row0 + tl.arange(0, BLOCK_M)).to(tl.int64)
    present = rows < B
    if part.lengths is not None:
        if part.u is None:
            longest = tl.max(tl.load(part.lengths + rows, mask=present, other=0), 0)
            last = tl.minimum(last, longest.to(tl.int32))
    pooled = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    # What could be computed before the loop would take the registers that the two projections need.
    for trunk in tl.range(first, last, disable_licm=True):
        h = tl.cast(trunk, tl.int64)
        alive = present
        if part.lengths is not None:
            length = tl.load(part.lengths + rows, mask=present, other=0).to(tl.int32)
            alive = present & (trunk < length)
        for chunk in range(CHUNKS):
            within = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
            column0 = tile_o * (GROUPS * K) + chunk * BLOCK_N
            columns = tile_o * (GROUPS * K) + within
            inside = (within < GROUPS * K) & (columns < part.N)
            u, a_squares = project(
                part.a, part.p, h, part.C, row0, alive, column0, inside,
                BLOCK_M, BLOCK_N, BLOCK_C, ADAPTIVE, PRECISION, OFFSET,
            )  # fmt: skip
            w, v_squares = project(
                part.v, part.q, h, part.D, row0, alive, column0, inside,
                BLOCK_M, BLOCK_N, BLOCK_C, ADAPTIVE, PRECISION, OFFSET,
            )  # fmt: skip
            if part.u is not None:
                kept = (h * B + rows)[:, None] * part.N + columns[None, :]
                there = present[:, None] & inside[None, :]
                tl.store(part.u + kept, u.to(part.u.dtype.element_ty), mask=there)
                tl.store(part.w + kept, w.to(part.w.dtype.element_ty), mask=there)
            mu, eta, _, _ = row_scales(a_squares, v_squares)
            u = biased(u, mu, part.p_bias, h, columns, inside, ADAPTIVE)
            w = biased(w, eta, part.q_bias, h, columns, inside, ADAPTIVE)
            product = u * w
            if mask.seed is not None:
                product *= dropout(mask, row0, h, columns, STREAM, BLOCK_M, BLOCK_N)
            sums = sum_factors(product, within // K, BLOCK_N, BLOCK_O, PRECISION)
            if part.lengths is not None:
                sums = tl.where(alive[:, None], sums, 0.0)
            pooled += sums
    return pooled


@triton.jit
def store_tile(
    z, stride, tile_m, tile_o, pooled, B, offset, outputs,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    within = tl.arange(0, BLOCK_O)
    columns = tile_o * GROUPS + within
    tl.store(
        z + rows[:, None] * stride + offset + columns[None, :],
        pooled.to(z.dtype.element_ty),
        mask=(rows < B)[:, None] & ((within < GROUPS) & (columns < outputs))[None, :],
    )


@triton.jit(do_not_specialize=["threshold", "B", "tiles_m", "splits", "trunk_programs"])
def forward_kernel(
    once_a, once_v, once_p, once_q, once_p_bias, once_q_bias, once_lengths,
    each_a, each_v, each_p, each_q, each_p_bias, each_q_bias, each_lengths,
    seed, once_u, once_w, each_u, each_w, z, partials, counters,
    once_H, once_C, once_D, once_N, once_a0, once_a1, once_a2, once_v0, once_v1, once_v2,
    once_p0, once_p1, once_p2, once_q0, once_q1, once_q2,
    once_p_bias0, once_p_bias1, once_q_bias0, once_q_bias1,
    each_H, each_C, each_D, each_N, each_a0, each_a1, each_a2, each_v0, each_v1, each_v2,
    each_p0, each_p1, each_p2, each_q0, each_q1, each_q2,
    each_p_bias0, each_p_bias1, each_q_bias0, each_q_bias1,
    threshold, scale, B, tiles_m, splits, trunk_programs,
    K_G: tl.constexpr, K_M: tl.constexpr, GROUPS_G: tl.constexpr, GROUPS_M: tl.constexpr,
    CHUNKS_G: tl.constexpr, CHUNKS_M: tl.constexpr,
    STREAM_G: tl.constexpr, STREAM_M: tl.constexpr, ADAPTIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_O_G: tl.constexpr, BLOCK_O_M: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """z (B, O_G + O_M). The first `trunk_programs` programs do the trunks' half, which takes longest.

    K_G or K_M is 0 where that half is switched off. A tile of the trunks' half is shared by `splits` programs, each
    with some of the trunks; the last to finish adds their sums up, in the order of the trunks.
    """
    once = Part(
        Operand(once_a, once_a0, once_a1, once_a2), Operand(once_v, once_v0, once_v1, once_v2),
        Operand(once_p, once_p0, once_p1, once_p2), Operand(once_q, once_q0, once_q1, once_q2),
        Operand(once_p_bias, once_p_bias0, None, once_p_bias1),
        Operand(once_q_bias, once_q_bias0, None, once_q_bias1),
        once_lengths, once_u, once_w, once_H, once_C, once_D, once_N,
    )  # fmt: skip
    each = Part(
        Operand(each_a, each_a0, each_a1, each_a2), Operand(each_v, each_v0, each_v1, each_v2),
        Operand(each_p, each_p0, each_p1, each_p2), Operand(each_q, each_q0, each_q1, each_q2),
        Operand(each_p_bias, each_p_bias0, None, each_p_bias1),
        Operand(each_q_bias, each_q_bias0, None, each_q_bias1),
        each_lengths, each_u, each_w, each_H, each_C, each_D, each_N,
    )  # fmt: skip
    mask = Mask(seed, threshold, scale)
    program = tl.program_id(0)
    outputs_g = 0
    if K_G > 0:
        outputs_g = once.N // K_G
    stride = outputs_g
    if K_M > 0:
        stride += each.N // K_M
    if program < trunk_programs:
        if K_M > 0:
            outputs = each.N // K_M
            tile, split = program // splits, program % splits
            tile_m, tile_o = swizzle(tile, tiles_m, tl.cdiv(outputs, GROUPS_M), GROUP)
            pooled = forward_tile(
                each, mask, tile_m, tile_o,
                split * each.H // splits, (split + 1) * each.H // splits, B,
                K_M, GROUPS_M, CHUNKS_M, STREAM_M, False,
                BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_O_M, PRECISION, OFFSET,
            )  # fmt: skip
            finished = True
            if SPLIT:
                m, o = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_O_M)[None, :]
                own = (
                    partials
                    + tile.to(tl.int64) * splits * (BLOCK_M * BLOCK_O_M)
                    + m * BLOCK_O_M
                    + o
                )
                tl.store(own + split * (BLOCK_M * BLOCK_O_M), pooled)
                finished = arrive(counters + tile, splits)
                if finished:
                    pooled = tl.zeros((BLOCK_M, BLOCK_O_M), tl.float32)
                    for other in range(splits):
                        pooled += tl.load(own + other * (BLOCK_M * BLOCK_O_M), cache_modifier=".cg")
            if finished:
                store_tile(
                    z, stride, tile_m, tile_o, pooled, B, outputs_g, outputs,
                    GROUPS_M, BLOCK_M, BLOCK_O_M,
                )  # fmt: skip
    else:
        if K_G > 0:
            tile_m, tile_o = swizzle(
                program - trunk_programs, tiles_m, tl.cdiv(outputs_g, GROUPS_G), GROUP
            )
            pooled = forward_tile(
                once, mask, tile_m, tile_o, 0, 1, B,
                K_G, GROUPS_G, CHUNKS_G, STREAM_G, ADAPTIVE,
                BLOCK_M, BLOCK_N, BLOCK_C, BLOCK_O_G, PRECISION, OFFSET,
            )  # fmt: skip
            store_tile(
                z, stride, tile_m, tile_o, pooled, B, 0, outputs_g, GROUPS_G, BLOCK_M, BLOCK_O_G
            )


class ProjectionGradients(NamedTuple):
    """Where the first kernel of the backward writes, of one part.

    Scratch has norms (2, R) of the rows of a and v and parts of the gradients of mu and eta (tiles of outputs, 2, R),
    both only with adaptive scales, and parts of the biases' gradients (tiles of rows, 2, H, N) from `biases` on.
    """

    d: Any  # (2, H, B, N) contiguous: gradients of a p and v q
    scratch: Any  # float32
    biases: Any  # where in it, None where there are none


@triton.jit
def projection_gradient_tile(
    dz, dz_row, dz_column, part, out, mask,
    tile_m, tile_o, trunk, B, tiles_m,
    K: tl.constexpr, GROUPS: tl.constexpr, CHUNKS: tl.constexpr, STREAM: tl.constexpr,
    ADAPTIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Gradients of the two projections for a tile of one trunk, from dz at the part's first output."""
    row0 = tile_m * BLOCK_M
    rows = (row0 + tl.arange(0, BLOCK_M)).to(tl.int64)
    present = rows < B
    h = tl.cast(trunk, tl.int64)
    alive = present
    if part.lengths is not None:
        alive = present & (h < tl.load(part.lengths + rows, mask=present, other=0))
    a_squares = tl.zeros((BLOCK_M,), tl.float32)
    v_squares = tl.zeros((BLOCK_M,), tl.float32)
    if ADAPTIVE:
        if part.u is not None:
            a_squares = sum_of_squares(part.a, part.C, rows, alive, BLOCK_M, BLOCK_C)
            v_squares = sum_of_squares(part.v, part.D, rows, alive, BLOCK_M, BLOCK_C)
    d_mu = tl.zeros((BLOCK_M,), tl.float32)
    d_eta = tl.zeros((BLOCK_M,), tl.float32)
    for chunk in range(CHUNKS):
        within = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        column0 = tile_o * (GROUPS * K) + chunk * BLOCK_N
        columns = tile_o * (GROUPS * K) + within
        inside = (within < GROUPS * K) & (columns < part.N)
        there = present[:, None] & inside[None, :]
        at = (h * B + rows)[:, None] * part.N + columns[None, :]
        if part.u is not None:
            u = tl.load(part.u + at, mask=there, other=0.0).to(tl.float32)
            w = tl.load(part.w + at, mask=there, other=0.0).to(tl.float32)
        else:
            u, a_squares = project(
                part.a, part.p, h, part.C, row0, alive, column0, inside,
                BLOCK_M, BLOCK_N, BLOCK_C, ADAPTIVE, PRECISION, OFFSET,
            )  # fmt: skip
            w, v_squares = project(
                part.v, part.q, h, part.D, row0, alive, column0, inside,
                BLOCK_M, BLOCK_N, BLOCK_C, ADAPTIVE, PRECISION, OFFSET,
            )  # fmt: skip
        g = tl.load(
            dz + rows[:, None] * dz_row + (columns // K)[None, :] * dz_column, mask=there, other=0.0
        ).to(tl.float32)
        if mask.seed is not None:
            g *= dropout(mask, row0, h, columns, STREAM, BLOCK_M, BLOCK_N)
        mu, eta, _, _ = row_scales(a_squares, v_squares)
        du = g * biased(w, eta, part.q_bias, h, columns, inside, ADAPTIVE)
        dw = g * biased(u, mu, part.p_bias, h, columns, inside, ADAPTIVE)
        if part.lengths is not None:
            du = tl.where(alive[:, None], du, 0.0)
            dw = tl.where(alive[:, None], dw, 0.0)
        if out.biases is not None:
            own = out.scratch + out.biases + h * part.N + columns
            own += tile_m.to(tl.int64) * 2 * part.H * part.N
            tl.store(own, tl.sum(du, 0), mask=inside)
            tl.store(own + part.H * part.N, tl.sum(dw, 0), mask=inside)
        if ADAPTIVE:
            d_mu += tl.sum(du * u, 1)
            d_eta += tl.sum(dw * w, 1)
            du *= mu[:, None]
            dw *= eta[:, None]
        half = tl.cast(B, tl.int64) * part.H * part.N
        tl.store(out.d + at, du.to(out.d.dtype.element_ty), mask=there)
        tl.store(out.d + half + at, dw.to(out.d.dtype.element_ty), mask=there)
    if ADAPTIVE:
        R = tiles_m * BLOCK_M
        own = out.scratch + (tile_o.to(tl.int64) + 1) * 2 * R + rows
        tl.store(own, d_mu, mask=present)
        tl.store(own + R, d_eta, mask=present)
        if tile_o == 0:
            _, _, a_norm, v_norm = row_scales(a_squares, v_squares)
            tl.store(out.scratch + rows, a_norm, mask=present)
            tl.store(out.scratch + R + rows, v_norm, mask=present)


@triton.jit(do_not_specialize=["threshold", "B", "tiles_m", "trunk_programs"])
def projection_gradients_kernel(
    dz,
    once_a, once_v, once_p, once_q, once_p_bias, once_q_bias, once_lengths,
    each_a, each_v, each_p, each_q, each_p_bias, each_q_bias, each_lengths,
    seed, once_u, once_w, each_u, each_w, d, scratch,
    dz_row, dz_column,
    once_H, once_C, once_D, once_N, once_a0, once_a1, once_a2, once_v0, once_v1, once_v2,
    once_p0, once_p1, once_p2, once_q0, once_q1, once_q2,
    once_p_bias0, once_p_bias1, once_q_bias0, once_q_bias1,
    each_H, each_C, each_D, each_N, each_a0, each_a1, each_a2, each_v0, each_v1, each_v2,
    each_p0, each_p1, each_p2, each_q0, each_q1, each_q2,
    each_p_bias0, each_p_bias1, each_q_bias0, each_q_bias1,
    threshold, scale, once_biases, each_biases, B, tiles_m, trunk_programs,
    K_G: tl.constexpr, K_M: tl.constexpr, GROUPS_G: tl.constexpr, GROUPS_M: tl.constexpr,
    CHUNKS_G: tl.constexpr, CHUNKS_M: tl.constexpr,
    STREAM_G: tl.constexpr, STREAM_M: tl.constexpr, ADAPTIVE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """du and dw of both parts; the projections are read where they were kept, else computed again.

    What else the gradients need comes out of the same tiles, as one sum a tile, to be added up in order: R is the
    number of rows, rounded up to whole tiles.
    """
    once = Part(
        Operand(once_a, once_a0, once_a1, once_a2), Operand(once_v, once_v0, once_v1, once_v2),
        Operand(once_p, once_p0, once_p1, once_p2), Operand(once_q, once_q0, once_q1, once_q2),
        Operand(once_p_bias, once_p_bias0, None, once_p_bias1),
        Operand(once_q_bias, once_q_bias0, None, once_q_bias1),
        once_lengths, once_u, once_w, once_H, once_C, once_D, once_N,
    )  # fmt: skip
    each = Part(
        Operand(each_a, each_a0, each_a1, each_a2), Operand(each_v, each_v0, each_v1, each_v2),
        Operand(each_p, each_p0, each_p1, each_p2), Operand(each_q, each_q0, each_q1, each_q2),
        Operand(each_p_bias, each_p_bias0, None, each_p_bias1),
        Operand(each_q_bias, each_q_bias0, None, each_q_bias1),
        each_lengths, each_u, each_w, each_H, each_C, each_D, each_N,
    )  # fmt: skip
    mask = Mask(seed, threshold, scale)
    each_d = d
    if K_G > 0:
        each_d += 2 * tl.cast(B, tl.int64) * once_N
    out_once = ProjectionGradients(d, scratch, once_biases)
    out_each = ProjectionGradients(each_d, scratch, each_biases)
    program = tl.program_id(0)
    if program < trunk_programs:
        if K_M > 0:
            tiles_o = tl.cdiv(each.N // K_M, GROUPS_M)
            tiles = tiles_m * tiles_o
            tile_m, tile_o = swizzle(program % tiles, tiles_m, tiles_o, GROUP)
            offset = 0
            if K_G > 0:
                offset = once.N // K_G
            projection_gradient_tile(
                dz + offset * dz_column, dz_row, dz_column,
                each, out_each, mask,
                tile_m, tile_o, program // tiles, B, tiles_m, K_M, GROUPS_M, CHUNKS_M, STREAM_M, False,
                BLOCK_M, BLOCK_N, BLOCK_C, PRECISION, OFFSET,
            )  # fmt: skip
    else:
        if K_G > 0:
            tile_m, tile_o = swizzle(
                program - trunk_programs, tiles_m, tl.cdiv(once.N // K_G, GROUPS_G), GROUP
            )
            projection_gradient_tile(
                dz, dz_row, dz_column, once, out_once, mask,
                tile_m, tile_o, 0, B, tiles_m,
                K_G, GROUPS_G, CHUNKS_G, STREAM_G, ADAPTIVE,
                BLOCK_M, BLOCK_N, BLOCK_C, PRECISION, OFFSET,
            )  # fmt: skip


class Side(NamedTuple):
    """One modality of one part, in the second kernel of the backward; W is C or D. What is not needed is None."""

    x: Any  # Operand (B, H, W)
    weight: Any  # Operand (H, W, N)
    d: Any  # (H, B, N) contiguous: gradient of x weight
    dx: Any  # (B, H, W) contiguous
    d_weight: Any  # (H, W, N) contiguous
    d_bias: Any  # (H, N) contiguous
    scratch: Any  # see `ProjectionGradients`
    biases: Any
    second: Any  # 0 for a, 1 for v: whose half is its own
    lengths: Any  # (B,) int64
    tiles_o: Any  # of the kernel before; None without adaptive scales
    H: Any
    W: Any
    N: Any


@triton.jit
def norm_gradient(side, rows, present, R, BLOCK_M: tl.constexpr):
    """What multiplies a row of x in its gradient through mu and eta, (BLOCK_M,).

    d mu / d|a| = |v| / (|a| + |v|)^2 = -d eta / d|a| and d|a| / da = a / |a|, so 0 where the norm is 0.
    """
    own_row, other_row = side.second * R + rows, (1 - side.second) * R + rows
    piece = tl.zeros((BLOCK_M,), tl.float32)
    difference = piece
    for tile in range(side.tiles_o):
        scales = side.scratch + 2 * (tile + 1) * R
        piece += tl.load(scales + own_row, mask=present, other=0.0)
        piece -= tl.load(scales + other_row, mask=present, other=0.0)
        difference, piece = carry(difference, piece, tile, 1)
    difference += piece
    own = tl.load(side.scratch + own_row, mask=present, other=0.0)
    other = tl.load(side.scratch + other_row, mask=present, other=0.0)
    safe = tl.where(own > 0, own, 1.0)
    total = safe + other
    return tl.where(own > 0, difference * (other / total) / total / safe, 0.0)


@triton.jit
def input_gradient_tile(
    side, index, B, tiles_m, R,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """dx = d weight^T of a tile (BLOCK_M rows, BLOCK_C of the width), and what comes through the row's norm."""
    tiles_c = tl.cdiv(side.W, BLOCK_C)
    tiles = tiles_m * tiles_c
    h = tl.cast(index // tiles, tl.int64)
    tile_m, tile_c = swizzle(index % tiles, tiles_m, tiles_c, GROUP)
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    present, inside = rows < B, c < side.W
    d_tile = side.d + (h * B + tl.cast(tile_m, tl.int64) * BLOCK_M) * side.N
    d_offsets = tl.arange(0, BLOCK_M).to(OFFSET)[:, None] * side.N + n[None, :]
    weight_tile = (
        side.weight.data
        + h * side.weight.stride0
        + tl.cast(tile_c, tl.int64) * BLOCK_C * side.weight.stride1
    )
    weight_offsets = (
        tl.arange(0, BLOCK_C).to(OFFSET)[None, :] * side.weight.stride1
        + n.to(OFFSET)[:, None] * side.weight.stride2
    )
    gradient = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    total = gradient
    for first in range(0, side.N, BLOCK_N):
        left = n < side.N - first
        d = tl.load(d_tile + d_offsets, mask=present[:, None] & left[None, :], other=0.0)
        weight = tl.load(
            weight_tile + weight_offsets, mask=left[:, None] & inside[None, :], other=0.0
        )
        gradient = tl.dot(d, weight, gradient, input_precision=PRECISION)
        if PRECISION == "ieee":
            total, gradient = carry(total, gradient, first, BLOCK_N)
        d_tile += BLOCK_N
        weight_tile += tl.cast(side.weight.stride2, tl.int64) * BLOCK_N
    if PRECISION == "ieee":
        gradient += total
    there = present[:, None] & inside[None, :]
    if side.tiles_o is not None:
        x = tl.load(
            side.x.data + rows[:, None] * side.x.stride0 + c[None, :] * side.x.stride2,
            mask=there,
            other=0.0,
        )
        share = norm_gradient(side, rows, present, R, BLOCK_M)
        gradient += share[:, None] * x.to(tl.float32)
    at = (rows[:, None] * side.H + h) * side.W + c[None, :]
    tl.store(side.dx + at, gradient.to(side.dx.dtype.element_ty), mask=there)


@triton.jit
def weight_gradient_tile(
    side, index, B, tiles_m,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """d_weight = x^T d of a tile (BLOCK_C of the width, BLOCK_N columns); the first row of tiles does d_bias too."""
    tiles_c, tiles_n = tl.cdiv(side.W, BLOCK_C), tl.cdiv(side.N, BLOCK_N)
    tiles = tiles_c * tiles_n
    trunk = index // tiles
    h = tl.cast(trunk, tl.int64)
    tile_c, tile_n = swizzle(index % tiles, tiles_c, tiles_n, GROUP)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M).to(OFFSET)
    inside_c, inside_n = c < side.W, n < side.N
    x_tile = side.x.data + h * side.x.stride1 + tl.cast(tile_c, tl.int64) * BLOCK_C * side.x.stride2
    x_offsets = (
        m[None, :] * side.x.stride0 + tl.arange(0, BLOCK_C).to(OFFSET)[:, None] * side.x.stride2
    )
    d_tile = side.d + h * B * side.N + tile_n * BLOCK_N
    d_offsets = m[:, None] * side.N + tl.arange(0, BLOCK_N)[None, :]
    gradient = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    total = gradient
    for first in range(0, B, BLOCK_M):
        present = m < B - first
        alive = present
        if side.lengths is not None:
            # d is 0 where a trunk is dead, but x may hold NaN there.
            length = tl.load(side.lengths + first + m, mask=present, other=0).to(tl.int32)
            alive = present & (trunk < length)
        x = tl.load(x_tile + x_offsets, mask=inside_c[:, None] & alive[None, :], other=0.0)
        d = tl.load(d_tile + d_offsets, mask=present[:, None] & inside_n[None, :], other=0.0)
        gradient = tl.dot(x, d, gradient, input_precision=PRECISION)
        if PRECISION == "ieee":
            total, gradient = carry(total, gradient, first, BLOCK_M)
        x_tile += tl.cast(side.x.stride0, tl.int64) * BLOCK_M
        d_tile += tl.cast(side.N, tl.int64) * BLOCK_M
    if PRECISION == "ieee":
        gradient += total
    at = (h * side.W + c)[:, None] * side.N + n[None, :]
    there = inside_c[:, None] & inside_n[None, :]
    tl.store(side.d_weight + at, gradient.to(side.d_weight.dtype.element_ty), mask=there)
    if side.d_bias is not None:
        if tile_c == 0:
            bias = tl.zeros((BLOCK_N,), tl.float32)
            bias_total = bias
            for tile in range(tiles_m):
                row = (tl.cast(tile, tl.int64) * 2 + side.second) * side.H + h
                own = side.scratch + side.biases + row * side.N + n
                bias += tl.load(own, mask=inside_n, other=0.0)
                bias_total, bias = carry(bias_total, bias, tile, 1)
            bias += bias_total
            own = side.d_bias + h * side.N + n
            tl.store(own, bias.to(side.d_bias.dtype.element_ty), mask=inside_n)


@triton.jit
def side_gradients(
    side, index, B, tiles_m, tiles_p, R,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    WEIGHT_C: tl.constexpr, WEIGHT_N: tl.constexpr, WEIGHT_M: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Does the tile of that index, if this side has it; gives the index less the side's tiles."""
    if side.d_weight is not None:
        programs = side.H * tl.cdiv(side.W, WEIGHT_C) * tl.cdiv(side.N, WEIGHT_N)
        if (index >= 0) & (index < programs):
            weight_gradient_tile(
                side, index, B, tiles_p, WEIGHT_C, WEIGHT_N, WEIGHT_M, GROUP, PRECISION, OFFSET
            )
        index -= programs
    if side.dx is not None:
        programs = side.H * tiles_m * tl.cdiv(side.W, BLOCK_C)
        if (index >= 0) & (index < programs):
            input_gradient_tile(
                side, index, B, tiles_m, R, BLOCK_M, BLOCK_C, BLOCK_N, GROUP, PRECISION, OFFSET
            )
        index -= programs
    return index


@triton.jit(do_not_specialize=["B", "tiles_m", "tiles_p", "R"])
def gradients_kernel(
    once_a, once_v, once_p, once_q, once_p_bias, once_q_bias, once_lengths,
    each_a, each_v, each_p, each_q, each_p_bias, each_q_bias, each_lengths,
    once_da, once_dv, once_dp, once_dq, once_dp_bias, once_dq_bias,
    each_da, each_dv, each_dp, each_dq, each_dp_bias, each_dq_bias,
    scratch, d,
    once_H, once_C, once_D, once_N, once_a0, once_a1, once_a2, once_v0, once_v1, once_v2,
    once_p0, once_p1, once_p2, once_q0, once_q1, once_q2,
    once_biases,
    each_H, each_C, each_D, each_N, each_a0, each_a1, each_a2, each_v0, each_v1, each_v2,
    each_p0, each_p1, each_p2, each_q0, each_q1, each_q2,
    each_biases,
    once_tiles_o, B, tiles_m, tiles_p, R,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    WEIGHT_C: tl.constexpr, WEIGHT_N: tl.constexpr, WEIGHT_M: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Gradients of inputs, weights and biases from du and dw, of all sides in one launch.

    tiles_m counts the tiles of rows of this kernel, tiles_p those of the kernel before, R the length of its rows.
    """
    index = tl.program_id(0)
    if once_a is not None:
        half = tl.cast(B, tl.int64) * once_N
        index = side_gradients(
            Side(
                Operand(once_a, once_a0, once_a1, once_a2), Operand(once_p, once_p0, once_p1, once_p2),
                d, once_da, once_dp, once_dp_bias, scratch, once_biases, 0, once_lengths,
                once_tiles_o, once_H, once_C, once_N,
            ),
            index, B, tiles_m, tiles_p, R,
            BLOCK_M, BLOCK_C, BLOCK_N, WEIGHT_C, WEIGHT_N, WEIGHT_M, GROUP, PRECISION, OFFSET,
        )  # fmt: skip
        index = side_gradients(
            Side(
                Operand(once_v, once_v0, once_v1, once_v2), Operand(once_q, once_q0, once_q1, once_q2),
                d + half, once_dv, once_dq, once_dq_bias, scratch, once_biases, 1, once_lengths,
                once_tiles_o, once_H, once_D, once_N,
            ),
            index, B, tiles_m, tiles_p, R,
            BLOCK_M, BLOCK_C, BLOCK_N, WEIGHT_C, WEIGHT_N, WEIGHT_M, GROUP, PRECISION, OFFSET,
        )  # fmt: skip
        d += 2 * half
    if each_a is not None:
        half = tl.cast(B, tl.int64) * each_H * each_N
        index = side_gradients(
            Side(
                Operand(each_a, each_a0, each_a1, each_a2), Operand(each_p, each_p0, each_p1, each_p2),
                d, each_da, each_dp, each_dp_bias, scratch, each_biases, 0, each_lengths,
                None, each_H, each_C, each_N,
            ),
            index, B, tiles_m, tiles_p, R,
            BLOCK_M, BLOCK_C, BLOCK_N, WEIGHT_C, WEIGHT_N, WEIGHT_M, GROUP, PRECISION, OFFSET,
        )  # fmt: skip
        index = side_gradients(
            Side(
                Operand(each_v, each_v0, each_v1, each_v2), Operand(each_q, each_q0, each_q1, each_q2),
                d + half, each_dv, each_dq, each_dq_bias, scratch, each_biases, 1, each_lengths,
                None, each_H, each_D, each_N,
            ),
            index, B, tiles_m, tiles_p, R,
            BLOCK_M, BLOCK_C, BLOCK_N, WEIGHT_C, WEIGHT_N, WEIGHT_M, GROUP, PRECISION, OFFSET,
        )  # fmt: skip
