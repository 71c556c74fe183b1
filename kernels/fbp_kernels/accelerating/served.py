"""Which modules `accelerate` knows, and why it cannot serve one of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import modules

# Which operator a module runs; a new module is one line here.
OPERATORS: dict[type[nn.Module], str] = {
    modules.FactorizedBilinearPooling: "fbp",
    modules.TrunkFactorizedBilinearPooling: "trunk_fbp",
    modules.AdaptiveMultiLevelFBP: "am_fbp",
    modules.AttentionPool: "attention_pool",
    modules.BatchNorm: "batch_norm",
    modules.BatchNormReLU: "batch_norm",
    modules.Conv2d: "conv2d",
    modules.Dropout: "dropout",
    modules.LocalResponseNorm: "local_response_norm",
    nn.Dropout: "dropout",
    nn.LocalResponseNorm: "local_response_norm",
}


@dataclass(frozen=True)
class Turned:
    """What becomes of a module of PyTorch's own: of the same attributes and a few more, which a change of class adds.

    Attributes:
        kind: the class that it gets.
        added: the attributes and what they begin with; and there is `backend`.
        why_not: why that cannot be, or an empty string.
    """

    kind: type[nn.Module]
    added: dict[str, Any]
    why_not: Callable[[Any], str]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is added."""
        return (*self.added, "backend")


def kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of `OPERATORS` that a module is of, itself or by a subclass, or None."""
    return next((base for base in type(module).__mro__ if base in OPERATORS), None)


def why_not(module: nn.Module) -> str:
    """Why a module of a known kind cannot be switched, whatever the backend, or an empty string where it can."""
    base, own = kind(module), type(module)
    assert base is not None
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if own.forward is not base.forward:
        return f"{own.__name__} is a subclass of {base.__name__} with a forward of its own"
    if base in TURNED:
        return _why_not_turned(module, base)
    return by_pytorch(module)


def by_pytorch(module: nn.Module) -> str:
    """Why a module of ours calls PyTorch's own, whatever its backend, or an empty string."""
    if isinstance(module, modules.BatchNormReLU):
        return module.apart()
    if isinstance(module, modules.Conv2d):
        return module.plain()
    return ""


def _why_not_turned(module: nn.Module, base: type[nn.Module]) -> str:
    """The same of PyTorch's own, whose class would be changed."""
    own = type(module).__name__
    if type(module) is not base:
        return f"{own} is a subclass of {base.__name__}, and would not be any more"
    for name in TURNED[base].names:
        if hasattr(module, name):
            return f"it has an attribute {name!r} of its own"
    return TURNED[base].why_not(module)


def _why_not_dropout(module: nn.Dropout) -> str:
    return "it works in place" if module.inplace else ""


def _why_not_local_response_norm(module: nn.LocalResponseNorm) -> str:
    size, numbers = module.size, {n: getattr(module, n) for n in ("alpha", "beta", "k")}
    if type(size) is not int or size < 1:
        return f"size is {size!r}, expected an integer of at least 1"
    for name, number in numbers.items():
        if type(number) not in (int, float) or not math.isfinite(number):
            return f"{name} is {number!r}, expected a finite number"
    if numbers["k"] <= 0:
        return f"k is {numbers['k']}, expected above 0"
    if numbers["alpha"] < 0:
        return f"alpha is {numbers['alpha']}, expected at least 0"
    return ""


TURNED: dict[type[nn.Module], Turned] = {
    nn.Dropout: Turned(modules.Dropout, {}, _why_not_dropout),
    nn.LocalResponseNorm: Turned(
        modules.LocalResponseNorm, {"relu": False}, _why_not_local_response_norm
    ),
}
