"""Mends Triton's interpreter for bfloat16, which it keeps as 16-bit integers.

Of Triton 3.6 to 3.9, none widens them before a product (integers are multiplied) and all cut digits off where the
compiler rounds to nearest. Both would be wrong results, not slow ones.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _widen(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    wide = torch.from_numpy(np.ascontiguousarray(data))
    return wide.bfloat16().view(torch.int16).numpy().view(np.uint16)


def mend() -> None:
    """Makes products and casts of bfloat16 in the interpreter do what the compiled kernels do."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_bfloat16_is_mended", False):
        return
    dot, cast, convert = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp

    def operand(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(_widen(handle.data), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, operand(a), operand(b), *rest)

    def rounded(self, src, dst_type):
        """The cast to or from bfloat16, or None for other casts."""
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return None
        if source == tl.bfloat16:
            wide = interpreter.TensorHandle(_widen(src.data), tl.float32)
            return wide if target == tl.float32 else cast(self, wide, dst_type)
        wide = src.data.astype(np.float32)  # of whatever it is: float16, a whole number or a mask
        return interpreter.TensorHandle(_narrow(wide), tl.bfloat16)

    # Handles are false where an element is 0: only None says that there is nothing to mend.
    def cast_impl(self, src, dst_type):
        mended = rounded(self, src, dst_type)
        return cast(self, src, dst_type) if mended is None else mended

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        mended = rounded(self, src, dst_type)
        return convert(self, src, dst_type, rounding_mode) if mended is None else mended

    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder._bfloat16_is_mended = True
