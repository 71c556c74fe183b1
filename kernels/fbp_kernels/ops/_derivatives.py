"""Derivatives of functions in plain PyTorch, in whatever transform they are taken; they can be differentiated again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]


def pull_back(function: Callable[..., Any], inputs: Tensors, cotangents: Tensors) -> list[Any]:
    """Gradients of the inputs, None where there is no input.

    Args:
        function: of the inputs, gives a tuple of tensors.
        inputs: tensors, or None.
        cotangents: of the results; None is 0.
    """
    there = [i for i, t in enumerate(inputs) if t is not None]

    def of_those(*values: Tensor) -> Any:
        given = dict(zip(there, values, strict=True))
        return function(*(given.get(i) for i in range(len(inputs))))

    pulled: Any = torch.func.vjp(of_those, *(inputs[i] for i in there))
    results, pull = pulled
    gradients = dict(zip(there, pull(_filled(cotangents, results)), strict=True))
    return [gradients.get(i) for i in range(len(inputs))]


def push_forward(function: Callable[..., Any], inputs: Tensors, tangents: Tensors) -> list[Any]:
    """The tangents of the results.

    The gradient is linear in the cotangents, and its own gradient by them is the tangent. (`torch.func.jvp` cannot be
    called where somebody's dual tensors are: forward mode does not nest.)

    Args:
        function: of the inputs, gives a tuple of tensors.
        inputs: tensors, or None.
        tangents: of the inputs; None is 0.
    """
    there = [i for i, t in enumerate(inputs) if t is not None]

    def pulled(*cotangents: Tensor) -> tuple[Any, ...]:
        gradients = pull_back(function, inputs, cotangents)
        return tuple(gradients[i] for i in there)

    with torch.no_grad():
        results = function(*inputs)
    zeros = [torch.zeros_like(t) for t in results]
    return pull_back(pulled, zeros, [tangents[i] for i in there])


def _filled(tensors: Tensors, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)
    )
