"""Puts fused kernels under a model that is there already."""

from dataclasses import dataclass

import torch
from torch import nn

from . import backends, modules

# Which operator a module of ours runs; a new module is one line here.
_OPERATORS: dict[type[nn.Module], str] = {
    modules.FactorizedBilinearPooling: "fbp",
    modules.TrunkFactorizedBilinearPooling: "trunk_fbp",
    modules.AdaptiveMultiLevelFBP: "am_fbp",
    modules.AttentionPool: "attention_pool",
    modules.BatchNorm: "batch_norm",
    modules.LocalResponseNorm: "local_response_norm",
}


@dataclass(frozen=True)
class Replacement:
    """What became of one module of the model.

    Attributes:
        name: its path in the model, "" for the model itself.
        module: its class before.
        operator: what runs it.
        backend: which kernels run it from now on; where none was asked for, the best that is there.
        reason: why it was left on the reference, or "" where it was accelerated.
    """

    name: str
    module: str
    operator: str
    backend: str
    reason: str = ""


def accelerate(model: nn.Module, backend: str | None = None) -> list[Replacement]:
    """Switches every module that has a fused kernel to it, in place.

    Modules stay the objects that they are: parameters, buffers, hooks, training mode and state-dict keys do not change.
    Known are the modules of `fbp_kernels` and `torch.nn.LocalResponseNorm`; subclasses of them are left alone,
    since they may mean something else.

    Where fused kernels come in, the weights of all `torch.nn.Conv2d` are laid out channels last as well, in place, as
    `module.to(memory_format=torch.channels_last)` does: values, shapes and state dicts stay, strides do not.
    Convolutions are faster so on CPUs, as was measured, and on GPUs, as their makers say and nobody measured here:
    tensor cores take channels last, cuDNN copies to and fro where it is given anything else, and PyTorch uses them for
    float32 too unless `torch.backends.cudnn` is told not to allow TF32. Results, and all that follows, keep the layout,
    in which the fused kernels read them without a copy. A model that calls `view` on the result of a convolution must
    call `reshape` instead, and an optimiser that has taken steps already keeps its state in the old layout: accelerate
    first.

    Args:
        model: any module; its device decides what can run.
        backend: the one to use, or None for the best there is for each operator.

    Returns:
        One entry for each known module, also for those left on the reference because the backend has no
        kernel for their operator, with the reason. Nothing is printed.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend asked for can run none of the operators here.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    known = [(name, module) for name, module in model.named_modules() if _operator(module)]
    plan = [_plan(name, module, backend, device.type) for name, module in known]
    if backend and plan and all(entry.reason for entry in plan):
        raise RuntimeError(f"accelerate: nothing can run on backend {backend!r}: {plan[0].reason}")
    for (_, module), entry in zip(known, plan, strict=True):
        # Where nobody asks for one, every call chooses: the best depends on its size, dtype and mode.
        _switch(module, entry.backend if entry.reason else backend)
    if any(entry.backend != "reference" for entry in plan):
        _channels_last(model)
    return plan


def _operator(module: nn.Module) -> str | None:
    if type(module) is nn.LocalResponseNorm:
        return "local_response_norm"
    return _OPERATORS.get(type(module))


def _plan(name: str, module: nn.Module, backend: str | None, device_type: str) -> Replacement:
    operator = _operator(module)
    assert operator is not None
    entry = (name, type(module).__name__, operator)
    try:
        chosen = backends.resolve(operator, backend, device_type)
    except RuntimeError as error:
        return Replacement(*entry, "reference", str(error))
    if chosen == "reference" and backend != "reference":
        return Replacement(*entry, "reference", _why_reference(operator, device_type))
    return Replacement(*entry, chosen)


def _why_reference(operator: str, device_type: str) -> str:
    missing = (
        f"{status.backend}: {status.reason}"
        for status in backends.available_backends(device_type)
        if status.operator == operator and not status.available
    )
    return "; ".join(missing) or f"the environment variable {backends.ENVIRONMENT} asks for it"


def _channels_last(model: nn.Module) -> None:
    """Lays the weights of convolutions out channels last, and so what they give and all that follows."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _switch(module: nn.Module, backend: str | None) -> None:
    if type(module) is nn.LocalResponseNorm:
        # Same attributes and one more: changing the class keeps the object, and so everything hung on it.
        module.__class__ = modules.LocalResponseNorm
        module.relu = False  # type: ignore[assignment]
    module.backend = backend  # type: ignore[assignment]
