"""How an operator enters PyTorch: one schema, one fake kernel and one derivative formula for all backends.

An operator is three to the dispatcher, derived from one declaration. `fbp_kernels::name_forward` and `name_backward`
are opaque: they end in a `backend` argument, which picks the kernel when they run, and tracing looks into neither.
`fbp_kernels::name` is what `torch.compile`, `torch.export` and `torch.jit.trace` record. What all of them and users
come to is one `torch.autograd.Function`, which knows every kind of derivative.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from .. import backends, opaque
from . import _layout
from ._derivatives import pull_back, push_forward

KEEP_LIMIT = 64 * 2**20  # bytes

MOVED = 32  # multiply-adds that take as long, roughly, as to read a number and write one

Tensors = Sequence[Tensor | None]
Values = tuple[Any, ...]
Call = Callable[..., Sequence[Tensor]]


@dataclass(eq=False)
class Operator:
    """An operator, declared and then registered; arguments as a schema has them, in this order.

    A forward kernel is called with (*inputs, *extras, *attributes), and with keep where that is a choice, and returns
    the results and what was kept; a backward kernel with (*gradients, *inputs, *extras, *reused, *kept, *attributes,
    needs) and returns one gradient for each input. `needs` has bit i set where input i needs its gradient. Of several
    results, those that nobody used have None for a gradient, but never all. What was not to be kept or is not needed,
    a kernel may give as anything: the operators leave it out.

    Attributes:
        name: the public name.
        inputs: the differentiable tensors.
        attributes: everything that is no tensor.
        fake: shapes of what a forward gives that keeps all it may; called as a forward kernel is.
        reference: the operator in plain PyTorch, called with inputs, extras and attributes by name; derivatives that
            have no kernel are those of it.
        extras: other tensors.
        check: raises, in the caller's words, for arguments that do not fit; called with inputs and extras, and with the
            attributes. The native kernels look themselves, in a tenth of the time: it is called after one has failed.
        narrowed: how many of the first inputs autocast casts to its dtype, as it does those of a matrix product.
        results: how many results can be differentiated.
        reused: which of these the backward is given.
        kept: how many tensors the forward keeps for the backward.
        kept_size: how many numbers these have together, where they can as well be computed again: the forward is told
            whether to keep them; called with inputs and extras.
        kept_rows: the dimension of these that is the batch.
        fake_gradient: what the gradient of an input looks like, contiguous by default.
        work: multiply-adds of a forward, or what takes as long; called with the inputs.
        rows: which of inputs and extras begin with a batch dimension whose rows do not know of each other. A
            dimension under `torch.vmap` can lie down beside that one.
        seed: which one, if it is there, gives rows different masks, so that it cannot.
        tangent: the derivative along a direction, called with (call, inputs, tangents, attributes), where
            call(inputs, attributes) is the operator's first result; by default the reference's.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    extras: tuple[str, ...] = ()
    check: Callable[[Values, Values], object] = lambda *_: None
    narrowed: int = 0
    results: int = 1
    reused: tuple[int, ...] = ()
    kept: int = 0
    kept_size: Callable[..., int] | None = None
    kept_rows: int = 0
    fake_gradient: Callable[[Tensor], Tensor] = lambda t: t.new_empty(t.shape)
    work: Callable[..., int] = lambda x, *_: MOVED * x.numel()
    rows: tuple[int, ...] = ()
    seed: int | None = None
    tangent: Callable[..., Tensor] | None = None

    def register(self, **kernels: backends.Kernel) -> "Operator":
        """Registers schemas and fake kernels with PyTorch, and the kernels by backend: now it can be called."""
        name = self.name
        backends.register(name, self.work, **kernels)
        tensors = self.inputs + self.extras
        self._tensors = len(tensors)
        self._names = [argument.split()[1] for argument in tensors + self.attributes]
        arguments = tensors + self.attributes + ("bool keep",) * bool(self.kept_size)
        forward = opaque.define(
            _schema(f"{name}_forward", arguments, "Tensor[]"),
            lambda *a: self._results(a, backends.kernel(name, a[-1]).forward(*a[:-1])),
            lambda *a: self._results(a, self._fake(a)),
        )
        dz = [f"Tensor? dz{i}" for i in range(self.results)] if self.results > 1 else ["Tensor dz"]
        reused = [f"Tensor z{i}" for i in self.reused]
        kept = [f"Tensor? kept{i}" for i in range(self.kept)]
        # No list: PyTorch's loop for batched gradients (is_grads_batched) takes tensors alone.
        count = len(self.inputs)
        each = f"({', '.join(['Tensor'] * count)})" if count > 1 else "Tensor"
        backward = opaque.define(
            _schema(
                f"{name}_backward",
                (*dz, *tensors, *reused, *kept, *self.attributes, "int needs"),
                each,
            ),
            lambda *a: self._gradients(a, backends.kernel(name, a[-1]).backward(*a[:-1])),
            lambda *a: self._gradients(
                a, [t if t is None else self.fake_gradient(t) for t in a[len(dz) :][:count]]
            ),
        )

        def due_alone(*arguments: Any) -> Sequence[Tensor]:
            found, due = _tuple(backward(*arguments)), _due(arguments[-2])
            return found if len(due) == count else [found[i] for i in due]

        self._forward = _Formula(
            name, forward, self._keep, self._gradient, self._tangent, self._vmap
        )
        self._backward = _Formula(
            f"{name}_backward", due_alone, self._keep_backward, self._second_gradient,
            self._second_tangent, self._vmap_backward,
        )  # fmt: skip
        call = lambda *a: list(self._forward(a[self._tensors :], a[: self._tensors]))  # noqa: E731
        self._recorded = opaque.define(_schema(name, arguments, "Tensor[]"), call)
        return self

    def __call__(
        self, tensors: Values, attributes: Values, backend: str | None, keep: bool | None = None
    ) -> Sequence[Tensor]:
        """Calls the operator with inputs and extras, on the backend that is asked for or the best there is.

        The forward keeps what the backward would compute again where that is asked for, or by default where it takes at
        most 64 MiB; the reference never does, nor a call of which no gradient is due.

        Returns:
            The results, and what is kept.
        """
        chosen = ""
        try:
            kind = tensors[0].device.type
            if self.narrowed:
                tensors = autocast(kind, tensors, self.narrowed)
            inputs = tensors[: len(self.inputs)]
            chosen = backends.resolve(self.name, backend, kind, inputs[0].dtype, inputs)
            compiled = torch.compiler.is_compiling()
            if compiled or chosen != "native":
                self.check(tensors, attributes)
            if chosen == "reference":
                return _tuple(self._reference(*tensors, *attributes))
            traced = compiled or torch.jit.is_tracing()
            constant = not traced and _constant(tensors)
            options = (*attributes, chosen)
            if self.kept_size is not None:
                keep = not constant and self._worth_keeping(keep, tensors)
                options = (*attributes, keep, chosen)
            if constant or traced:
                return (self._forward.raw if constant else self._recorded)(*tensors, *options)
            return self._forward.apply(options, *tensors)
        except NotImplementedError as error:
            if chosen == "reference":
                raise
            kinds = {
                type(t).__name__ if t.layout is torch.strided else str(t.layout)
                for t in tensors
                if isinstance(t, Tensor)
            }
            raise NotImplementedError(
                f"{self.name}: the fused kernels do not run on {', '.join(sorted(kinds))}; use backend='reference',"
                " or, on a DTensor, torch.distributed.tensor.experimental.local_map"
            ) from error
        except Exception:
            self.check(tensors, attributes)
            raise

    def _worth_keeping(self, asked: bool | None, tensors: Values) -> bool:
        if torch.is_grad_enabled():
            for t in tensors:
                if t is not None and t.requires_grad:
                    size: Any = self.kept_size
                    return little(size(*tensors), tensors[0]) if asked is None else asked
        return False

    def _fake(self, arguments: Values) -> Any:
        tensors, others = arguments[: self._tensors], arguments[self._tensors :]
        self.check(tensors, self._attributes(others))
        return self.fake(*arguments[:-1])

    def _reference(self, *arguments: Any) -> Any:
        return self.reference(**dict(zip(self._names, arguments, strict=True)))

    # What raw operators return of what kernels and fakes give.

    def _results(self, arguments: Values, found: Any) -> list[Tensor]:
        """Results, and what was to be kept."""
        return list(_tuple(found))[: self.results + self._keeps(arguments)]

    def _gradients(self, arguments: Values, found: Any) -> Any:
        """One tensor for each input, empty where no gradient is due."""
        found, due, count = _tuple(found), _due(arguments[-2]), len(self.inputs)
        if count == 1:
            return found[0]
        if len(due) < count:
            some = next(t for t in arguments if t is not None)
            found = [found[i] if i in due else some.new_empty(0) for i in range(count)]
        return tuple(found[:count])

    # The forward's formula; options are what is no tensor: attributes, keep, backend.

    def _keep(self, ctx: Any, arguments: Values, output: Any) -> None:
        ctx.options, *tensors = arguments
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*tensors)
        kept = output[self.results :]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(
            *tensors, *(output[i] for i in self.reused), *kept or (None,) * self.kept
        )

    def _gradient(self, ctx: Any, *dz: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = [None] * (1 + self._tensors)
        dz = dz[: self.results]
        if any(t is not None for t in dz):
            needs = _bits(ctx.needs_input_grad[1 : 1 + len(self.inputs)])
            options = (*self._attributes(ctx.options), needs, ctx.options[-1])
            found = self._backward(options, (*dz, *ctx.saved_tensors))
            for i, gradient in zip(_due(needs), found, strict=True):
                gradients[1 + i] = gradient
        return tuple(gradients)

    def _tangent(self, ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        n = len(self.inputs)
        tensors = [_primal(t) for t in ctx.saved_tensors[: self._tensors]]
        inputs, extras, attributes = tensors[:n], tensors[n:], self._attributes(ctx.options)
        if self.tangent is None:
            found = push_forward(self._plain(extras, attributes), inputs, tangents[:n])
        else:
            call = lambda x, how: self((*x, *extras), how, ctx.options[-1], False)[0]  # noqa: E731
            found = [self.tangent(call, inputs, tangents[:n], attributes)]
        return (*found, *(None,) * self._keeps(ctx.options))

    def _vmap(self, info: Any, dims: Any, options: Any, *tensors: Tensor | None) -> Any:
        into = (0,) * self.results + (self.kept_rows,) * self._keeps(options)
        return _batched(self._forward, info, dims, options, tensors, self._rows(tensors), into)

    # The backward's; options: attributes, needs, backend.

    def _keep_backward(self, ctx: Any, arguments: Values, _: Any) -> None:
        ctx.options, *tensors = arguments
        ctx.set_materialize_grads(False)
        tensors = tensors[: self.results + self._tensors]
        ctx.save_for_forward(*tensors)
        ctx.save_for_backward(*tensors)

    def _second_gradient(self, ctx: Any, *h: Tensor | None) -> tuple[Tensor | None, ...]:
        backward, tensors = self._plain_backward(ctx)
        found = pull_back(backward, tensors, h)
        return (None, *found, *(None,) * (len(ctx.needs_input_grad) - 1 - len(found)))

    def _second_tangent(self, ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        backward, tensors = self._plain_backward(ctx)
        return tuple(push_forward(backward, tensors, tangents[: len(tensors)]))

    def _vmap_backward(self, info: Any, dims: Any, options: Any, *tensors: Tensor | None) -> Any:
        due = _due(options[-2])
        own = self._rows(tensors[self.results : self.results + self._tensors])
        rows: tuple[int | None, ...] = (None,) * len(tensors)
        # Else rows have masks of their own, or a gradient is a sum over them.
        if all(own[i] is not None for i in due):
            others = (0,) * len(self.reused) + (self.kept_rows,) * self.kept
            rows = (*(0,) * self.results, *own, *others)
        return _batched(self._backward, info, dims, options, tensors, rows, (0,) * len(due))

    # What both share.

    def _attributes(self, options: Values) -> Values:
        return options[: len(self.attributes)]

    def _keeps(self, options: Values) -> int:
        """How many tensors a forward keeps."""
        return self.kept if self.kept_size is None or options[-2] else 0

    def _rows(self, tensors: Tensors) -> tuple[int | None, ...]:
        """Where inputs and extras have their rows; nowhere in a seed, which gives each row a mask of its own."""
        if self.seed is not None and tensors[self.seed] is not None:
            return (None,) * len(tensors)
        return tuple(0 if i in self.rows else None for i in range(len(tensors)))

    def _plain(self, extras: Tensors, attributes: Values) -> Callable[..., Any]:
        """The reference as a function of the inputs."""
        count = self.results
        return lambda *inputs: _tuple(self._reference(*inputs, *extras, *attributes))[:count]

    def _plain_backward(self, ctx: Any) -> tuple[Callable[..., Any], Tensors]:
        """The gradients that were due as a function of (*dz, *inputs), by the reference; and these."""
        tensors = [_primal(t) for t in ctx.saved_tensors]
        split = self.results + len(self.inputs)
        plain = self._plain(tensors[split:], self._attributes(ctx.options))

        def backward(*values: Tensor | None) -> tuple[Tensor | None, ...]:
            gradients = pull_back(plain, values[self.results :], values[: self.results])
            return tuple(gradients[i] for i in _due(ctx.options[-2]))

        return backward, tensors[:split]


class _Formula:
    """A raw operator of (*tensors, *options), in a `torch.autograd.Function` of (options, *tensors) if need be."""

    def __init__(self, name: str, raw: Call, *members: Callable[..., Any]) -> None:
        def forward(options: Values, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            return tuple(raw(*tensors, *options))

        forward.__signature__ = _AsGiven()  # type: ignore[attr-defined]
        names = ("forward", "setup_context", "backward", "jvp", "vmap")
        static = dict(zip(names, map(staticmethod, (forward, *members)), strict=True))
        kind: Any = type(torch.autograd.Function)
        self.raw = raw
        self.apply: Call = kind(name, (torch.autograd.Function,), static).apply

    def __call__(self, options: Values, tensors: Tensors) -> Sequence[Tensor]:
        if _constant(tensors):
            return self.raw(*tensors, *options)
        return self.apply(options, *tensors)


class _AsGiven(inspect.Signature):
    """Arguments without names or defaults.

    `torch.autograd.Function.apply` asks for the signature of a forward in every call, and binds its arguments to it for
    their defaults. What a function itself lays down (`__signature__`) is taken; to infer and bind took half of a call.
    """

    def bind(self, *arguments: Any, **_: Any) -> Any:
        return SimpleNamespace(args=arguments, kwargs={}, apply_defaults=lambda: None)


def _constant(tensors: Tensors) -> bool:
    """Whether a call cannot be differentiated, nor be one of many: a `Function` would be half of a small call's time.

    Nothing here requires a gradient, no level of dual tensors is open (a tensor is unpacked to itself there), and there
    is no wrapper of `torch.func` or other subclass of Tensor: wrappers have no memory, and raise.
    """
    graph, some = torch.is_grad_enabled(), None
    try:
        for t in tensors:
            if t is not None:
                if type(t) not in _PLAIN or (graph and t.requires_grad):
                    return False
                t.data_ptr()
                some = t
    except RuntimeError:
        return False
    return some is None or unpack_dual(some).primal is some


_PLAIN = (Tensor, nn.Parameter)


def _batched(
    function: _Formula,
    info: Any,
    dims: Values,
    options: Values,
    tensors: Tensors,
    rows: Sequence[int | None],
    into: tuple[int, ...],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A function under `torch.vmap`: in one call, where only rows are many, else one call after the other.

    `rows` has for each tensor the dimension that is the batch, None where it has none, or where rows of the results do
    not depend on its rows alone; `into` the same for the results.
    """
    many, dims = info.batch_size, dims[1:]
    if all(d is None or at is not None for d, at in zip(dims, rows, strict=True)):
        folded = [
            t if t is None or at is None else _laid_beside(t, d, at, many)
            for t, d, at in zip(tensors, dims, rows, strict=True)
        ]
        found = zip(function(options, folded), into, strict=True)
        return tuple(t.unflatten(at, (many, t.shape[at] // many)) for t, at in found), into

    def one(i: int) -> Sequence[Tensor]:
        pairs = zip(tensors, dims, strict=True)
        return function(
            options,
            [t if t is None or d is None else _layout.readable(t.select(d, i)) for t, d in pairs],
        )

    calls = zip(*(one(i) for i in range(many)), strict=True)
    return tuple(torch.stack(found) for found in calls), (0,) * len(into)


def _laid_beside(tensor: Tensor, dim: int | None, rows: int, many: int) -> Tensor:
    """With a dimension merged into the rows, or repeated where it has none."""
    each = tensor.expand(many, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return _layout.readable(each.movedim(0, rows).flatten(rows, rows + 1))


def _tuple(output: Any) -> Any:
    return (output,) if isinstance(output, Tensor) else output


def _primal(tensor: Tensor | None) -> Tensor | None:
    """Without the tangent that it carries in forward mode."""
    return None if tensor is None else unpack_dual(tensor).primal


def _schema(name: str, arguments: tuple[str, ...], results: str) -> str:
    return f"{name}({', '.join(arguments)}, str backend) -> {results}"


@functools.cache
def _bits(flags: tuple[bool, ...]) -> int:
    """An integer with bit i set where flag i is."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


@functools.cache
def _due(bits: int) -> tuple[int, ...]:
    """Which bits are set."""
    return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)


def little(numbers: int, like: Tensor) -> bool:
    """Whether so many numbers of a tensor's dtype are few enough to be kept where nobody asked for it."""
    return numbers * like.element_size() <= KEEP_LIMIT


def autocast(kind: str, tensors: Values, count: int) -> Values:
    """The first tensors as autocast gives them to a matrix product, where it is enabled on this kind of device."""
    # The meta device has no autocast, and raises where it is asked whether that is enabled.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype, wide = torch.get_autocast_dtype(kind), (torch.float32, torch.float16, torch.bfloat16)
    narrow = (
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in wide else t for t in tensors[:count]
    )
    return (*narrow, *tensors[count:])
