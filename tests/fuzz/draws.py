"""Draws argument sets for the raw operators: sizes, strides, dtypes, options, numbers, and what does not fit."""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EDGE = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38, 65504.0)

BATCH = (0, 1, 1, 2, 3, 5, 8, 13, 17, 33)
WIDTH = (0, 1, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 65)
OUTPUTS = (0, 1, 1, 2, 3, 5, 8, 13, 16, 17, 33)
FACTOR = (1, 1, 2, 3, 4, 5, 7)
TRUNKS = (0, 1, 1, 2, 3, 5)
LARGE = 0.03  # of all cases: enough work for several threads


@dataclass
class Call:
    """One call of a raw operator.

    Attributes:
        operator: its name in the library.
        arguments: in the order of the schema.
        wrong: what does not fit, or an empty string.
    """

    operator: str
    arguments: list[Any]
    wrong: str = ""


@dataclass
class Draw:
    """A generator of one case, and what all its tensors have in common.

    Attributes:
        number: of the case; the same number, with the same seed and dtypes, gives the same case.
        dtypes: those to choose from.
        edge: whether some numbers are NaN, infinite or at the edge of what the dtype holds.
        wrong: whether one argument is to be spoiled.
    """

    number: int
    seed: int = 0
    dtypes: tuple[torch.dtype, ...] = DTYPES
    rng: random.Random = field(init=False)
    values: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}/{self.number}")
        self.values = torch.Generator().manual_seed(self.rng.getrandbits(60))
        self.dtype = self.rng.choice(self.dtypes)
        self.edge = self.rng.random() < 0.15
        self.wrong = self.rng.random() < 0.2
        self.large = self.rng.random() < LARGE

    def size(self, choices: tuple[int, ...], large: int = 0) -> int:
        return large if self.large and large else self.rng.choice(choices)

    def tensor(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        """A tensor of any strides whose last element is the last of its memory; NaN lies in between."""
        dtype = dtype or self.dtype
        order = list(range(len(shape)))
        if self.rng.random() < 0.5:
            self.rng.shuffle(order)
        strides, extent = [0] * len(shape), 1
        gaps = self.rng.random() < 0.3
        for dim in reversed(order):
            if self.rng.random() < 0.05:
                continue  # expanded
            strides[dim] = extent * (self.rng.choice((1, 2, 3)) if gaps else 1)
            extent = strides[dim] * max(shape[dim], 1)
        offset = self.rng.choice((0, 0, 1, 3, 16))
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        memory = torch.full((offset + (last + 1 if 0 not in shape else 0),), math.nan, dtype=dtype)
        view = memory.as_strided(shape, strides, offset)
        used = torch.arange(memory.numel()).as_strided(shape, strides, offset).unique()
        numbers = torch.randn(used.numel(), generator=self.values, dtype=torch.float64) * scale
        if self.edge and numbers.numel():
            for _ in range(self.rng.randint(1, 3)):
                numbers[self.rng.randrange(numbers.numel())] = self.rng.choice(EDGE)
        memory[used] = numbers.to(dtype)
        return view

    def maybe(self, *shape: int, **how: Any) -> Tensor | None:
        return self.tensor(*shape, **how) if self.rng.random() < 0.5 else None

    def lengths(self, rows: int, most: int) -> Tensor | None:
        if self.rng.random() < 0.5:
            return None
        values = [self.rng.choice((0, most, self.rng.randint(0, most))) for _ in range(rows)]
        step = self.rng.choice((1, 1, 2))
        memory = torch.full((max((rows - 1) * step + 1, 0),), -(2**40))
        lengths = memory[::step]
        lengths.copy_(torch.tensor(values, dtype=torch.int64))
        return lengths

    def seed_and_dropout(self) -> tuple[Tensor | None, float]:
        if self.rng.random() < 0.5:
            return None, 0.0
        return torch.tensor(self.rng.getrandbits(63)), self.rng.choice((0.0, 0.1, 0.5, 1.0))

    def spoil(self, call: Call, sizes: dict[int, str]) -> Call:
        """Makes one argument of a call wrong.

        Args:
            call: one that fits.
            sizes: arguments by position whose value is checked: "tensor" for those whose every size is given by
                others too; "factor"; "probability"; "lengths", with the most that they may be after a colon.
        """
        there = [i for i in sizes if call.arguments[i] is not None]
        position = self.rng.choice(there)
        kind, _, most = sizes[position].partition(":")
        value = call.arguments[position]
        if kind == "tensor":
            how = self.rng.choice(("size", "rank", "dtype"))
            if how == "dtype":
                other = [d for d in (*DTYPES, torch.int64) if d != value.dtype]
                spoiled: Any = value.to(self.rng.choice(other))
            elif how == "rank" or value.dim() == 0:
                spoiled = value.unsqueeze(self.rng.randint(0, value.dim()))
            else:
                shape = list(value.shape)
                dim = self.rng.randrange(len(shape))
                shape[dim] += self.rng.choice((-1, 1)) if shape[dim] else 1
                spoiled = torch.zeros(shape, dtype=value.dtype)
        elif kind == "lengths":
            if value.numel() and self.rng.random() < 0.7:
                spoiled = value.clone()
                bad = (-1, int(most) + 1, 2**62, -(2**63))
                spoiled[self.rng.randrange(value.numel())] = self.rng.choice(bad)
            else:
                spoiled = self.rng.choice((value.double(), value.new_zeros(value.numel() + 1)))
        elif kind == "factor":
            spoiled = self.rng.choice((0, -1, -(2**63)))
        else:
            spoiled = self.rng.choice((-0.1, 1.1, math.nan, math.inf))
        call.arguments[position] = spoiled
        call.wrong = f"argument {position} ({kind})"
        return call


def needs(draw: Draw, inputs: list[Any]) -> int:
    """Bits of the inputs whose gradients are asked for."""
    return sum(1 << i for i, x in enumerate(inputs) if x is not None and draw.rng.random() < 0.7)
