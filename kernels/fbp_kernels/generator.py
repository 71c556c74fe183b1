"""PyTorch's generator of the CPU: its state, and the numbers that follow from one."""

import functools
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from . import opaque

# Held from where the state of torch's own generator is read to where it is moved on.
LOCK = threading.Lock()


def state() -> Tensor:
    """Of torch's own generator: int64, whose bytes are those of `torch.get_rng_state()`."""
    return torch.get_rng_state().view(torch.int64)


def move_to(after: Tensor) -> None:
    """Gives torch's own generator a state that `state` or a kernel gave."""
    torch.set_rng_state(after.view(torch.uint8))


def uniform_like(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from 0 to below 1 that a generator of a state gives, one for each element in the order of memory.

    Returns:
        The numbers, float64, in the layout of `torch.empty_like(x)` and on the device of x; and the state afterwards.
    """
    numbers, after = _uniform(state, x.shape, x.stride())
    return numbers.to(x.device), after


@functools.cache
def draws_alike() -> bool:
    """Whether PyTorch makes its dropout masks of these numbers: not where it draws by MKL, as on Intel's processors.

    Another generator is asked, not torch's own.
    """
    generator = torch.Generator().manual_seed(0)
    numbers, after = _uniform(generator.get_state().view(torch.int64), (999,), (1,))
    mask = torch.empty(999).bernoulli_(0.7, generator=generator)
    same_state = torch.equal(after.view(torch.uint8), generator.get_state())
    return same_state and torch.equal(mask, (numbers < 0.7).float())


def _like(size: Sequence[int], stride: Sequence[int]) -> Tensor:
    strided = torch.empty_strided(size, stride, dtype=torch.float64, device="meta")
    return torch.empty_like(strided, device="cpu")


def _draw(state: Tensor, size: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator()
    generator.set_state(state.contiguous().view(torch.uint8))
    numbers = _like(size, stride).uniform_(generator=generator)
    return numbers, generator.get_state().view(torch.int64)


def _fake(state: Tensor, size: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    return _like(size, stride), torch.empty_like(state)


# An operator, since random numbers are not to be had under torch.vmap, and a generator not where tensors are fake.
_uniform = opaque.define(
    "uniform(Tensor state, SymInt[] size, SymInt[] stride) -> (Tensor, Tensor)", _draw, _fake
)
