"""How near each convolution of a step comes to what the machine can do.

A product of the forward takes as many operations as each of its two in the backward: the gradients of weights and of
inputs, of which the first layer needs no second.
"""

from dataclasses import dataclass
from math import prod

from profiling.trace import Span, Trace

_FORWARD, _BACKWARD = "aten::convolution", "aten::convolution_backward"


@dataclass
class Convolution:
    """The convolutions of one range.

    Attributes:
        name: of the range.
        forward_flops: operations of the forward, a multiplication and an addition being two.
        backward_flops: of the backward.
        forward_ms: what they took.
        backward_ms: likewise.
    """

    name: str
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    forward_ms: float = 0.0
    backward_ms: float = 0.0

    @property
    def flops(self) -> float:
        return self.forward_flops + self.backward_flops

    @property
    def seconds(self) -> float:
        return 1e-3 * (self.forward_ms + self.backward_ms)


def convolutions(trace: Trace, step: Span) -> list[Convolution]:
    """The convolutions of a step that went backward, by range, in the order of the forward.

    Args:
        trace: with shapes.
        step: one of `trace.steps`.
    """
    found: dict[str, Convolution] = {}
    for span in trace.in_step(step):
        if span.name in (_FORWARD, _BACKWARD):
            row = found.setdefault(span.owner, Convolution(span.owner))
            if span.name == _FORWARD:
                row.forward_ms += trace.milliseconds(span)
            else:
                product = _flops(span)
                row.forward_flops += product
                row.backward_flops += product * _wanted(span)
                row.backward_ms += trace.milliseconds(span)
    return [row for row in found.values() if row.flops]


def _flops(span: Span) -> float:
    """Operations of one product: each element of the result sums over a kernel and the channels of its group."""
    result, _, weight, *_ = span.args["Input Dims"]
    return 2.0 * prod(result) * prod(weight[1:])


def _wanted(span: Span) -> int:
    """How many of the gradients of inputs and weights were wanted."""
    mask = span.args["Concrete Inputs"][-1]
    return sum(wanted.strip() == "True" for wanted in mask.strip("[]").split(",")[:2])
