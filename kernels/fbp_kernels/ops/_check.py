"""Checks of arguments: every error names the argument, what came and what was expected."""

from typing import Any

import torch
from torch import Tensor, fx

from ..libraries import OPERATORS

LIBRARY = torch.library.Library(OPERATORS, "FRAGMENT")
_OPS = getattr(torch.ops, OPERATORS)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensors(operator: str, **arguments: Tensor | None) -> None:
    """One supported dtype and one device for all.

    Raises:
        TypeError: not a tensor, an unsupported dtype, or dtypes that differ.
        ValueError: devices that differ.
    """
    first_name, first = next((n, t) for n, t in arguments.items() if t is not None)
    for name, tensor in arguments.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            out = "; use torch.fx.wrap or the module" if isinstance(tensor, fx.Proxy) else ""
            raise TypeError(
                f"{operator}: {name} is a {type(tensor).__name__}, expected a tensor{out}"
            )
        if tensor.dtype not in DTYPES:
            expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"{operator}: {name} is {tensor.dtype}, expected one of {expected}")
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{operator}: {name} is {tensor.dtype}, expected {first.dtype} as {first_name} is"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{operator}: {name} is on {tensor.device}, expected {first.device} as {first_name} is"
            )


def shape(operator: str, name: str, tensor: Tensor | None, **expected: int | None) -> None:
    """The rank and, where given, the sizes, by the name of each dimension.

    Raises:
        TypeError: None.
        ValueError: another rank or size.
    """
    if tensor is None:
        raise TypeError(f"{operator}: {name} is None, expected a tensor")
    fits = len(tensor.shape) == len(expected)
    if fits:
        for have, want in zip(tensor.shape, expected.values(), strict=True):
            if want is not None and have != want:
                fits = False
    if not fits:
        # Put together here and not before: a traced size that is printed becomes a constant.
        sizes = ", ".join(n if s is None else f"{n}={s}" for n, s in expected.items())
        raise ValueError(f"{operator}: {name} has shape {tuple(tensor.shape)}, expected ({sizes})")


def channels(operator: str, x: Tensor) -> None:
    """Something comes after the channels.

    Raises:
        ValueError: x has fewer than three dimensions.
    """
    if x.dim() < 3:
        raise ValueError(
            f"{operator}: x has shape {tuple(x.shape)}, expected at least 3 dimensions (N, C, *)"
        )


def lengths(
    operator: str, value: Tensor | None, rows: int, most: int, device: torch.device
) -> None:
    """Integers (B,) from 0 to the number of trunks or frames, on the device of the rest.

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
    shape(operator, "lengths", value, B=rows)
    if value.device != device:
        raise ValueError(f"{operator}: lengths is on {value.device}, expected {device}")
    if device.type == "cpu" and not torch.compiler.is_compiling() and rows:
        _OPS.check_lengths(value, most, operator)


def as_int64(value: Any) -> Any:
    """Lengths as the kernels take them; what `lengths` refuses stays as it is."""
    short = isinstance(value, Tensor) and value.dtype is torch.int32
    return value.long() if short else value


def _check_lengths(value: Tensor, most: int, operator: str) -> None:
    low, high = (bound.item() for bound in value.aminmax())
    if low < 0 or high > most:
        raise ValueError(f"{operator}: lengths go from {low} to {high}, expected from 0 to {most}")


def _check_lengths_of_all(_: Any, dims: Any, *arguments: Any) -> Any:
    return _OPS.check_lengths(*arguments), None


# An operator, since the values are seen neither under torch.vmap nor where tensors are fake.
LIBRARY.define("check_lengths(Tensor lengths, SymInt most, str operator) -> ()")
LIBRARY.impl("check_lengths", _check_lengths, "CompositeExplicitAutograd")
torch.library.register_fake(f"{OPERATORS}::check_lengths", lambda *_: None, lib=LIBRARY)
torch.library.register_vmap(f"{OPERATORS}::check_lengths", _check_lengths_of_all, lib=LIBRARY)
