"""What users may ask of the operators beside what is timed: compared with float64, and timed where asked for."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import am_fbp, attention_pool, fbp, local_response_norm, trunk_fbp
from .call import Call, Draw, Function, Results

_SEED = 1
_DROPOUT: dict[str, Any] = {"dropout": 0.1, "training": True}


def fbp_adaptive(sizes: dict[str, int], draw: Draw) -> Call:
    """Adaptive weights, biases, dropout, and weights that lie in memory as `nn.Linear` has them."""
    call = fbp.make_biased(sizes, draw)
    a, v, p, q, *biases = call.tensors
    tensors = (a, v, _transposed(p), _transposed(q), *biases)
    return _compared(call, _seeded(call.function, adaptive=True, **_DROPOUT), tensors)


def trunk_fbp_ragged(sizes: dict[str, int], draw: Draw) -> Call:
    """Lengths from 0 to all trunks, biases, dropout."""
    call = trunk_fbp.make(sizes, draw)
    lengths = _lengths(sizes["B"], sizes["H"], draw)

    def biased(*tensors: Tensor, **how: Any) -> Results:
        *rest, p_bias, q_bias = tensors
        return call.function(*rest, p_bias=p_bias, q_bias=q_bias, **how)

    columns = sizes["H"], sizes["O"] * sizes["K"]
    tensors = (*call.tensors, draw(*columns), draw(*columns))
    return _compared(call, _seeded(biased, lengths=lengths, **_DROPOUT), tensors)


def am_fbp_ragged(sizes: dict[str, int], draw: Draw) -> Call:
    """Lengths from 0 to all trunks, dropout."""
    call = am_fbp.make(sizes, draw)
    lengths = _lengths(sizes["B"], sizes["H"], draw)
    return _compared(call, _seeded(call.function, lengths=lengths, **_DROPOUT), call.tensors)


def am_fbp_tiles(sizes: dict[str, int], draw: Draw) -> Call:
    """`am_fbp` of the same sizes and weights, which no native kernel but that by tiles serves, whatever the device.

    One row stands for all, at a stride of 0, of which no tensor map can tell.
    """
    call = am_fbp.make(sizes, draw)
    inputs = [x[:1].expand_as(x) for x in call.tensors[:4]]
    return _compared(call, call.function, (*inputs, *call.tensors[4:]))


def attention_pool_ragged(sizes: dict[str, int], draw: Draw) -> Call:
    """Lengths from 0 to all frames."""
    call = attention_pool.make(sizes, draw)
    lengths = _lengths(sizes["B"], sizes["T"], draw)
    return _compared(call, partial(call.function, lengths=lengths), call.tensors)


def local_response_norm_apart(sizes: dict[str, int], draw: Draw) -> Call:
    """Channels apart, where they are together in what is timed."""
    call = local_response_norm.make(sizes, draw)
    tensors = tuple(x.contiguous() for x in call.tensors)
    copy = torch.empty_like(tensors[0])
    compared = _compared(call, call.function, tensors)
    return replace(compared, bare={"copy": lambda: (copy.copy_(tensors[0]),)}, others=call.others)


def _compared(call: Call, function: Function, tensors: tuple[Tensor, ...]) -> Call:
    """The call with another function, whose reference is the same function on that backend."""
    reference = partial(function, backend="reference")
    return replace(
        call, function=function, reference=reference, tensors=tensors, bare={}, others={}
    )


def _seeded(function: Function, **how: Any) -> Function:
    """The function with further arguments and, whoever computes it, the same dropout mask."""

    def run(*tensors: Tensor, **backend: Any) -> Results:
        torch.manual_seed(_SEED)
        return function(*tensors, **how, **backend)

    return run


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous().T


def _lengths(rows: int, most: int, draw: Draw) -> Tensor:
    """Lengths from 0 to the most, where there are rows enough; the first row has the most."""
    return (torch.arange(rows, device=draw.device) * 7 + most) % (most + 1)
