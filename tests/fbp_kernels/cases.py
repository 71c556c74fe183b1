"""Hypothesis strategies: operator calls of every shape, stride, dtype and option."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fbp_kernels as fk

from .checks import assert_parity, strided

LAYOUTS = ("contiguous", "transposed", "sliced", "batch_last")

factor = st.integers(1, 7)
trunks = st.integers(1, 5)
dropout = st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])


@dataclass(frozen=True)
class Scope:
    """What is drawn for a backend.

    Attributes:
        dtypes: those that it serves.
        batch: rows.
        width: of inputs, of channels too.
        outputs: O.
        channels: of local response normalisation.
        positions: along one dimension after the channels.
        examples: how many cases.
        draws: of the values of each, over which errors are taken.
    """

    dtypes: tuple[torch.dtype, ...]
    batch: st.SearchStrategy[int]
    width: st.SearchStrategy[int]
    outputs: st.SearchStrategy[int]
    channels: st.SearchStrategy[int]
    positions: st.SearchStrategy[int]
    examples: int
    draws: int


SCOPES = {
    "native": Scope(
        dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        batch=st.integers(0, 13) | st.sampled_from([16, 33, 67]),
        width=st.integers(1, 40) | st.sampled_from([64, 129]),
        outputs=st.integers(1, 20) | st.sampled_from([37, 64]),
        channels=st.integers(1, 40),
        positions=st.integers(1, 9),
        examples=40,
        draws=8,
    ),
    # The interpreter takes milliseconds for each program. Its tiles are small: these sizes have several.
    "triton": Scope(
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        batch=st.integers(0, 5) | st.just(17),
        width=st.integers(1, 20) | st.just(33),
        outputs=st.integers(1, 7) | st.just(11),
        channels=st.integers(1, 20),
        positions=st.integers(1, 4),
        examples=6,
        draws=4,
    ),
}


class Spec(NamedTuple):
    """What one input looks like, whatever its values."""

    shape: tuple[int, ...]
    scale: float
    layout: str
    offset: float = 0.0


@dataclass
class Case:
    operator: Callable[..., Any]
    inputs: list[Spec | None]
    arguments: dict[str, Any]
    dtype: torch.dtype

    def draw(self, seed: int) -> list[Tensor | None]:
        """Values for the inputs."""
        generator = torch.Generator().manual_seed(seed)
        values = [
            None
            if s is None
            else torch.randn(s.shape, generator=generator, dtype=torch.float64) * s.scale + s.offset
            for s in self.inputs
        ]
        return [
            None if s is None or x is None else strided(x.to(self.dtype), s.layout)
            for s, x in zip(self.inputs, values, strict=True)
        ]


class Draw:
    """Draws what inputs look like, each in a layout of its own."""

    def __init__(self, data: st.DataObject, scope: Scope) -> None:
        self.data = data
        self.scope = scope
        self.dtype = data.draw(st.sampled_from(scope.dtypes), label="dtype")

    @property
    def sizes(self) -> tuple[st.SearchStrategy[int], ...]:
        return self.scope.batch, self.scope.width, self.scope.outputs

    def tensor(self, *shape: int, scale: float = 1.0) -> Spec:
        layout = self.data.draw(st.sampled_from(LAYOUTS)) if len(shape) > 1 else "contiguous"
        return Spec(shape, scale, layout)

    def bias(self, *shape: int) -> Spec | None:
        return self.tensor(*shape) if self.data.draw(st.booleans(), label="bias") else None

    def lengths(self, rows: int, most: int) -> Tensor | None:
        if not self.data.draw(st.booleans(), label="ragged"):
            return None
        values = st.lists(st.integers(0, most), min_size=rows, max_size=rows)
        dtype = self.data.draw(st.sampled_from([torch.int64, torch.int32]))
        return torch.tensor(self.data.draw(values, label="lengths"), dtype=dtype)


def keyword(operator: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The operator with some of its tensor keywords as positional arguments, so that all are inputs."""

    def call(*tensors: Tensor | None, **arguments: Any) -> Any:
        split = len(tensors) - len(names)
        named = dict(zip(names, tensors[split:], strict=True))
        return operator(*tensors[:split], **named, **arguments)

    call.__name__ = operator.__name__
    return call


def fbp(draw: Draw) -> Case:
    data, (batch, width, outputs) = draw.data, draw.sizes
    B, C, D, O, K = (data.draw(s) for s in (batch, width, width, outputs, factor))
    N = O * K
    inputs = [
        draw.tensor(B, C), draw.tensor(B, D),
        draw.tensor(C, N, scale=C**-0.5), draw.tensor(D, N, scale=D**-0.5),
        draw.bias(N), draw.bias(N),
    ]  # fmt: skip
    arguments = {
        "factor": K,
        "adaptive": data.draw(st.booleans(), label="adaptive"),
        "dropout": data.draw(dropout, label="dropout"),
        "training": True,
    }
    return Case(keyword(fk.fbp, ("p_bias", "q_bias")), inputs, arguments, draw.dtype)


def trunk_fbp(draw: Draw) -> Case:
    data, (batch, width, outputs) = draw.data, draw.sizes
    B, H, C, D, O, K = (data.draw(s) for s in (batch, trunks, width, width, outputs, factor))
    N = O * K
    inputs = [
        draw.tensor(B, H, C), draw.tensor(B, H, D),
        draw.tensor(H, C, N, scale=C**-0.5), draw.tensor(H, D, N, scale=D**-0.5),
        draw.bias(H, N), draw.bias(H, N),
    ]  # fmt: skip
    arguments = {
        "factor": K,
        "lengths": draw.lengths(B, H),
        "dropout": data.draw(dropout, label="dropout"),
        "training": True,
    }
    return Case(keyword(fk.trunk_fbp, ("p_bias", "q_bias")), inputs, arguments, draw.dtype)


def am_fbp(draw: Draw) -> Case:
    data, (batch, width, outputs) = draw.data, draw.sizes
    B, H, C, D = (data.draw(s) for s in (batch, trunks, width, width))
    O_G, K_G, O_M, K_M = (data.draw(s) for s in (outputs, factor, outputs, factor))
    inputs: list[Spec | None] = [
        draw.tensor(B, C), draw.tensor(B, D), draw.tensor(B, H, C), draw.tensor(B, H, D),
        draw.tensor(C, O_G * K_G, scale=C**-0.5), draw.tensor(D, O_G * K_G, scale=D**-0.5),
        draw.tensor(H, C, O_M * K_M, scale=C**-0.5), draw.tensor(H, D, O_M * K_M, scale=D**-0.5),
    ]  # fmt: skip
    arguments = {
        "factor": K_G,
        "trunk_factor": K_M,
        "adaptive": data.draw(st.booleans(), label="adaptive"),
        "lengths": draw.lengths(B, H),
        "dropout": data.draw(dropout, label="dropout"),
        "training": True,
    }
    return Case(fk.am_fbp, inputs, arguments, draw.dtype)


def local_response_norm(draw: Draw) -> Case:
    data = draw.data
    shape = (data.draw(st.integers(0, 3)), data.draw(draw.scope.channels))
    shape += tuple(data.draw(st.lists(draw.scope.positions, min_size=1, max_size=3)))
    x = draw.tensor(*shape, scale=data.draw(st.sampled_from([1.0, 30.0])))
    if len(shape) == 4 and data.draw(st.booleans(), label="channels_last"):
        x = x._replace(layout="channels_last")
    arguments = {
        "size": data.draw(st.integers(1, 9)),
        "alpha": data.draw(st.sampled_from([1e-4, 0.5])),
        "beta": data.draw(st.sampled_from([0.75, 0.5, 1.3])),
        "k": data.draw(st.sampled_from([1.0, 2.0])),
        "relu": data.draw(st.booleans()),
    }
    return Case(fk.local_response_norm, [x], arguments, draw.dtype)


def batch_norm(draw: Draw) -> Case:
    data = draw.data
    shape = (data.draw(st.integers(0, 5)), data.draw(st.integers(1, 40) | st.just(130)))
    shape += tuple(data.draw(st.lists(draw.scope.positions, min_size=1, max_size=3)))
    # Where the mean is many deviations off, the mean of the squares says nothing about the variance.
    offset = data.draw(st.sampled_from([0.0, 3.0, 300.0]), label="offset")
    x = draw.tensor(*shape, scale=data.draw(st.sampled_from([1.0, 30.0])))._replace(offset=offset)
    if len(shape) == 4 and data.draw(st.booleans(), label="channels_last"):
        x = x._replace(layout="channels_last")
    arguments = {
        "lengths": draw.lengths(shape[0], shape[-1]),
        "eps": data.draw(st.sampled_from([1e-5, 0.1])),
        "relu": data.draw(st.booleans(), label="relu"),
    }
    channel = draw.tensor(shape[1])
    return Case(fk.batch_norm, [x, channel, channel], arguments, draw.dtype)


def power_normalize(draw: Draw) -> Case:
    data = draw.data
    shape = (*data.draw(st.lists(st.integers(0, 4), max_size=2)), data.draw(draw.scope.width))
    # Rows whose norm is below eps are divided by eps: the case has both kinds.
    scale = data.draw(st.sampled_from([1.0, 1e-4, 30.0]), label="scale")
    arguments = {"eps": data.draw(st.sampled_from([1e-12, 0.02]), label="eps")}
    return Case(fk.power_normalize, [draw.tensor(*shape, scale=scale)], arguments, draw.dtype)


def attention_pool(draw: Draw) -> Case:
    data = draw.data
    B, T = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 12) | st.just(37))
    C, A, H = data.draw(draw.scope.width), data.draw(draw.scope.outputs), data.draw(trunks)
    inputs = [
        draw.tensor(B, T, C), draw.tensor(C, A, scale=C**-0.5), draw.tensor(A), draw.tensor(A),
        draw.tensor(),
    ]  # fmt: skip
    arguments = {"trunks": H, "lengths": draw.lengths(B, T)}
    return Case(fk.attention_pool, inputs, arguments, draw.dtype)


def dropped(draw: Draw) -> Case:
    """`fk.dropout`."""
    data = draw.data
    shape = data.draw(st.lists(draw.scope.width, min_size=1, max_size=3), label="shape")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    for _ in range(data.draw(st.sampled_from([0, 1, 2, 623, 624]), label="drawn before")):
        torch.randint(9, (), generator=generator)  # a word of 32 bits each
    state = generator.get_state().view(torch.int64)
    arguments = {"p": data.draw(dropout, label="p"), "state": state}
    return Case(fk.dropout, [draw.tensor(*shape)], arguments, draw.dtype)


def conv2d(draw: Draw) -> Case:
    data = draw.data
    stride, padding, kernel = (
        tuple(data.draw(st.integers(low, high), label=name) for _ in range(2))
        for name, low, high in (("stride", 1, 3), ("padding", 0, 2), ("kernel", 1, 4))
    )
    height, width = (
        data.draw(st.integers(max(1, k - 2 * p), 11)) for k, p in zip(kernel, padding, strict=True)
    )
    channels = data.draw(st.integers(1, 20) | st.sampled_from([32, 48]), label="channels")
    outputs = data.draw(draw.scope.outputs, label="outputs")
    x = draw.tensor(data.draw(st.integers(1, 4), label="images"), channels, height, width)
    weight = draw.tensor(outputs, channels, *kernel, scale=(channels * kernel[0]) ** -0.5)
    if data.draw(st.booleans(), label="channels_last"):
        x, weight = (t._replace(layout="channels_last") for t in (x, weight))
    bias = draw.tensor(outputs) if data.draw(st.booleans(), label="bias") else None
    arguments = {"stride": stride, "padding": padding}
    return Case(fk.conv2d, [x, weight, bias], arguments, draw.dtype)


CASES = {
    "conv2d": conv2d,
    "dropout": dropped,
    "fbp": fbp,
    "trunk_fbp": trunk_fbp,
    "am_fbp": am_fbp,
    "local_response_norm": local_response_norm,
    "batch_norm": batch_norm,
    "power_normalize": power_normalize,
    "attention_pool": attention_pool,
}


def over_examples(
    operator: str, backend: str, check: Callable[[Case], None], examples: int | None = None
) -> None:
    """Calls a check with drawn cases of an operator, as many as the backend's scope says or as given."""
    scope = SCOPES[backend]
    # To look for the smallest case that fails would take the interpreter minutes.
    phases = [p for p in Phase if backend != "triton" or p in (Phase.explicit, Phase.generate)]

    @settings(
        phases=phases,
        max_examples=examples or scope.examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        check(CASES[operator](Draw(data, scope)))

    run()


def assert_case(case: Case, backend: str) -> None:
    """Result and gradients of a case by the rule of correctness."""
    draws = SCOPES[backend].draws
    assert_parity(case.operator, case.draw, case.arguments, backend, draws=draws)
