"""The step from autograd to the kernels, as `torch.library.register_autograd` takes it, but lighter.

At the paper's scale a kernel takes a tenth of a millisecond, and so did what stood around it: filling in the
defaults of the schema on every call (ours have none), and five passages between Python and the dispatcher.
The formula is one; it is reached through the dispatcher where somebody listens there (a compiler, a mode, a
tensor subclass, a transform), and directly where nobody does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_BELOW = torch._C._after_autograd_keyset

# Called with what computes the results from all arguments but the last, the backend, and the arguments as the
# schema has them.
Apply = Callable[[Callable[..., Any], tuple[Any, ...]], Any]


def register(
    library: torch.library.Library,
    name: str,
    differentiable: int,
    results: int,
    setup_context: Callable[..., None],
    gradient: Callable[..., Any],
) -> Apply:
    """Gives an operator its autograd formula.

    Args:
        library: the one that defined the operator.
        name: of the operator.
        differentiable: how many of its arguments can be, the first ones.
        results: how many of its results can be, the first ones.
        setup_context: called with (ctx, arguments, output), arguments as the schema has them.
        gradient: called with (ctx, *gradients of the results); gives the gradients of the arguments.

    Returns:
        What applies the formula around a computation of the results.
    """
    operator = getattr(getattr(torch.ops, library.ns), name).default

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, compute: Callable[..., Any], others: Any, rest: list[Any], *inputs: Any
        ) -> Any:
            output = compute(*inputs, *others[:-1])
            setup_context(ctx, inputs + others, output)
            if isinstance(output, Tensor):
                return output
            # To autograd these are no results: it would look after each of them.
            rest.extend(output[results:])
            return output[0] if results == 1 else output[:results]

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            return (None, None, None, *gradient(ctx, *gradients))

    # Without what only transforms need; to look for it takes as long as a few kernels' arguments.
    untransformed = super(torch.autograd.Function, Formula).apply

    def apply(compute: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        inputs = arguments[:differentiable]
        if not gradient_is_due(inputs):
            return compute(*arguments[:-1])
        rest: list[Any] = []
        transformed = torch._C._are_functorch_transforms_active()
        formula = Formula.apply if transformed else untransformed
        output = formula(compute, arguments[differentiable:], rest, *inputs)
        if not rest:
            return output
        return (output, *rest) if results == 1 else (*output, *rest)

    def run(keyset: Any, *arguments: Any) -> Any:
        def redispatch(*others: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keyset & _BELOW, *others, arguments[-1])

        return apply(redispatch, arguments)

    library.impl(name, run, "Autograd", with_keyset=True)
    return apply


def gradient_is_due(inputs: tuple[Any, ...]) -> bool:
    """Whether autograd has to know of a call; not for tracing."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)


def nobody_listens(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would do nothing with a call but pass it on to the kernel."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and _PLAIN.issuperset(map(type, arguments))
    )


# Subclasses of tensors listen, and so do traced sizes.
_PLAIN = frozenset((Tensor, nn.Parameter, type(None), int, float, bool, str))
