"""What `fbp`, `trunk_fbp` and `am_fbp` share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..reference import adaptive_scales
from . import _check, _operator
from ._derivatives import push_forward

Tensors = tuple[Tensor | None, ...]
Attributes = tuple[Any, ...]


@dataclass(frozen=True)
class Pooling:
    """The way from a user's arguments to a kernel, or to the reference.

    Attributes:
        operator: what PyTorch knows.
        check: called with (inputs, lengths, attributes); raises for arguments that do not fit, and gives the
            lengths as the kernels take them.
        reference: as the operator's declaration has it.
        elements: numbers in one of the two projections, all parts together; called with the inputs.
    """

    operator: _operator.Registered
    check: Callable[[Tensors, Tensors, Attributes], Tensors]
    reference: Callable[..., Tensor]
    elements: Callable[..., int]

    def __call__(
        self,
        inputs: Tensors,
        lengths: Tensors,
        attributes: Attributes,
        training: bool,
        backend: str | None,
        keep_projections: bool | None,
    ) -> Tensor:
        """Pools.

        Args:
            inputs: the operator's inputs.
            lengths: (lengths,), or () where there are none.
            attributes: the operator's, dropout last.
            training: whether dropout applies.
            backend: the caller's choice.
            keep_projections: keep the two projections for the backward, which saves a third of its arithmetic, or
                compute them again there, so that the call holds on to its inputs only. The default keeps them
                while the two together take at most 64 MiB, which covers every training batch of the emotion
                models.
        """
        inputs = _operator.autocast(*inputs)
        a: Any = inputs[0]
        if not isinstance(a, Tensor):
            self.check(inputs, lengths, attributes)
        chosen = backends.resolve(self.operator.name, backend, a.device.type, a.dtype, inputs)
        if chosen != "native" or torch.compiler.is_compiling():
            lengths = self.check(inputs, lengths, attributes)
        elif lengths and isinstance(lengths[0], Tensor) and lengths[0].dtype is torch.int32:
            lengths = (lengths[0].long(),)
        seed = _operator.draw_seed(attributes[-1], training, a.device)
        if chosen == "reference":
            return self.reference(*inputs, *lengths, seed, *attributes)
        try:
            keep = _operator.keeps(keep_projections, lambda: 2 * self.elements(*inputs), inputs)
            pooled: Tensor = self.operator(*inputs, *lengths, seed, *attributes, keep, chosen)[0]
        except Exception:
            # The native kernels and the fake ones check their arguments themselves, the former in a tenth of the time.
            self.check(inputs, lengths, attributes)  # says it in the caller's words
            raise
        return pooled


def tangent(
    parts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], adaptive: int | None = None
) -> Callable[..., Tensor]:
    """The product rule: the operator is linear in each input, so it is called with each replaced by its tangent.

    Args:
        parts: which inputs are replaced together, and which biases are left out then, since they are added to that one.
        adaptive: which attribute weighs the first two inputs, which is not linear: they are weighed before.
    """

    def by_product_rule(
        call: Any, inputs: list[Any], tangents: tuple[Any, ...], attributes: Attributes
    ) -> Tensor:
        if adaptive is not None and attributes[adaptive]:
            pair = push_forward(_weighed, inputs[:2], tangents[:2])
            inputs, tangents = [*_weighed(*inputs[:2]), *inputs[2:]], (*pair, *tangents[2:])
            attributes = (*attributes[:adaptive], False, *attributes[adaptive + 1 :])
        terms = []
        for replaced, left_out in parts:
            if all(tangents[i] is None for i in replaced):
                continue
            turned = list(inputs)
            for i in replaced:
                if inputs[i] is not None:
                    turned[i] = torch.zeros_like(inputs[i]) if tangents[i] is None else tangents[i]
            for i in left_out:
                turned[i] = None
            terms.append(call(turned, attributes))
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    return by_product_rule


ONE_LEVEL = (((0, 4), ()), ((1, 5), ()), ((2,), (4,)), ((3,), (5,)))


def _weighed(a: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    mu, eta = adaptive_scales(a, v)
    return mu * a, eta * v


def projections(a: Tensor, trunks: int, columns: int, keep: bool) -> tuple[Tensor, Tensor]:
    """The two projections as the fake forward gives them: (H, B, N) each, or empty."""
    shape = (trunks, a.shape[0], columns) if keep else (0,)
    return a.new_empty(shape), a.new_empty(shape)


def work(a: Tensor, v: Tensor, p: Tensor, *_: Any) -> int:
    """Multiply-adds of the projections of one level: each number of a and v meets all columns of its trunk."""
    return (a.numel() + v.numel()) * p.shape[-1]


def due(needs: int, inputs: int) -> tuple[bool, ...]:
    """Which of the inputs need their gradient, from the bits that say so."""
    return tuple(bool(needs >> i & 1) for i in range(inputs))


def check_global(
    operator: str, a: Tensor, v: Tensor, p: Tensor, q: Tensor, *biases: tuple[str, Tensor | None]
) -> None:
    """Shapes of global pooling: a (B, C), v (B, D), p (C, N), q (D, N), biases (N,).

    Raises:
        ValueError: a shape does not fit.
    """
    _check.shape(operator, "a", a, B=None, C=None)
    _check.shape(operator, "v", v, B=a.shape[0], D=None)
    _check.shape(operator, "p", p, C=a.shape[1], N=None)
    _check.shape(operator, "q", q, D=v.shape[1], N=p.shape[1])
    for name, bias in biases:
        if bias is not None:
            _check.shape(operator, name, bias, N=p.shape[1])


def check_trunks(
    operator: str,
    rows: int | None,
    a: tuple[str, Tensor],
    v: tuple[str, Tensor],
    p: tuple[str, Tensor],
    q: tuple[str, Tensor],
    *biases: tuple[str, Tensor | None],
) -> None:
    """Shapes of per-trunk pooling: a (B, H, C), v (B, H, D), p (H, C, N), q (H, D, N), biases (H, N).

    Raises:
        ValueError: a shape does not fit.
    """
    _check.shape(operator, *a, B=rows, H=None, C=None)
    B, H, C = a[1].shape
    _check.shape(operator, *v, B=B, H=H, D=None)
    _check.shape(operator, *p, H=H, C=C, N=None)
    N = p[1].shape[2]
    _check.shape(operator, *q, H=H, D=v[1].shape[2], N=N)
    for name, bias in biases:
        if bias is not None:
            _check.shape(operator, name, bias, H=H, N=N)
