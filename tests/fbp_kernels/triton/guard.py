"""Guarded memory: what a kernel does not write shows, and so does what it writes or reads elsewhere.

Every tensor that a launcher allocates lies in a buffer of its own, filled with NaN, between margins. What is not
written stays NaN; a margin that has changed was written to. Margins of inputs are NaN, which spoils what is made of
them, those of allocations a number, so that a NaN that was read outside of an input and written outside of a
result shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from fbp_kernels import backends

MARGIN = 1024  # elements on either side, so that what lies between is aligned as PyTorch's allocations are
_NUMBER = 49152.0  # in the margins of allocations; every dtype has it

_EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_ZERO = ("zeros", "zeros_like", "new_zeros")


def _poison(dtype: torch.dtype) -> float | int:
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


class Guards(TorchDispatchMode):
    """Puts what is allocated under it between margins, and says whether they are whole."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[tuple[Tensor, Tensor]] = []  # now, and as they were made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _EMPTY + _ZERO or not made.numel() or made.device.type != "cpu":
            return made
        fill = 0 if name in _ZERO else _poison(made.dtype)
        return self._between(made, fill, _NUMBER if made.is_floating_point() else fill)

    def embed(self, tensor: Tensor) -> Tensor:
        """A copy of an input between margins, of the same shape and strides."""
        inside = self._between(tensor, _poison(tensor.dtype), _poison(tensor.dtype))
        return inside.copy_(tensor)

    def _between(self, tensor: Tensor, fill: float, margin: float) -> Tensor:
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((n - 1) * s for n, s in sizes) if tensor.numel() else 0
        buffer = torch.full((2 * MARGIN + extent,), fill, dtype=tensor.dtype)
        buffer[:MARGIN] = buffer[MARGIN + extent :] = margin
        self.buffers.append((buffer, buffer.clone()))
        return buffer.as_strided(tensor.shape, tensor.stride(), MARGIN)

    def assert_whole(self) -> None:
        """No margin was written to."""
        for buffer, before in self.buffers:
            for margin in (slice(MARGIN), slice(-MARGIN, None)):
                torch.testing.assert_close(
                    buffer[margin], before[margin], rtol=0, atol=0, equal_nan=True
                )


@contextmanager
def reversed_programs() -> Iterator[None]:
    """Within it, the interpreter runs the programs of a launch in the reverse order."""
    builder = interpreter.interpreter_builder
    forward, dimensions = builder.set_grid_idx, builder.set_grid_dim
    most: list[int] = []

    def set_grid_dim(*sizes: int) -> None:
        most[:] = sizes
        dimensions(*sizes)

    def set_grid_idx(*index: int) -> None:
        forward(*(n - 1 - i for n, i in zip(most, index, strict=True)))

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx
    try:
        yield
    finally:
        del builder.set_grid_dim, builder.set_grid_idx  # the class's own again


@contextmanager
def guarded(operator: str) -> Iterator[Guards]:
    """Within it, what the Triton kernels of an operator allocate is guarded; margins are checked at its end."""
    guards = Guards()
    kernel = backends.kernel(operator, "triton")

    def under(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with guards:
                return call(*arguments)

        return run

    backends._kernels[operator]["triton"] = backends.Kernel(
        under(kernel.forward), under(kernel.backward)
    )
    try:
        yield guards
    finally:
        backends._kernels[operator]["triton"] = kernel
    guards.assert_whole()
