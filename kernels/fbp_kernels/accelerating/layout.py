"""Weights of convolutions channels last: of which the layout can be changed, and how."""

from collections import Counter
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from .. import modules

Memory = tuple[torch.device, int]

_FORWARDS = (nn.Conv2d.forward, modules.Conv2d.forward)


def look(model: nn.Module) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """The convolutions that can be laid out channels last, and why others cannot; both by name."""
    found = {n: module for n, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    owners = Counter(map(_memory, tensors.values()))
    left = {name: _why_not(module, owners) for name, module in found.items()}
    return (
        {name: module for name, module in found.items() if not left[name]},
        {name: reason for name, reason in left.items() if reason},
    )


def channels_last(weight: Tensor) -> tuple[int, ...]:
    """The strides of a weight (O, I, H, W) that is laid out so; of one with an extent of 1, too."""
    _, channels, height, width = weight.shape
    return (height * width * channels, 1, width * channels, channels)


def lay_out(weight: nn.Parameter, strides: tuple[int, ...], undo: ExitStack) -> None:
    """Changes the strides of a weight and of its gradient; `undo` gives them the memory back that they had."""
    for tensor in (weight, weight.grad):
        if tensor is None or not _alone(tensor):
            continue
        undo.callback(setattr, tensor, "data", tensor.data)
        with torch.inference_mode(False):  # else nobody could train it afterwards
            laid = torch.empty_strided(
                tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
            )
            tensor.data = laid.copy_(tensor.detach())


def _why_not(module: nn.Conv2d, owners: Counter[Memory]) -> str:
    """Why one convolution has to stay as it is, or an empty string."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if "forward" in vars(module) or type(module).forward not in _FORWARDS:
        return f"{type(module).__name__} has a forward of its own"
    if weight is None:
        return "its weight is computed from others"
    if type(weight) is not nn.Parameter:
        return f"its weight is of type {type(weight).__name__}, expected a plain parameter"
    if weight.is_inference():
        return "its weight was made in inference mode"
    in_other_processes = weight.device.type == "cpu" and weight.is_shared()
    if in_other_processes or owners[_memory(weight)] > 1 or not _alone(weight):
        return "its weight shares its memory"
    return ""


def _memory(tensor: Tensor) -> Memory:
    """Where a tensor's memory begins, different for all that have none."""
    try:
        start = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):  # lazy, or of a kind that wraps others
        start = 0
    return tensor.device, start or -id(tensor)


def _alone(tensor: Tensor) -> bool:
    """Whether it is all of its memory."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
