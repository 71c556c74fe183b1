"""Which modules `accelerate` knows, and why it cannot serve one of them."""

import math

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
    modules.LocalResponseNorm: "local_response_norm",
    nn.LocalResponseNorm: "local_response_norm",
}


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
    if base is nn.LocalResponseNorm:
        return _why_not_local_response_norm(module)
    if isinstance(module, modules.BatchNormReLU):
        return module.apart()
    return ""


def _why_not_local_response_norm(module: nn.Module) -> str:
    """The same of PyTorch's own, whose class would be changed."""
    if type(module) is not nn.LocalResponseNorm:
        return (
            f"{type(module).__name__} is a subclass of LocalResponseNorm, and would not be any more"
        )
    for name in ("relu", "backend"):
        if hasattr(module, name):
            return f"it has an attribute {name!r} of its own"
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
