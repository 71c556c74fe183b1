"""One operator on one set of inputs, whoever computes it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fbp_kernels import tf32

Results = Tensor | tuple[Tensor, ...]
Function = Callable[..., Results]
Thunk = Callable[[], tuple[Tensor, ...]]

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Other(Protocol):
    """Builds somebody else's implementation of a call; raises ImportError where it is not installed."""

    def __call__(self, tensors: tuple[Tensor, ...]) -> "Peer": ...


@dataclass(frozen=True)
class Peer:
    """Somebody else's implementation.

    Attributes:
        function: called with `tensors`.
        tensors: what gradients are taken of.
        like_ours: turns the gradients of `tensors` into those of the operator's own inputs.
    """

    function: Function
    tensors: tuple[Tensor, ...]
    like_ours: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Call:
    """An operator with its inputs.

    Attributes:
        operator: its name in `fbp_kernels`.
        sizes: by the field's letters.
        function: the public operator, called with `tensors`, `backend` and further options by name.
        reference: the plain PyTorch that defines it, called with `tensors`.
        tensors: inputs that have gradients.
        flops: of the forward.
        bare: parts that the forward cannot do without, by name; they write into results of their own.
        others: other people's implementations, by name.
        projections: numbers in one of the two projections, all trunks together, or 0 where there are none.
    """

    operator: str
    sizes: dict[str, int]
    function: Function
    reference: Function
    tensors: tuple[Tensor, ...]
    flops: float
    bare: dict[str, Thunk] = field(default_factory=dict)
    others: dict[str, Other] = field(default_factory=dict)
    projections: int = 0


class Maker(Protocol):
    """Makes the call of an operator at given sizes."""

    def __call__(self, sizes: dict[str, int], draw: "Draw") -> Call: ...


class Draw:
    """Random normal inputs of one dtype on one device, the same for a seed wherever they are used.

    Args:
        dtype: one of `DTYPES`; "tf32" is float32 whose products PyTorch may round.
        device: where they are put.
        seed: of the generator.
    """

    def __init__(self, dtype: str, device: str = "cpu", seed: int = 0) -> None:
        self.dtype, self.device = DTYPES[dtype], device
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self._generator) * scale
        return values.to(self.device, self.dtype)

    def empty(self, *shape: int) -> Tensor:
        """Memory for results, filled with NaN."""
        return torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)


def rounding(dtype: str) -> AbstractContextManager[None]:
    """Lets float32 products on a GPU round their operands where the dtype is "tf32", and only there."""
    return tf32.products(dtype == "tf32")


def results(value: Results) -> tuple[Tensor, ...]:
    """What a function returned, as a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def forward(function: Function, tensors: tuple[Tensor, ...]) -> Thunk:
    """Runs a function; no gradients are asked for."""
    given = tuple(t.requires_grad_(False) for t in tensors)
    return lambda: results(function(*given))


def training(
    function: Function, tensors: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> Thunk:
    """Runs a function forward and backward; gives its results, then the gradients of `tensors`."""
    given = leaves(tensors)

    def run() -> tuple[Tensor, ...]:
        outputs = results(function(*given))
        return (*outputs, *torch.autograd.grad(outputs, given, cotangents))

    return run


def leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors as inputs that gradients are taken of."""
    # Weights of somebody's module are leaves already, and have to stay the same objects.
    return tuple(t if t.requires_grad else t.detach().requires_grad_() for t in tensors)


def cotangents(call: Call, draw: Draw) -> tuple[Tensor, ...]:
    """Random gradients of the results."""
    with torch.no_grad():
        shapes = [tuple(t.shape) for t in results(call.reference(*call.tensors))]
    return tuple(draw(*shape) for shape in shapes)


def moved_bytes(call: Call, mode: str) -> int:
    """Each input and weight read once, each result written once.

    In training, the cotangents are read and the gradients written besides.
    """
    with torch.no_grad():
        outputs = results(call.reference(*call.tensors))
    once = sum(t.nbytes for t in (*call.tensors, *outputs))
    return once if mode == "forward" else 2 * once


def arithmetic(call: Call, mode: str) -> float:
    """Operations: each product of the forward has two in the backward, where projections are kept."""
    return call.flops if mode == "forward" else 3 * call.flops


def on_backend(function: Function, backend: str, **options: Any) -> Function:
    """The public operator on one backend."""

    def run(*tensors: Any) -> Results:
        return function(*tensors, backend=backend, **options)

    return run
