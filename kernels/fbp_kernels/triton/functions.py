"""Device functions that several kernels share."""

import triton
import triton.language as tl


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
