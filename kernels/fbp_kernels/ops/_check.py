"""Checks of arguments: every error names the argument, what came and what was expected."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .. import opaque

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensors(operator: str, **arguments: Tensor) -> None:
    """One supported dtype and one device for all.

    Raises:
        TypeError: not a tensor, an unsupported dtype, or dtypes that differ.
        ValueError: devices that differ.
    """
    for name, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            got = "None" if tensor is None else f"a {type(tensor).__name__}"
            out = "; use torch.fx.wrap or the module" if isinstance(tensor, fx.Proxy) else ""
            raise TypeError(f"{operator}: {name} is {got}, expected a tensor{out}")
    first_name, first = next(iter(arguments.items()))
    dtype = first.dtype
    if dtype not in DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{operator}: {first_name} is {dtype}, expected one of {expected}")
    for name, tensor in arguments.items():
        if tensor.dtype != dtype:
            raise TypeError(
                f"{operator}: {name} is {tensor.dtype}, expected {dtype} as {first_name} is"
            )
    devices(operator, **arguments)


def devices(operator: str, **arguments: Tensor) -> None:
    """One for all.

    Raises:
        ValueError: devices that differ.
    """
    first_name, first = next(iter(arguments.items()))
    device = first.device
    for name, tensor in arguments.items():
        if tensor.device != device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device}, expected {device} as {first_name} is"
            )


def shapes(
    operator: str, arguments: Mapping[str, Tensor | None], letters: Iterable[str], **sizes: int
) -> dict[str, int]:
    """A letter for each dimension, such as "BTC"; the same one stands for the same size everywhere.

    Args:
        operator: its name.
        arguments: by name; what may be None is passed over.
        letters: of each argument.
        sizes: those that are known, by letter.

    Returns:
        All sizes, by letter.

    Raises:
        ValueError: another rank or size.
    """
    known = "".join(sizes)
    for (name, tensor), dims in zip(arguments.items(), letters, strict=True):
        if tensor is None:
            continue
        shape = tensor.shape
        fits = len(shape) == len(dims)
        for letter, size in zip(dims, shape, strict=False):
            if sizes.setdefault(letter, size) != size:
                fits = False
        if not fits:
            # Put together here and not before: a traced size that is printed becomes a constant.
            expected = ", ".join(f"{d}={sizes[d]}" if d in known else d for d in dims)
            raise ValueError(f"{operator}: {name} has shape {tuple(shape)}, expected ({expected})")
        known += dims
    return sizes


def channels(operator: str, x: Tensor) -> None:
    """Something comes after the channels.

    Raises:
        ValueError: x has fewer than three dimensions.
    """
    if x.dim() < 3:
        raise ValueError(
            f"{operator}: x has shape {tuple(x.shape)}, expected at least 3 dimensions (N, C, *)"
        )


def lengths(operator: str, value: Tensor | None, x: Tensor, most: int) -> None:
    """Integers (B,) from 0 to the number of trunks or frames, one for each row of x, and on its device.

    The values are looked at only where that costs no wait for a GPU and breaks no trace.

    Raises:
        TypeError: not an integer tensor.
        ValueError: another shape, another device, or values out of range.
    """
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype not in (torch.int32, torch.int64):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{operator}: lengths is {kind}, expected an int64 or int32 tensor")
    shapes(operator, {"lengths": value}, ("B",), B=x.shape[0])
    if value.device != x.device:
        raise ValueError(f"{operator}: lengths is on {value.device}, expected {x.device}")
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and x.shape[0]:
        _within(value, most, operator)


def as_int64(value: Any) -> Any:
    """Lengths as the kernels take them; what `lengths` refuses stays as it is."""
    short = isinstance(value, Tensor) and value.dtype is torch.int32
    return value.long() if short else value


def _check_lengths(value: Tensor, most: int, operator: str) -> None:
    low, high = (bound.item() for bound in value.aminmax())
    if low < 0 or high > most:
        raise ValueError(f"{operator}: lengths go from {low} to {high}, expected from 0 to {most}")


# An operator, since the values are seen neither under torch.vmap nor where tensors are fake.
_within = opaque.define(
    "check_lengths(Tensor lengths, SymInt most, str operator) -> ()",
    _check_lengths,
    lambda *_: None,
)
opaque.vmapped("check_lengths", lambda _, __, *arguments: (_within(*arguments), None))
