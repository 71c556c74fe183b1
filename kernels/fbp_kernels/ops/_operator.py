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
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from .. import backends
from ..libraries import OPERATORS
from . import _layout
from ._derivatives import pull_back, push_forward

LIBRARY = torch.library.Library(OPERATORS, "DEF")

KEEP_LIMIT = 64 * 2**20  # bytes

MOVED = 32  # multiply-adds that take as long, roughly, as to read a number and write one

Tensors = Sequence[Tensor | None]
Values = tuple[Any, ...]
Call = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Operator:
    """The declaration of an operator; arguments as a schema has them, in this order.

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
            attributes. The native kernels look themselves, in a tenth of the time: before one of them it is not called.
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

    def register(self, **kernels: backends.Kernel) -> "Registered":
        """Registers schemas and fake kernels with PyTorch, and the kernels by backend."""
        backends.register(self.name, self.work, **kernels)
        return Registered(self)


class Registered:
    """An operator that PyTorch knows."""

    def __init__(self, declared: Operator) -> None:
        d, name = declared, declared.name
        self.name, self._declared = name, d
        tensors = d.inputs + d.extras
        self._tensors = len(tensors)
        self._names = [argument.split()[1] for argument in tensors + d.attributes]
        arguments = tensors + d.attributes + ("bool keep",) * bool(d.kept_size)
        forward = _library(
            f"{name}_forward",
            arguments,
            "Tensor[]",
            lambda *a: self._results(a, backends.kernel(name, a[-1]).forward(*a[:-1])),
            lambda *a: self._results(a, self._fake(a)),
        )
        dz = [f"Tensor? dz{i}" for i in range(d.results)] if d.results > 1 else ["Tensor dz"]
        reused = [f"Tensor z{i}" for i in d.reused]
        kept = [f"Tensor? kept{i}" for i in range(d.kept)]
        # No list: PyTorch's loop for batched gradients (is_grads_batched) takes tensors alone.
        several = f"({', '.join(['Tensor'] * len(d.inputs))})" if len(d.inputs) > 1 else "Tensor"
        backward = _library(
            f"{name}_backward",
            (*dz, *tensors, *reused, *kept, *d.attributes, "int needs"),
            several,
            lambda *a: self._gradients(a, backends.kernel(name, a[-1]).backward(*a[:-1])),
            lambda *a: self._gradients(a, map(self._fake_gradient, a[d.results : -2])),
        )

        def due_alone(*arguments: Any) -> list[Tensor]:
            found = _tuple(backward(*arguments))
            return [found[i] for i in _due(arguments[-2])]

        self._forward = _Formula(
            name, forward, self._keep, self._gradient, self._tangent, self._vmap
        )
        self._backward = _Formula(
            f"{name}_backward", due_alone, self._keep_backward, self._second_gradient,
            self._second_tangent, self._vmap_backward,
        )  # fmt: skip
        self._recorded = _library(name, arguments, "Tensor[]", lambda *a: list(self._call(a)))

    def __call__(
        self, tensors: Values, attributes: Values, backend: str, keep: bool | None = None
    ) -> Sequence[Tensor]:
        """Calls the operator with inputs and extras, or its reference; gives the results and what is kept.

        The forward keeps what the backward would compute again where that is asked for, or by default where it takes at
        most 64 MiB; the reference never does, nor a call of which no gradient is due.
        """
        compiled = torch.compiler.is_compiling()
        if compiled or backend != "native":
            self._declared.check(tensors, attributes)
        if backend == "reference":
            return _tuple(self._reference(*tensors, *attributes))
        try:
            traced = compiled or torch.jit.is_tracing()
            return self._run(tensors, attributes, backend, keep, traced)
        except NotImplementedError as error:
            kinds = {type(t).__name__ for t in tensors if isinstance(t, Tensor)}
            raise NotImplementedError(
                f"{self.name}: the fused kernels do not run on {', '.join(sorted(kinds))}; use backend='reference',"
                " or, on a DTensor, torch.distributed.tensor.experimental.local_map"
            ) from error
        except Exception:
            self._declared.check(tensors, attributes)
            raise

    def _run(
        self, tensors: Values, attributes: Values, backend: str, keep: bool | None, traced: bool
    ) -> Sequence[Tensor]:
        constant = not traced and _constant(tensors)
        if self._declared.kept_size is not None:
            attributes = (*attributes, not constant and self._worth_keeping(keep, tensors))
        options = (*attributes, backend)
        if constant or traced:
            return (self._forward.raw if constant else self._recorded)(*tensors, *options)
        return self._forward.apply(options, *tensors)

    def _worth_keeping(self, asked: bool | None, tensors: Values) -> bool:
        if torch.is_grad_enabled():
            for t in tensors:
                if t is not None and t.requires_grad:
                    size: Any = self._declared.kept_size
                    return little(size(*tensors), tensors[0]) if asked is None else asked
        return False

    def _call(self, arguments: Values) -> Sequence[Tensor]:
        return self._forward(arguments[self._tensors :], arguments[: self._tensors])

    def _fake(self, arguments: Values) -> Any:
        tensors, others = arguments[: self._tensors], arguments[self._tensors :]
        self._declared.check(tensors, self._attributes(others))
        return self._declared.fake(*arguments[:-1])

    def _reference(self, *arguments: Any) -> Any:
        return self._declared.reference(**dict(zip(self._names, arguments, strict=True)))

    # What raw operators return of what kernels and fakes give.

    def _results(self, arguments: Values, found: Any) -> list[Tensor]:
        """Results, and what was to be kept."""
        return list(_tuple(found)[: self._declared.results + self._keeps(arguments)])

    def _gradients(self, arguments: Values, found: Any) -> Any:
        """One tensor for each input, empty where no gradient is due."""
        needs, some = arguments[-2], next(t for t in arguments if t is not None)
        pairs = zip(range(len(self._declared.inputs)), _tuple(found), strict=False)
        gradients = tuple([t if needs >> i & 1 else some.new_empty(0) for i, t in pairs])
        return gradients if len(gradients) > 1 else gradients[0]

    def _fake_gradient(self, tensor: Any) -> Any:
        return self._declared.fake_gradient(tensor) if isinstance(tensor, Tensor) else None

    # The forward's formula; options are what is no tensor: attributes, keep, backend.

    def _keep(self, ctx: Any, arguments: Values, output: Any) -> None:
        d = self._declared
        ctx.options, *tensors = arguments
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*tensors)
        kept = output[d.results :]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*tensors, *(output[i] for i in d.reused), *kept or (None,) * d.kept)

    def _gradient(self, ctx: Any, *dz: Tensor | None) -> tuple[Tensor | None, ...]:
        d = self._declared
        wanted = ctx.needs_input_grad[1 : 1 + len(d.inputs)]
        found: Any = iter(())
        if any(t is not None for t in dz[: d.results]):
            options = (*self._attributes(ctx.options), _bits(wanted), ctx.options[-1])
            found = iter(self._backward(options, (*dz[: d.results], *ctx.saved_tensors)))
        gradients = (next(found, None) if due else None for due in wanted)
        return (None, *gradients, *(None,) * len(d.extras))

    def _tangent(self, ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        d = self._declared
        n = len(d.inputs)
        tensors = [_primal(t) for t in ctx.saved_tensors[: self._tensors]]
        inputs, extras, attributes = tensors[:n], tensors[n:], self._attributes(ctx.options)
        if d.tangent is None:
            found = push_forward(self._plain(extras, attributes), inputs, tangents[:n])
        else:
            call = lambda x, how: self((*x, *extras), how, ctx.options[-1], False)[0]  # noqa: E731
            found = [d.tangent(call, inputs, tangents[:n], attributes)]
        return (*found, *(None,) * self._keeps(ctx.options))

    def _vmap(self, info: Any, dims: Any, options: Any, *tensors: Tensor | None) -> Any:
        d = self._declared
        into = (0,) * d.results + (d.kept_rows,) * self._keeps(options)
        rows = self._rows(tensors)
        return _batched(self._forward, info, dims, options, tensors, rows, into, bool(d.rows))

    # The backward's; options: attributes, needs, backend.

    def _keep_backward(self, ctx: Any, arguments: Values, _: Any) -> None:
        ctx.options, *tensors = arguments
        ctx.set_materialize_grads(False)
        tensors = tensors[: self._declared.results + self._tensors]
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
        d = self._declared
        due = _due(options[-2])
        rows = (
            *(0,) * d.results,
            *self._rows(tensors[d.results : d.results + self._tensors]),
            *(0,) * len(d.reused),
            *(d.kept_rows,) * d.kept,
        )
        one_call = bool(d.rows) and all(i in d.rows for i in due)
        into = (0,) * len(due)
        return _batched(self._backward, info, dims, options, tensors, rows, into, one_call)

    # What both share.

    def _attributes(self, options: Values) -> Values:
        return options[: len(self._declared.attributes)]

    def _keeps(self, options: Values) -> int:
        """How many tensors a forward keeps."""
        return self._declared.kept if self._declared.kept_size is None or options[-2] else 0

    def _rows(self, tensors: Tensors) -> tuple[int | None, ...]:
        """Where inputs and extras have their rows; nowhere in a seed, which gives each row a mask of its own."""
        d = self._declared
        if d.seed is not None and tensors[d.seed] is not None:
            return (None,) * len(tensors)
        return tuple(0 if i in d.rows else None for i in range(len(tensors)))

    def _plain(self, extras: Tensors, attributes: Values) -> Callable[..., Any]:
        """The reference as a function of the inputs."""
        count = self._declared.results
        return lambda *inputs: _tuple(self._reference(*inputs, *extras, *attributes))[:count]

    def _plain_backward(self, ctx: Any) -> tuple[Callable[..., Any], Tensors]:
        """The gradients that were due as a function of (*dz, *inputs), by the reference; and these."""
        d = self._declared
        tensors = [_primal(t) for t in ctx.saved_tensors]
        split = d.results + len(d.inputs)
        plain = self._plain(tensors[split:], self._attributes(ctx.options))

        def backward(*values: Tensor | None) -> tuple[Tensor | None, ...]:
            gradients = pull_back(plain, values[d.results :], values[: d.results])
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

    def bind(self, *arguments: Any, **_: Any) -> inspect.BoundArguments:
        return _Bound(arguments)


class _Bound(inspect.BoundArguments):
    def __init__(self, arguments: Values) -> None:
        self._given = arguments

    args = property(lambda self: self._given)
    kwargs = property(lambda self: {})

    def apply_defaults(self) -> None:
        """There are none."""


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
    rows_alone: bool,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A function under `torch.vmap`: in one call, where only rows are many, else one call after the other.

    `rows` has for each tensor the dimension that is the batch, None where it has none; `into` the same for the results.
    `rows_alone` says whether rows of the results depend on rows of the tensors alone.
    """
    many, dims = info.batch_size, dims[1:]
    if rows_alone and all(d is None or at is not None for d, at in zip(dims, rows, strict=True)):
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


def _tuple(output: Any) -> Values:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _primal(tensor: Tensor | None) -> Tensor | None:
    """Without the tangent that it carries in forward mode."""
    return None if tensor is None else unpack_dual(tensor).primal


def _library(
    name: str,
    arguments: tuple[str, ...],
    results: str,
    run: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
) -> Call:
    """An operator of PyTorch's: opaque with a fake kernel, else what tracing looks into."""
    schema = f"{name}({', '.join(arguments)}, str backend) -> {results}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, f"Composite{'Explicit' if fake else 'Implicit'}Autograd")
    if fake:
        torch.library.register_fake(f"{OPERATORS}::{name}", fake, lib=LIBRARY)
    operator: Call = getattr(getattr(torch.ops, OPERATORS), name).default
    return operator


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


def autocast(kind: str, tensors: Values) -> Values:
    """What autocast does to a matrix product: tensors in its dtype, where it is enabled on this kind of device."""
    # The meta device has no autocast, and raises where it is asked whether that is enabled.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    narrowed = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in narrowed else t for t in tensors
    )
