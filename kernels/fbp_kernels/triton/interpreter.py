"""Mends Triton's interpreter where it computes otherwise than compiled kernels, and says nothing.

bfloat16 it keeps as 16-bit integers, and computes with those.

Of Triton 3.6 to 3.9, all add, multiply, compare and reduce the integers, and cut digits off where the compiler rounds
to nearest: wrong results without an error. So every operation here either only moves numbers, or is computed in float32
and rounded to nearest, as on a GPU, or is refused; what a new version of Triton brings is refused until it is known.

Where one of two operands is no number, `tl.maximum`, `tl.minimum` and `tl.clamp` give the other one on a GPU, unless
NaN is asked for; the interpreter of Triton 3.6 and 3.7 gives NaN always, so that no test could see what NaN becomes.

And one thing that only takes time: it looks through the whole language at each call of a function by a kernel.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

# What only moves numbers, or casts them: right for bfloat16 by itself, or by the mended `cast_impl`.
_RIGHT = {
    "addptr", "atomic_load", "atomic_store", "bitcast", "broadcast", "cat", "expand_dims", "gather", "int_to_ptr",
    "join", "load", "masked_load", "masked_store", "ptr_to_int", "reshape", "select", "splat", "split", "store",
    "trans", "unsplat",
    "fp_ext", "fp_to_fp", "fp_to_si", "fp_to_ui", "fp_trunc", "int_cast", "si_to_fp", "ui_to_fp",
}  # fmt: skip
# Whose operands are widened, and whose result is rounded. Of two significands of 8 digits float32 holds enough of each
# of these for the second rounding to change nothing. All others of the language take no bfloat16, or widen it before.
_ROUNDED = {
    "clampf",
    "fabs",
    "fadd",
    "fmul",
    "fneg",
    "fsub",
    "maximumf",
    "maxnumf",
    "minimumf",
    "minnumf",
}
# Whose operands are widened, and whose result is of another dtype.
_WIDENED = {"dot", "print"} | {
    f"fcmp{order}{which}" for order in "OU" for which in ("EQ", "NE", "LT", "LE", "GT", "GE")
}


class BrainFloatError(NotImplementedError):
    """What the interpreter would compute wrongly of bfloat16."""


def _refuse(what: str) -> BrainFloatError:
    return BrainFloatError(
        f"{what} of bfloat16 would be wrong in Triton's interpreter; convert the operands to float32 before"
    )


def _widen(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    wide = torch.from_numpy(np.array(data, dtype=np.float32, order="C"))
    return wide.bfloat16().view(torch.int16).numpy().view(np.uint16)


def _wide(operand):
    """An operand, or a list of them, with float32 in place of bfloat16."""
    if isinstance(operand, (list, tuple)):
        return [_wide(one) for one in operand]
    if isinstance(operand, interpreter.TensorHandle) and operand.dtype.scalar == tl.bfloat16:
        return interpreter.TensorHandle(_widen(operand.data), tl.float32)
    return operand


def _met(operand) -> bool:
    """Whether an operand, or one of a list, is bfloat16, points to it or describes it in memory."""
    if isinstance(operand, (list, tuple)):
        return any(map(_met, operand))
    handle = getattr(operand, "base", operand)
    return isinstance(handle, interpreter.TensorHandle) and handle.get_element_ty() == tl.bfloat16


def _door(name: str, method):
    """The method of a builder that creates what the compiler calls `name`, for whatever operands."""

    def create(self, *arguments, **options):
        if not _met([*arguments, *options.values()]):
            return method(self, *arguments, **options)
        if name not in _ROUNDED and name not in _WIDENED:
            raise _refuse(name)
        result = method(self, *map(_wide, arguments), **options)
        if name in _ROUNDED:
            return interpreter.TensorHandle(_narrow(result.data), tl.bfloat16)
        if name.startswith("fcmp"):  # its dtype is that of the operands
            return interpreter.TensorHandle(result.data, tl.int1)
        return result

    return create


def _mend_casts(builder) -> None:
    cast, convert = builder.cast_impl, builder.create_fp_to_fp

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target or tl.bfloat16 not in (source, target):
            return cast(self, src, dst_type)
        if source == tl.bfloat16:
            wide = _wide(src)
            return wide if target == tl.float32 else cast(self, wide, dst_type)
        wide = src.data.astype(np.float32)  # of whatever it is: float16, a whole number or a mask
        return interpreter.TensorHandle(_narrow(wide), tl.bfloat16)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):  # of 8 bits, or asks for a rounding
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar):
            raise _refuse("a conversion with a rounding of its own, or 8 bits,")
        return convert(self, src, dst_type, rounding_mode)

    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    if not hasattr(builder, "get_bf16"):  # constants, which Triton 3.6 and 3.7 lack
        builder.get_bf16 = lambda self, value: cast_impl(self, self.get_fp32(value), tl.bfloat16)


def _mend_extremes(builder) -> None:
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)
    clamp = builder.create_clampf

    def create_clampf(self, value, low, high, propagate_nan):
        if propagate_nan == tl.PropagateNan.ALL:
            return clamp(self, value, low, high, propagate_nan)
        return self.create_minnumf(self.create_maxnumf(value, low), high)

    builder.create_clampf = create_clampf


def _mend_reductions() -> None:
    """A GPU rounds after every step of a reduction or scan, in an order of its own: bfloat16 is refused."""
    apply = interpreter.ReduceScanOpInterface.apply

    def checked(self, input):
        inputs = input if isinstance(input, tuple) else (input,)
        if _met([one.handle for one in inputs if isinstance(one, tl.core.tensor)]):
            raise _refuse("a reduction or scan")
        return apply(self, input)

    interpreter.ReduceScanOpInterface.apply = checked


def _mend_patches() -> None:
    """Patches the language once a launch for each module whose functions take part.

    The interpreter does so again whenever a kernel calls a function, which finds nothing left to patch: what functions
    of a module see of the language is the same, and stays patched until the launch is over.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    launches: list[set[int]] = []

    def patch_lang(function):
        seen, names = launches[-1] if launches else set(), id(function.__globals__)
        if names in seen:
            return interpreter._LangPatchScope()
        seen.add(names)
        return patch(function)

    def call(self, *arguments, **options):
        launches.append(set())
        try:
            return launch(self, *arguments, **options)
        finally:
            launches.pop()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, call


def mend() -> None:
    """Makes the interpreter do with bfloat16 and NaN what the compiled kernels do, or say that it cannot."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_is_mended", False):
        return
    _mend_extremes(builder)
    for method in dir(builder):
        name = method.removeprefix("create_")
        if name != method and name not in _RIGHT:
            setattr(builder, method, _door(name, getattr(builder, method)))
    _mend_casts(builder)
    _mend_reductions()
    _mend_patches()
    builder._is_mended = True
