"""Puts fused kernels under a model that is there already, and takes them out again.

`accelerating.served` knows which modules there are kernels for, `layout` which convolutions may be laid out channels
last, `report` what is said about both. They only look; what changes a model is here.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from . import backends
from .accelerating import layout, served
from .accelerating.report import Replacement, Report

__all__ = ["Replacement", "Report", "accelerate", "restore"]

_BEFORE = "before_accelerate"  # the attribute in which a changed module has its `_Before`


@dataclass(frozen=True)
class _Before:
    """How a module was before it was accelerated first.

    Attributes:
        kind: its class.
        switched: whether it was told a backend since.
        backend: what it was told before, where it is one of ours.
        shape: of a convolution's weight.
        strides: likewise.
    """

    kind: type[nn.Module]
    switched: bool = False
    backend: str | None = None
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


def accelerate(
    model: nn.Module, backend: str | None = None, *, channels_last: bool = False
) -> Report:
    """Switches every module that has a fused kernel to it, in place; all of them, or after an exception none.

    Modules stay the objects that they are: parameters, buffers, hooks, training mode and state-dict keys do not change.
    Known are the modules of `fbp_kernels`, and `torch.nn.LocalResponseNorm` and `torch.nn.Dropout`, whose class becomes
    that of `fbp_kernels` of the same name. What cannot be served stays as it was, and the report says why. Where no
    backend is asked for, every call chooses one, so that a model may be moved to another device or dtype afterwards.

    With `channels_last`, the weights of `torch.nn.Conv2d` are laid out channels last, in place, as
    `module.to(memory_format=torch.channels_last)` does: values, shapes and state dicts stay, strides do not.
    Convolutions are faster so on CPUs, as was measured, and on GPUs, as their makers say and nobody measured here:
    tensor cores take channels last, cuDNN copies to and fro where it is given anything else, and PyTorch uses them for
    float32 too unless `torch.backends.cudnn` is told not to allow TF32. Results, and all that follows, keep the layout,
    in which the fused kernels read them without a copy. It is to be asked for, since not all that worked does so
    afterwards: whoever calls `view` on a result or a weight must call `reshape` instead, which PyTorch's own
    `torch.optim.LBFGS`, `torch.nn.utils.parameters_to_vector` and `torch.nn.utils.prune` do not; and an optimiser that
    has taken steps already keeps its state in the old layout.

    Args:
        model: any module; the device of its parts decides what can run.
        backend: the one to use, or None for the best there is for each operator.
        channels_last: lay out convolutions, too, where fused kernels come in.

    Returns:
        One entry for each known module, also for those that stay as they were, with the reason. Nothing is printed;
        the report can be.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the backend asked for can run none of the operators here.
    """
    known = {n: module for n, module in model.named_modules() if served.kind(module) is not None}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    report = Report(_plan(name, module, backend, device) for name, module in known.items())
    _refuse(report, known, backend)
    fused = any(entry.backend != "reference" for entry in report.replaced)
    convolutions, report.layout.left = layout.look(model) if channels_last and fused else ({}, {})
    with ExitStack() as undo:
        for entry in report.replaced:
            _switch(known[entry.name], backend, undo)
        for name, module in convolutions.items():
            if module.weight.stride() != layout.channels_last(module.weight):
                _lay_out(module, undo)
                report.layout.changed.append(name)
        undo.pop_all()
    return report


def restore(model: nn.Module) -> list[str]:
    """Undoes `accelerate`, all of it, or after an exception nothing: classes, settings and layouts are what they were.

    Modules and parameters stay the objects that they are. It works on copies of an accelerated model too, on what was
    unpickled, and on a part of one. What somebody replaced since, a module or a weight, stays.

    Args:
        model: a model, or what it is a part of.

    Returns:
        The names of the modules that were changed back.

    Raises:
        RuntimeError: a module is of another class than `accelerate` gave it, as `fully_shard` does; undo that first.
    """
    changed = {n: module for n, module in model.named_modules() if _BEFORE in vars(module)}
    for name, module in changed.items():
        before, now = vars(module)[_BEFORE], type(module)
        turned = served.TURNED.get(before.kind) if before.switched else None
        if turned and now is not turned.kind:
            raise RuntimeError(
                f"restore: {name or 'the model'} is a {now.__name__}, expected a {turned.kind.__name__}"
            )
    with ExitStack() as undo:
        for module in changed.values():
            _undo(module, undo)
        undo.pop_all()
    return list(changed)


def _plan(name: str, module: nn.Module, backend: str | None, device: torch.device) -> Replacement:
    """What is to become of a known module."""
    kind = served.kind(module)
    assert kind is not None
    operator = served.OPERATORS[kind]
    device_type = next((p.device for p in module.parameters()), device).type
    plain = kind in served.TURNED
    own = None if plain else module.backend or backends.resolve(operator, None, device_type)
    now = "reference" if served.by_pytorch(module) else str(own or "reference")
    entry = (name, type(module).__name__, operator)
    if plain and backend == "reference":
        return Replacement(*entry, "reference")
    reason = served.why_not(module)
    if reason:
        return Replacement(*entry, now, reason)
    try:
        chosen = backends.resolve(operator, backend, device_type)
    except RuntimeError as error:
        return Replacement(*entry, now, str(error))
    if chosen == "reference" and backend != "reference":
        return Replacement(*entry, now, _why_reference(operator, device_type))
    return Replacement(*entry, chosen)


def _why_reference(operator: str, device_type: str) -> str:
    """Why the best for an operator is no kernel of ours."""
    missing = (
        f"{status.backend}: {status.reason}"
        for status in backends.available_backends(device_type)
        if status.operator == operator and not status.available
    )
    return "; ".join(missing) or f"the environment variable {backends.ENVIRONMENT} asks for it"


def _refuse(report: Report, known: dict[str, nn.Module], backend: str | None) -> None:
    """Raises where a backend was asked for and runs nothing that could have been switched."""
    in_vain = [entry for entry in report.left if not served.why_not(known[entry.name])]
    if backend and in_vain and not report.replaced:
        raise RuntimeError(
            f"accelerate: nothing can run on backend {backend!r}: {in_vain[0].reason}"
        )


def _switch(module: nn.Module, backend: str | None, undo: ExitStack) -> None:
    """Tells a module its backend; PyTorch's own becomes one that can be told."""
    turned = served.TURNED.get(type(module))
    if turned and backend == "reference":
        return
    _set_back_on(undo, module)
    before = vars(module).get(_BEFORE, _Before(type(module)))
    if not before.switched:
        told: Any = None if turned else module.backend
        vars(module)[_BEFORE] = replace(before, switched=True, backend=told)
    if turned:
        # Same attributes and a few more: changing the class keeps the object, and so everything hung on it.
        module.__class__ = turned.kind
        for name, value in turned.added.items():
            setattr(module, name, value)
    module.backend = backend  # type: ignore[assignment]


def _lay_out(module: nn.Conv2d, undo: ExitStack) -> None:
    _set_back_on(undo, module)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    before = vars(module).get(_BEFORE, _Before(type(module)))
    if not before.strides:
        vars(module)[_BEFORE] = replace(before, shape=tuple(weight.shape), strides=weight.stride())
    layout.lay_out(weight, layout.channels_last(weight), undo)


def _undo(module: nn.Module, undo: ExitStack) -> None:
    _set_back_on(undo, module)
    before: _Before = vars(module).pop(_BEFORE)
    if before.strides:
        weight = module.weight
        if type(weight) is nn.Parameter and weight.shape == before.shape:
            layout.lay_out(weight, before.strides, undo)
    if not before.switched:
        return
    if turned := served.TURNED.get(before.kind):
        for name in turned.names:
            delattr(module, name)
        module.__class__ = before.kind
    else:
        module.backend = before.backend  # type: ignore[assignment]


def _set_back_on(undo: ExitStack, module: nn.Module) -> None:
    """Has `undo` give a module the class and the attributes that it has now."""
    undo.callback(vars(module).update, dict(vars(module)))
    undo.callback(vars(module).clear)
    undo.callback(setattr, module, "__class__", type(module))
