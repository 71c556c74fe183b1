"""How PyTorch is told of the package's operators."""

from collections.abc import Callable
from typing import Any

import torch

from .libraries import OPERATORS

_LIBRARY = torch.library.Library(OPERATORS, "DEF")


def define(
    schema: str, run: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """An operator of PyTorch's: opaque with a fake kernel, else what tracing looks into.

    Args:
        schema: name, arguments and results, as PyTorch writes them.
        run: what it does, on any device.
        fake: what its results look like, of arguments without values.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, f"Composite{'Explicit' if fake else 'Implicit'}Autograd")
    if fake:
        torch.library.register_fake(f"{OPERATORS}::{name}", fake, lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, OPERATORS), name).default
    return operator


def vmapped(name: str, rule: Callable[..., Any]) -> None:
    """What `torch.vmap` is to make of an operator."""
    torch.library.register_vmap(f"{OPERATORS}::{name}", rule, lib=_LIBRARY)
