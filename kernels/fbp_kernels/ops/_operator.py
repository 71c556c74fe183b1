"""How an operator enters PyTorch: one schema, one fake kernel and one autograd formula for all backends.

An operator here is a pair, `fbp_kernels::name` and `fbp_kernels::name_backward`, derived from one declaration. The
first results of the forward are what users see and differentiate, mostly just one; the others are what it may keep for
the backward. Both end in a `backend` argument, which picks the kernel when they run; tracing looks into neither.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import backends
from . import _autograd

LIBRARY = torch.library.Library("fbp_kernels", "DEF")

KEEP_LIMIT = 64 * 2**20  # bytes

MOVED = 32  # multiply-adds that take as long, roughly, as to read a number and write one


@dataclass(frozen=True)
class Operator:
    """The declaration of an operator; arguments as a schema has them, in this order.

    A forward kernel is called with (*inputs, *extras, *attributes, keep) and returns the results and what was
    kept; a backward kernel with (*gradients, *inputs, *extras, *reused, *kept, *attributes, needs) and returns one
    gradient for each input. `needs` has bit i set where input i needs its gradient. Of several results, those
    that nobody used have None for a gradient, but never all. What was not kept or not needed, a kernel gives as
    None or as an empty tensor; schemas have no optional results, there it is an empty tensor.

    Attributes:
        name: the public name.
        inputs: the differentiable tensors.
        extras: other tensors.
        attributes: everything that is no tensor.
        results: how many results can be differentiated.
        reused: which of these the backward is given.
        kept: how many tensors the forward may keep, 0 where it has no `keep` argument.
        fake: shapes of the forward's results; called as a forward kernel is.
        fake_gradient: what the gradient of an input looks like, contiguous by default.
        work: multiply-adds of a forward, or what takes as long; called with the inputs.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    fake: Callable[..., Any]
    extras: tuple[str, ...] = ()
    results: int = 1
    reused: tuple[int, ...] = ()
    kept: int = 0
    fake_gradient: Callable[[Tensor], Tensor] = lambda t: t.new_empty(t.shape)
    work: Callable[..., int] = lambda x, *_: MOVED * x.numel()

    def register(self, **kernels: backends.Kernel) -> "Registered":
        """Registers schema, fake kernels and autograd with PyTorch, and the kernels by backend."""
        backends.register(self.name, self.work, **kernels)
        keep = ("bool keep",) if self.kept else ()
        gradients = tuple(f"Tensor? dz{i}" for i in range(self.results))
        reused = tuple(f"Tensor z{i}" for i in self.reused)
        kept = tuple(f"Tensor? kept{i}" for i in range(self.kept))
        tensors = self.inputs + self.extras
        _define(
            self.name,
            tensors + self.attributes + keep,
            self.results + self.kept,
            lambda backend: backends.kernel(self.name, backend).forward,
            self.fake,
        )
        _define(
            f"{self.name}_backward",
            (
                *(gradients if self.results > 1 else ("Tensor dz",)),
                *tensors,
                *reused,
                *kept,
                *self.attributes,
                "int needs",
            ),
            len(self.inputs),
            lambda backend: backends.kernel(self.name, backend).backward,
            self._fake_backward,
        )
        apply = _autograd.register(
            LIBRARY, self.name, len(self.inputs), self.results, self._setup_context, self._gradient
        )
        # Without a formula PyTorch would only warn, and leave second derivatives out of the sum.
        _autograd.register(
            LIBRARY,
            f"{self.name}_backward",
            self.results + len(tensors) + len(reused) + len(kept),
            len(self.inputs),
            lambda *_: None,
            self._second_gradient,
        )
        return Registered(self.name, apply)

    def _second_gradient(self, ctx: Any, *_: Any) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{self.name}: the fused kernels have no second derivative; use backend='reference' for it"
        )

    def _fake_backward(self, *arguments: Any) -> Any:
        needs = arguments[-1]
        inputs = arguments[self.results : self.results + len(self.inputs)]
        some = next(dz for dz in arguments if dz is not None)
        gradients = tuple(
            some.new_empty(0) if t is None or not needs >> i & 1 else self.fake_gradient(t)
            for i, t in enumerate(inputs)
        )
        return gradients if len(gradients) > 1 else gradients[0]

    def _setup_context(self, ctx: Any, arguments: tuple[Any, ...], output: Any) -> None:
        tensors = len(self.inputs) + len(self.extras)
        saved = arguments[:tensors]
        attributes = arguments[tensors:-1]  # the last is the backend
        if self.reused:
            saved += tuple(output[i] for i in self.reused)
        if self.kept:
            keep = attributes[-1]
            attributes = attributes[:-1]
            saved += tuple(output[self.results :]) if keep else (None,) * self.kept
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved)
        ctx.attributes = attributes
        ctx.backend = arguments[-1]

    def _gradient(self, ctx: Any, *dz: Tensor | None) -> list[Tensor | None]:
        wanted = ctx.needs_input_grad[-len(self.inputs) :]
        if not [d for d in dz if d is not None]:
            return [None] * len(wanted)
        arguments = (*dz, *ctx.saved_tensors, *ctx.attributes, _bits(wanted))
        if not torch.is_grad_enabled() and _autograd.nobody_listens(arguments):
            gradients = backends.kernel(self.name, ctx.backend).backward(*arguments)
        else:
            overload = getattr(torch.ops.fbp_kernels, f"{self.name}_backward").default
            gradients = overload(*arguments, ctx.backend)
        gradients = [gradients] if isinstance(gradients, Tensor) else gradients
        return [g if due else None for g, due in zip(gradients, wanted, strict=True)]


class Registered:
    """An operator that PyTorch knows, called as its schema says.

    Args:
        name: the public name.
        apply: its autograd formula, see `_autograd.register`.
    """

    def __init__(self, name: str, apply: _autograd.Apply) -> None:
        self.name, self._apply = name, apply
        self._overload = getattr(torch.ops.fbp_kernels, name).default

    def __call__(self, *arguments: Any) -> Any:
        """Goes through the dispatcher where somebody listens there."""
        if _autograd.nobody_listens(arguments):
            return self.unheard(arguments)
        return self._overload(*arguments)

    def unheard(self, arguments: tuple[Any, ...]) -> Any:
        """A call that nobody listens to. What was not kept may be None."""
        return self._apply(backends.kernel(self.name, arguments[-1]).forward, arguments)


def _define(
    name: str,
    arguments: tuple[str, ...],
    results: int,
    select: Callable[[str], Callable[..., Any]],
    fake: Callable[..., Any],
) -> None:
    def run(*args: Any) -> Any:
        values = select(args[-1])(*args[:-1])
        if results == 1:
            return values
        like = next(t for t in args if isinstance(t, Tensor))
        return tuple([like.new_empty(0) if t is None else t for t in values])

    result = f"({', '.join(['Tensor'] * results)})" if results > 1 else "Tensor"
    schema = f"{name}({', '.join(arguments)}, str backend) -> {result}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fbp_kernels::{name}", lambda *a: fake(*a[:-1]), lib=LIBRARY)


@functools.cache
def _bits(flags: tuple[bool, ...]) -> int:
    """An integer with bit i set where flag i is."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def keeps(explicit: bool | None, elements: int, inputs: tuple[Tensor | None, ...]) -> bool:
    """Whether the forward keeps what the backward would compute again: not where no gradient is due.

    Args:
        explicit: the caller's choice, or None for the default, see `may_keep`.
        elements: how many numbers.
        inputs: the differentiable inputs, the first of which has their dtype.
    """
    there = [t for t in inputs if t is not None]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in there):
        return False
    return may_keep(explicit, elements, there[0])


def may_keep(explicit: bool | None, elements: int, like: Tensor) -> bool:
    """The same where a gradient is known to be due. The default keeps what takes at most 64 MiB."""
    if explicit is not None:
        return explicit
    return bool(elements * like.element_size() <= KEEP_LIMIT)


def draw_seed(dropout: float, training: bool, device: torch.device) -> Tensor | None:
    """A seed for the dropout mask from torch's generator of the device, or None where nothing drops."""
    if not training or dropout == 0:
        return None
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """What autocast does to a matrix product: tensors in its dtype, where it is enabled."""
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    if first is None or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    narrowed = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in narrowed else t for t in tensors
    )
