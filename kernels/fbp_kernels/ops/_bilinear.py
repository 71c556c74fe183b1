"""What `fbp`, `trunk_fbp` and `am_fbp` share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import _autograd, _check, _operator

Tensors = tuple[Tensor | None, ...]
Attributes = tuple[Any, ...]


@dataclass(frozen=True)
class Pooling:
    """The way from a user's arguments to a kernel, or to the reference.

    Attributes:
        operator: what PyTorch knows.
        check: called with (inputs, lengths, attributes); raises for arguments that do not fit, and gives the
            lengths as the kernels take them.
        reference: called with (inputs, lengths, attributes, seed).
        elements: numbers in one of the two projections, all parts together; called with the inputs.
    """

    operator: _operator.Registered
    check: Callable[[Tensors, Tensors, Attributes], Tensors]
    reference: Callable[[Tensors, Tensors, Attributes, Tensor | None], Tensor]
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
            keep_projections: likewise.
        """
        if self._goes_to_native(inputs, lengths, backend):
            try:
                # The kernels check their arguments themselves, in a tenth of the time.
                return self._native(inputs, lengths, attributes, training, keep_projections)
            except Exception:
                self.check(inputs, lengths, attributes)  # says it in the caller's words
                raise
        inputs = _operator.autocast(*inputs)
        lengths = self.check(inputs, lengths, attributes)
        a: Any = inputs[0]
        chosen = backends.resolve(self.operator.name, backend, a.device.type, a.dtype, inputs)
        seed = _operator.draw_seed(attributes[-1], training, a.device)
        if chosen == "reference":
            return self.reference(inputs, lengths, attributes, seed)
        keep = keeps_projections(keep_projections, self.elements(*inputs), inputs)
        pooled: Tensor = self.operator(*inputs, *lengths, seed, *attributes, keep, chosen)[0]
        return pooled

    def _goes_to_native(self, inputs: Tensors, lengths: Tensors, backend: str | None) -> bool:
        """Whether this is a call with plain tensors that nothing stands between and the native kernels."""
        if not _autograd.nobody_listens(inputs + lengths):
            return False
        a = inputs[0]
        if not isinstance(a, Tensor):
            return False
        device = "cpu" if a.is_cpu else a.device.type
        return (
            not torch.is_autocast_enabled(device)
            and backends.resolve(self.operator.name, backend, device, a.dtype, inputs) == "native"
        )

    def _native(
        self,
        inputs: Tensors,
        lengths: Tensors,
        attributes: Attributes,
        training: bool,
        keep_projections: bool | None,
    ) -> Tensor:
        a: Any = inputs[0]
        seed = _operator.draw_seed(attributes[-1], training, a.device) if training else None
        if lengths and lengths[0] is not None and lengths[0].dtype is torch.int32:
            lengths = (lengths[0].long(),)
        pooled: Tensor
        if not _autograd.gradient_is_due(inputs):
            forward = backends.kernel(self.operator.name, "native").forward
            pooled = forward(*inputs, *lengths, seed, *attributes, False)[0]
            return pooled
        keep = _operator.may_keep(keep_projections, 2 * self.elements(*inputs), a)
        arguments = (*inputs, *lengths, seed, *attributes, keep, "native")
        pooled = self.operator.unheard(arguments)[0]
        return pooled


def keeps_projections(explicit: bool | None, elements: int, inputs: Tensors) -> bool:
    """Whether the forward keeps the two projections for the backward or leaves it to recompute them.

    Kept, the backward saves a third of its arithmetic; recomputed, the call holds on to its inputs only.
    The default keeps them while the two together take at most 64 MiB, which covers every training batch of
    the emotion models; `explicit` overrides it. Nothing is kept where no gradient is due.

    Args:
        explicit: the caller's choice, or None for the default.
        elements: B * H * N, elements of one projection.
        inputs: the differentiable inputs.
    """
    return _operator.keeps(explicit, 2 * elements, inputs)


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
