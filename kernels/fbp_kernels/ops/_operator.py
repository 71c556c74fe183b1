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
from torch import Tensor

from .. import backends
from . import _layout
from ._derivatives import pull_back, push_forward

LIBRARY = torch.library.Library("fbp_kernels", "DEF")

KEEP_LIMIT = 64 * 2**20  # bytes

MOVED = 32  # multiply-adds that take as long, roughly, as to read a number and write one

Tensors = Sequence[Tensor | None]


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
        attributes: everything that is no tensor.
        fake: shapes of the forward's results; called as a forward kernel is.
        reference: the operator in plain PyTorch, called with (*inputs, *extras, *attributes); derivatives that have no
            kernel are those of it.
        extras: other tensors.
        results: how many results can be differentiated.
        reused: which of these the backward is given.
        kept: how many tensors the forward may keep, 0 where it has no `keep` argument.
        kept_rows: the dimension of these that is the batch.
        fake_gradient: what the gradient of an input looks like, contiguous by default.
        work: multiply-adds of a forward, or what takes as long; called with the inputs.
        rows: which of inputs and extras begin with a batch dimension whose rows do not know of each other. A
            dimension under `torch.vmap` can lie down beside that one.
        seed: which one, if it is there, gives rows different masks, so that it cannot.
        tangent: the derivative along a direction, called with (call, inputs, tangents, extras, attributes), where
            call(inputs, attributes) is the operator's first result; by default the reference's.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    extras: tuple[str, ...] = ()
    results: int = 1
    reused: tuple[int, ...] = ()
    kept: int = 0
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
    """An operator that PyTorch knows, called as its schema says, the backend last."""

    def __init__(self, declared: Operator) -> None:
        self.name, self._declared = declared.name, declared
        d, name = declared, declared.name
        tensors = d.inputs + d.extras
        self._tensors = len(tensors)
        arguments = tensors + d.attributes + ("bool keep",) * bool(d.kept)
        forward = _define(
            f"{name}_forward",
            arguments,
            d.results + d.kept,
            0,
            lambda backend: backends.kernel(name, backend).forward,
            d.fake,
        )
        dz = [f"Tensor? dz{i}" for i in range(d.results)] if d.results > 1 else ["Tensor dz"]
        reused = [f"Tensor z{i}" for i in d.reused]
        kept = [f"Tensor? kept{i}" for i in range(d.kept)]
        backward = _define(
            f"{name}_backward",
            (*dz, *tensors, *reused, *kept, *d.attributes, "int needs"),
            len(d.inputs),
            d.results,
            lambda backend: backends.kernel(name, backend).backward,
            self._fake_backward,
        )
        self._forward = _function(
            name, forward, self._keep, self._gradient, self._tangent, self._vmap
        )
        self._backward = _function(
            f"{name}_backward",
            backward,
            self._keep_backward,
            self._second_gradient,
            self._second_tangent,
            self._vmap_backward,
        )
        LIBRARY.define(
            _schema(name, arguments, d.results + d.kept), tags=(torch.Tag.pt2_compliant_tag,)
        )
        self._apply = self._forward.apply
        LIBRARY.impl(
            name,
            lambda *a: self._apply(a[self._tensors :], *a[: self._tensors]),
            "CompositeImplicitAutograd",
        )
        self._recorded = getattr(torch.ops.fbp_kernels, name).default

    def __call__(self, *arguments: Any) -> Any:
        """Calls the operator."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._recorded(*arguments)
        try:
            return self._apply(arguments[self._tensors :], *arguments[: self._tensors])
        except NotImplementedError as error:
            kinds = {type(t).__name__ for t in arguments if isinstance(t, Tensor)}
            raise NotImplementedError(
                f"{self.name}: the fused kernels do not run on {', '.join(sorted(kinds))}; use backend='reference',"
                " or, on a DTensor, torch.distributed.tensor.experimental.local_map"
            ) from error

    # The forward's formula; options are what is no tensor: attributes, keep, backend.

    def _keep(self, ctx: Any, arguments: tuple[Any, ...], output: Any) -> None:
        d = self._declared
        options, tensors = arguments[0], arguments[1:]
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(*tensors)
        if d.kept and options[-2]:
            ctx.mark_non_differentiable(*output[d.results :])
        if True in ctx.needs_input_grad:
            reused = [output[i] for i in d.reused]
            kept = output[d.results :] if d.kept and options[-2] else (None,) * d.kept
            ctx.save_for_backward(*tensors, *reused, *kept)

    def _gradient(self, ctx: Any, *dz: Tensor | None) -> tuple[Tensor | None, ...]:
        d = self._declared
        dz = dz[: d.results]
        wanted = ctx.needs_input_grad[1 : 1 + len(d.inputs)]
        rest = (None,) * len(d.extras)
        if all(t is None for t in dz):
            return (None, *(None for _ in wanted), *rest)
        options = (*self._attributes(ctx.options), _bits(wanted), ctx.options[-1])
        gradients = _tuple(self._backward.apply(options, *dz, *ctx.saved_tensors))
        return (
            None,
            *(g if due else None for g, due in zip(gradients, wanted, strict=True)),
            *rest,
        )

    def _tangent(self, ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        d = self._declared
        n = len(d.inputs)
        tensors = [_primal(t) for t in ctx.saved_tensors]
        inputs, extras, attributes = tensors[:n], tensors[n:], self._attributes(ctx.options)
        if d.tangent is None:
            plain = self._plain(extras, attributes)
            found = tuple(push_forward(plain, inputs, tangents[:n]))
        else:

            def call(inputs: Tensors, attributes: tuple[Any, ...]) -> Any:
                return self(*inputs, *extras, *attributes, False, ctx.options[-1])[0]

            found = (d.tangent(call, inputs, tangents[:n], attributes),)
        kept = None if not d.kept or ctx.options[-2] else found[0].new_zeros(0)
        found = (*found, *(kept,) * d.kept)
        return found if len(found) > 1 else found[0]

    def _vmap(self, info: Any, dims: Any, options: Any, *tensors: Tensor | None) -> Any:
        d = self._declared
        keep = bool(d.kept) and options[-2]
        into = (0,) * d.results + (d.kept_rows if keep else None,) * d.kept
        return _batched(
            self._forward, info, dims, options, tensors, self._rows(tensors), into if d.rows else ()
        )

    # The backward's; options: attributes, needs, backend.

    def _keep_backward(self, ctx: Any, arguments: tuple[Any, ...], output: Any) -> None:
        ctx.options = arguments[0]
        ctx.set_materialize_grads(False)
        needs, gradients = ctx.options[-2], _tuple(output)
        ctx.mark_non_differentiable(*(t for i, t in enumerate(gradients) if not needs >> i & 1))
        tensors = arguments[1 : 1 + self._declared.results + self._tensors]
        ctx.save_for_forward(*tensors)
        if True in ctx.needs_input_grad:
            ctx.save_for_backward(*tensors)

    def _second_gradient(self, ctx: Any, *h: Tensor | None) -> tuple[Tensor | None, ...]:
        backward, tensors, due = self._plain_backward(ctx)
        found = pull_back(backward, tensors, [h[i] for i in due])
        return (None, *found, *(None,) * (len(ctx.needs_input_grad) - 1 - len(found)))

    def _second_tangent(self, ctx: Any, _: None, *tangents: Tensor | None) -> Any:
        backward, tensors, due = self._plain_backward(ctx)
        pushed = push_forward(backward, tensors, tangents[: len(tensors)])
        found = dict(zip(due, pushed, strict=True))
        each = tuple(found.get(i) for i in range(len(self._declared.inputs)))
        return each if len(each) > 1 else each[0]

    def _vmap_backward(self, info: Any, dims: Any, options: Any, *tensors: Tensor | None) -> Any:
        d = self._declared
        into = tuple(0 if options[-2] >> i & 1 else None for i in range(len(d.inputs)))
        rows_only = all(i in d.rows for i, at in enumerate(into) if at is not None)
        end = d.results + self._tensors
        at = (
            *(0,) * d.results,
            *self._rows(tensors[d.results : end]),
            *(0,) * len(d.reused),
            *(d.kept_rows,) * d.kept,
        )
        one_call = rows_only and d.rows
        return _batched(self._backward, info, dims, options, tensors, at, into if one_call else ())

    def _fake_backward(self, *arguments: Any) -> Any:
        d, needs = self._declared, arguments[-1]
        inputs = arguments[d.results : d.results + len(d.inputs)]
        some = next(dz for dz in arguments if dz is not None)
        gradients = tuple(
            some.new_empty(0) if t is None or not needs >> i & 1 else d.fake_gradient(t)
            for i, t in enumerate(inputs)
        )
        return gradients if len(gradients) > 1 else gradients[0]

    # What both share.

    def _attributes(self, options: tuple[Any, ...]) -> tuple[Any, ...]:
        return options[: len(self._declared.attributes)]

    def _rows(self, tensors: Tensors) -> tuple[int | None, ...]:
        """Where inputs and extras have their rows; nowhere in a seed, which gives each row a mask of its own."""
        d = self._declared
        if d.seed is not None and tensors[d.seed] is not None:
            return (None,) * len(tensors)
        return tuple(0 if i in d.rows else None for i in range(len(tensors)))

    def _plain(self, extras: Tensors, attributes: tuple[Any, ...]) -> Callable[..., Any]:
        """The reference as a function of the inputs."""
        d = self._declared
        return lambda *inputs: _tuple(d.reference(*inputs, *extras, *attributes))[: d.results]

    def _plain_backward(self, ctx: Any) -> tuple[Callable[..., Any], Tensors, list[int]]:
        """The gradients that were due as a function of (*dz, *inputs), by the reference; these; and which were due."""
        d = self._declared
        tensors = [_primal(t) for t in ctx.saved_tensors]
        split, needs = d.results + len(d.inputs), ctx.options[-2]
        due = [i for i in range(len(d.inputs)) if needs >> i & 1]
        plain = self._plain(tensors[split:], self._attributes(ctx.options))

        def backward(*values: Tensor | None) -> tuple[Tensor | None, ...]:
            gradients = pull_back(plain, values[d.results :], values[: d.results])
            return tuple(gradients[i] for i in due)

        return backward, tensors[:split], due


class _AsGiven(inspect.Signature):
    """Of a function that has neither names nor defaults to fill in.

    `autograd.Function.apply` looks up the signature of `forward` in every call and binds what came to it: 5
    microseconds of 20 at a size of 1.
    """

    def bind(self, *args: Any, **_: Any) -> Any:
        return _Bound(args)


class _Bound:
    """As `inspect.BoundArguments`."""

    __slots__ = ("args",)
    kwargs: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args = args

    def apply_defaults(self) -> None:
        """There are none."""


def _function(
    name: str,
    run: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    jvp: Callable[..., Any],
    vmap: Callable[..., Any],
) -> Any:
    """A `torch.autograd.Function` of (options, *tensors) around a raw operator of (*tensors, *options)."""

    def forward(options: tuple[Any, ...], *tensors: Tensor | None) -> Any:
        return run(*tensors, *options)

    forward.__signature__ = _AsGiven()  # type: ignore[attr-defined]
    members = {
        "forward": forward,
        "setup_context": setup_context,
        "backward": backward,
        "jvp": jvp,
        "vmap": vmap,
    }
    kind: Any = type(torch.autograd.Function)
    return kind(name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in members.items()})


def _batched(
    function: Any,
    info: Any,
    dims: tuple[Any, ...],
    options: tuple[Any, ...],
    tensors: Tensors,
    rows: Sequence[int | None],
    into: Sequence[int | None],
) -> tuple[Any, Any]:
    """A function under `torch.vmap`: in one call, where only rows are many, else one call after the other.

    Args:
        function: called with (options, *tensors).
        info: has `batch_size`.
        dims: of the arguments, those that are mapped over.
        options: no tensors.
        tensors: the arguments.
        rows: the dimension of each that is the batch, None where it has none.
        into: the same of the results; empty where one call cannot do it.
    """
    many = info.batch_size
    pairs: list[tuple[Any, Any]] = list(zip(tensors, dims[1:], strict=True))
    if into and not any(d is not None and at is None for d, at in zip(dims[1:], rows, strict=True)):
        folded = [
            t if t is None or at is None else _laid_beside(t, d, at, many)
            for (t, d), at in zip(pairs, rows, strict=True)
        ]
        results = _tuple(function.apply(options, *folded))
        unfolded = [
            t if at is None else t.unflatten(at, (many, t.shape[at] // many))
            for t, at in zip(results, into, strict=True)
        ]
    else:
        calls = [
            _tuple(
                function.apply(
                    options,
                    *(t if d is None else _layout.readable(t.select(d, i)) for t, d in pairs),
                )
            )
            for i in range(many)
        ]
        unfolded = [torch.stack(ts) for ts in zip(*calls, strict=True)]
        into = [0] * len(unfolded)
    return (tuple(unfolded), tuple(into)) if len(unfolded) > 1 else (unfolded[0], into[0])


def _laid_beside(tensor: Tensor, dim: int | None, rows: int, many: int) -> Tensor:
    """With a dimension merged into the rows, or repeated where it has none."""
    if dim is None:
        shape = (*tensor.shape[:rows], many, *tensor.shape[rows:])
        tensor = tensor.unsqueeze(rows).expand(shape)
    else:
        tensor = tensor.movedim(dim, rows)
    return _layout.readable(tensor.flatten(rows, rows + 1))


def _tuple(output: Any) -> tuple[Any, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _primal(tensor: Tensor | None) -> Tensor | None:
    """Without the tangent that it carries in forward mode."""
    return None if tensor is None else torch.autograd.forward_ad.unpack_dual(tensor).primal


def _schema(name: str, arguments: tuple[str, ...], results: int) -> str:
    result = f"({', '.join(['Tensor'] * results)})" if results > 1 else "Tensor"
    return f"{name}({', '.join(arguments)}, str backend) -> {result}"


def _define(
    name: str,
    arguments: tuple[str, ...],
    results: int,
    first: int,
    select: Callable[[str], Callable[..., Any]],
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        values = select(args[-1])(*args[:-1])
        if results == 1:
            return values
        return tuple([args[first].new_empty(0) if t is None else t for t in values])

    LIBRARY.define(_schema(name, arguments, results), tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fbp_kernels::{name}", lambda *a: fake(*a[:-1]), lib=LIBRARY)
    operator: Callable[..., Any] = getattr(torch.ops.fbp_kernels, name).default
    return operator


@functools.cache
def _bits(flags: tuple[bool, ...]) -> int:
    """An integer with bit i set where flag i is."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def keeps(explicit: bool | None, elements: Callable[[], int], inputs: Tensors) -> bool:
    """Whether the forward keeps what the backward would compute again: not where no gradient is due.

    Args:
        explicit: the caller's choice, or None for the default, which keeps what takes at most 64 MiB.
        elements: gives how many numbers; not called where no gradient is due.
        inputs: the differentiable inputs, the first of which has their dtype.
    """
    if not torch.is_grad_enabled():
        return False
    for t in inputs:
        if t is not None and t.requires_grad:
            break
    else:
        return False
    return bool(elements() * t.element_size() <= KEEP_LIMIT) if explicit is None else explicit


def draw_seed(dropout: float, training: bool, device: torch.device) -> Tensor | None:
    """A seed for the dropout mask from torch's generator of the device, or None where nothing drops."""
    if not training or dropout == 0:
        return None
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """What autocast does to a matrix product: tensors in its dtype, where it is enabled."""
    first = tensors[0]
    if not isinstance(first, Tensor):
        return tensors
    kind = first.device.type
    # The meta device has no autocast, and raises where it is asked whether that is enabled.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    narrowed = (torch.float32, torch.float16, torch.bfloat16)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype in narrowed else t for t in tensors
    )
