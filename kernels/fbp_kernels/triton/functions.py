"""Device functions that several kernels share."""

import triton
import triton.language as tl

# Terms of a float32 sum that one accumulator takes. One running sum of n terms is off by about sqrt(n / 2) roundings of
# the result, pieces of P by sqrt((P + n / P) / 2): least at P = sqrt(n), and n is some hundreds to some thousands.
PIECE = tl.constexpr(64)


@triton.constexpr_function
def _steps(depth):
    """Steps of a piece; at least two, for of a product that goes into a total at once the compiler makes one sum."""
    return max(2, PIECE.value // depth)


@triton.jit
def carry(total, piece, before, DEPTH: tl.constexpr):
    """A total and a piece of it, after a step of DEPTH terms: a piece that is full goes into the total and begins anew.

    The sum is total + piece. `before` is the number of terms of all steps before this one.
    """
    STEPS: tl.constexpr = _steps(DEPTH)
    if before // DEPTH % STEPS == STEPS - 1:
        total += piece
        piece = tl.zeros_like(piece)
    return total, piece


@triton.jit
def arrive(counter, expected):
    """Whether this program is the last of `expected` at a counter; then the counter is 0 again.

    What the others wrote before they arrived can be read after it; with ".cg", for the first-level cache may
    hold older values.
    """
    tl.debug_barrier()  # all of this program's writes come before its arrival
    ticket = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    last = ticket == expected - 1
    if last:
        tl.store(counter, 0)
    tl.debug_barrier()
    return last


@triton.jit
def swizzle(index, rows, columns, GROUP: tl.constexpr):
    """The tile of a program: GROUP rows of tiles are done together, so that their columns' operands stay in L2."""
    per_group = GROUP * columns
    group = index // per_group
    first = group * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = index % per_group
    return first + within % height, within // height
