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

# Called with what computes the results, and the inputs as the schema has them.
Apply = Callable[..., Any]


def register(
    library: torch.library.Library,
    name: str,
    setup_context: Callable[..., None],
    gradient: Callable[..., Any],
) -> Apply:
    """Gives an operator its autograd formula.

    Args:
        library: the one that defined the operator.
        name: of the operator.
        setup_context: called with (ctx, inputs, output), inputs as the schema has them.
        gradient: called with (ctx, *gradients of the results); gives one gradient for each input.

    Returns:
        What applies the formula around a computation of the results, called with (compute, *inputs).
    """
    operator = getattr(getattr(torch.ops, library.ns), name).default

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, compute: Callable[..., Any], *inputs: Any) -> Any:
            output = compute(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            return (None, *gradient(ctx, *gradients))

    def apply(compute: Callable[..., Any], *inputs: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Formula.apply(compute, *inputs)
        return compute(*inputs)

    def run(keyset: Any, *inputs: Any) -> Any:
        def redispatch(*inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.redispatch(keyset & _BELOW, *inputs)

        return apply(redispatch, *inputs)

    library.impl(name, run, "Autograd", with_keyset=True)
    return apply


def nobody_listens(inputs: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would do nothing with a call but pass it on to the kernel."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    for value in inputs:  # noqa: SIM110 (on the path of every call; a generator takes twice as long)
        if isinstance(value, Tensor) and type(value) not in _PLAIN:
            return False
    return True


_PLAIN = (Tensor, nn.Parameter)
