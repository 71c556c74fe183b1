"""What `fbp`, `trunk_fbp` and `am_fbp` share: all of it but their names, their parts and their documentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends, native, reference, triton
from ..triton.levels import Level, Levels
from . import _check, _operator
from ._derivatives import push_forward

Tensors = Sequence[Tensor | None]
Attributes = tuple[Any, ...]

NAMES = ("a", "v", "p", "q", "p_bias", "q_bias")
ONCE, EACH = ("BC", "BD", "CN", "DN", "N", "N"), ("BHC", "BHD", "HCN", "HDN", "HN", "HN")
FACTORS = ("factor", "trunk_factor")

_pool, _pool_backward = triton.late("bilinear")


@dataclass(frozen=True)
class Part:
    """One pooling of an operator, the global or the per-trunk one, and where its own arguments are.

    Attributes:
        inputs: of `NAMES` each, where it is among the operator's inputs; None for a bias that it cannot have.
        names: those of its inputs.
        factor: K, among the attributes.
        trunks: whether it has any.
    """

    inputs: tuple[Any, ...]
    names: tuple[str, ...]
    factor: int
    trunks: bool

    def of(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """What it has of what is given for each of the operator's inputs."""
        return tuple([None if i is None else inputs[i] for i in self.inputs])

    def check(
        self, operator: str, inputs: Tensors, attributes: Attributes, **rows: int
    ) -> dict[str, int]:
        """Of these shapes all are, with as many rows as are known; and K divides N. The sizes.

        Raises:
            ValueError: one does not fit.
        """
        named = dict(zip(self.names, self.of(inputs), strict=False))
        letters = EACH if self.trunks else ONCE
        sizes = _check.shapes(operator, named, letters[: len(named)], **rows)
        K, N = attributes[self.factor], sizes["N"]
        if K < 1 or N % K:
            expected = f"expected a divisor of the {N} columns of the weights"
            raise ValueError(f"{operator}: {FACTORS[self.factor]} is {K}, {expected}")
        return sizes

    def kept_shape(self, inputs: Tensors) -> tuple[int, int, int]:
        """Of each of its two projections, (H, B, N)."""
        a, _, p, *_ = self.of(inputs)
        return p.shape[0] if self.trunks else 1, a.shape[0], p.shape[-1]

    def level(self, inputs: Sequence[Any], lengths: Any, attributes: Attributes) -> Level:
        """What a Triton kernel is given."""
        lengths, adaptive = (lengths, False) if self.trunks else (None, attributes[-2])
        a, v, p, q, p_bias, q_bias = self.of(inputs)
        return Level(a, v, p, q, p_bias, q_bias, lengths, attributes[self.factor], adaptive)

    def due(self, needs: int) -> tuple[bool, ...]:
        """Which of `NAMES` need their gradient."""
        return tuple([i is not None and bool(needs >> i & 1) for i in self.inputs])


class Pooling:
    """An operator of one or both parts, and the way from a user's arguments to a kernel or to the reference.

    Its inputs are those of the parts in turn, two by two (a, v, a_trunks, v_trunks, p, ...); lengths, where there are
    trunks, and a seed; the parts' factors, adaptive, where there is a global part, and dropout.

    Args:
        name: the public name.
        once: names of the inputs of the global part, (a, v, p, q) with or without two biases; () where it has none.
        each: the same of the per-trunk part.
    """

    def __init__(self, name: str, once: tuple[str, ...] = (), each: tuple[str, ...] = ()) -> None:
        pairs = range(0, max(len(once), len(each)), 2)
        self._name = name
        self._names = tuple(n for i in pairs for n in once[i : i + 2] + each[i : i + 2])
        parts = [(names, names is each) for names in (once, each) if names]
        self._parts = [
            Part(
                (*map(self._names.index, names), *(None,) * (len(NAMES) - len(names))),
                names,
                number,
                trunks,
            )
            for number, (names, trunks) in enumerate(parts)
        ]
        self._lengths = int(bool(each))
        count = len(self._names)
        self._seed = count + self._lengths
        self._operator = _operator.Operator(
            name,
            inputs=tuple(f"Tensor{'?' * ('bias' in n)} {n}" for n in self._names),
            extras=("Tensor? lengths",) * self._lengths + ("Tensor? seed",),
            attributes=(
                *(f"SymInt {factor}" for factor in FACTORS[: len(parts)]),
                *("bool adaptive",) * bool(once),
                "float dropout",
            ),
            kept=2 * len(parts),
            kept_size=self._kept_size,
            kept_rows=1,
            check=self._check,
            narrowed=count,
            fake=self._fake,
            work=self._work,
            reference=getattr(reference, name),
            rows=(*self._at(0, 1), *range(count, self._seed)),
            seed=self._seed,
            tangent=self._tangent,
        ).register(
            native=backends.Kernel(native.raw(f"{name}_forward"), native.raw(f"{name}_backward")),
            triton=backends.Kernel(self._triton, self._triton_backward),
        )
        self._adaptive = len(parts) if once else None

    def __call__(
        self,
        inputs: tuple[Any, ...],
        lengths: Tensors,
        attributes: Attributes,
        training: bool,
        backend: str | None,
        keep_projections: bool | None,
    ) -> Tensor:
        """Pools; arguments as users give them, in groups: lengths are () where there are none, dropout comes last.

        To keep projections saves a third of the backward's arithmetic; the default's limit covers every training batch
        of the emotion models.
        """
        seed = None
        # The mask follows from torch's generator of the device.
        if training and attributes[-1] != 0 and isinstance(inputs[0], Tensor):
            seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device=inputs[0].device)
        given = (*inputs, *map(_check.as_int64, lengths), seed)
        return self._operator(given, attributes, backend, keep_projections)[0]

    def _at(self, *positions: int) -> list[int]:
        """Where the inputs are that each part has at these positions of `NAMES`."""
        found = (part.inputs[k] for part in self._parts for k in positions)
        return [i for i in found if i is not None]

    def _check(self, tensors: tuple[Any, ...], attributes: Attributes) -> None:
        """Raises for arguments that do not fit."""
        name = self._name
        named = zip(self._names, tensors, strict=False)
        _check.tensors(name, **{n: t for n, t in named if t is not None or "bias" not in n})
        rows: dict[str, int] = {}
        for part in self._parts:
            sizes = part.check(name, tensors, attributes, **rows)
            rows = {"B": sizes["B"]}
        if not 0 <= attributes[-1] <= 1:
            got = f"dropout is {attributes[-1]}"
            raise ValueError(f"{name}: {got}, expected a probability from 0 to 1")
        if self._lengths:
            _check.lengths(name, tensors[self._seed - 1], tensors[0], sizes["H"])

    def _kept_size(self, *inputs: Any) -> int:
        """Numbers in both projections of all parts."""
        shapes = [part.kept_shape(inputs) for part in self._parts]
        return 2 * sum(H * B * N for H, B, N in shapes)

    def _work(self, *inputs: Any) -> int:
        """Multiply-adds of the projections: each number of a and v meets all columns of its trunk.

        Inputs that are not there may be left out at the end.
        """
        total = 0
        for part in self._parts:  # in every call whose backend depends on it: no list, no generator
            a, v, p = part.inputs[:3]
            total += (inputs[a].numel() + inputs[v].numel()) * inputs[p].shape[-1]
        return total

    def _fake(self, *arguments: Any) -> list[Tensor]:
        inputs, rest = arguments[: len(self._names)], arguments[len(self._names) :]
        attributes = rest[self._lengths + 1 : -1]
        shapes = [part.kept_shape(inputs) for part in self._parts]
        outputs = sum(p.kept_shape(inputs)[2] // attributes[p.factor] for p in self._parts)
        a = inputs[0]
        projections = [a.new_empty(shape) for shape in shapes for _ in range(2)]
        return [a.new_empty(a.shape[0], outputs), *projections]

    def _levels(self, arguments: Sequence[Any], attributes: Attributes) -> Levels:
        lengths = arguments[self._seed - 1] if self._lengths else None
        found = {part.trunks: part.level(arguments, lengths, attributes) for part in self._parts}
        return Levels(found.get(False), found.get(True))

    def _triton(self, *arguments: Any) -> Any:
        at = self._seed
        levels = self._levels(arguments, arguments[at + 1 : -1])
        return _pool(levels, arguments[at], arguments[-2], arguments[-1])

    def _triton_backward(self, dz: Tensor, *arguments: Any) -> list[Tensor]:
        first = self._seed + 1
        end = first + 2 * len(self._parts)
        kept, attributes, needs = arguments[first:end], arguments[end:-1], arguments[-1]
        found = _pool_backward(
            dz,
            self._levels(arguments, attributes),
            arguments[self._seed],
            () if kept[0] is None else kept,
            attributes[-1],
            tuple([part.due(needs) for part in self._parts]),
        )
        gradients: list[Any] = [None] * len(self._names)
        for part, own in zip(self._parts, found, strict=True):
            for i, gradient in zip(part.inputs, own, strict=True):
                if i is not None:
                    gradients[i] = gradient
        return gradients

    def _tangent(
        self, call: Any, inputs: list[Any], tangents: tuple[Any, ...], attributes: Attributes
    ) -> Tensor:
        """The product rule: the operator is linear in each input, so it is called with each replaced by its tangent.

        A bias goes with the projection that it is added to, and is left out where only the weight is replaced.
        The adaptive weights of the first two inputs are not linear: they are applied before.
        """
        if self._adaptive is not None and attributes[self._adaptive]:
            pair = push_forward(_weighed, inputs[:2], tangents[:2])
            inputs, tangents = [*_weighed(*inputs[:2]), *inputs[2:]], (*pair, *tangents[2:])
            attributes = (*attributes[: self._adaptive], False, attributes[-1])
        terms = []
        for replaced, left_out in (((0, 4), ()), ((1, 5), ()), ((2,), (4,)), ((3,), (5,))):
            moving = [i for i in self._at(*replaced) if inputs[i] is not None]
            if all(tangents[i] is None for i in moving):
                continue
            turned = list(inputs)
            for i in moving:
                turned[i] = torch.zeros_like(inputs[i]) if tangents[i] is None else tangents[i]
            for i in self._at(*left_out):
                turned[i] = None
            terms.append(call(turned, attributes))
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def _weighed(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    mu, eta = reference.adaptive_scales(a, v)
    return mu * a, eta * v
