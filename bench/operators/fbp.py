"""Global factorized bilinear pooling, without and with biases."""

import importlib

import torch
from torch import Tensor, nn

import fbp_kernels
from fbp_kernels import reference

from .call import Call, Draw, Peer, Thunk


def make(sizes: dict[str, int], draw: Draw) -> Call:
    """`fbp` as AM-FBP has it, without biases; sizes B, C, D, O, K."""
    a, v, p, q = _inputs(sizes, draw)
    K = sizes["K"]
    return Call(
        "fbp",
        sizes,
        lambda a, v, p, q, **how: fbp_kernels.fbp(a, v, p, q, K, **how),
        lambda a, v, p, q: reference.fbp(a, v, p, q, K),
        (a, v, p, q),
        flops(sizes),
        {"products": products(a, v, p, q, draw)},
        projections=a.shape[0] * p.shape[1],
    )


def make_biased(sizes: dict[str, int], draw: Draw) -> Call:
    """`fbp` with biases, as the published MFB (Yu et al. 2017) has it; sizes B, C, D, O, K."""
    K, N = sizes["K"], sizes["O"] * sizes["K"]
    a, v, p, q = _inputs(sizes, draw)
    return Call(
        "fbp",
        sizes,
        lambda a, v, p, q, p_bias, q_bias, **how: fbp_kernels.fbp(
            a, v, p, q, K, p_bias=p_bias, q_bias=q_bias, **how
        ),
        lambda a, v, p, q, p_bias, q_bias: reference.fbp(
            a, v, p, q, K, p_bias=p_bias, q_bias=q_bias
        ),
        (a, v, p, q, draw(N), draw(N)),
        flops(sizes),
        {"products": products(a, v, p, q, draw)},
        {"mfb": lambda t: _mfb(t, K)},
        a.shape[0] * p.shape[1],
    )


def flops(sizes: dict[str, int]) -> float:
    """Of the two projections."""
    return 2.0 * sizes["B"] * sizes["K"] * sizes["O"] * (sizes["C"] + sizes["D"])


def products(a: Tensor, v: Tensor, p: Tensor, q: Tensor, draw: Draw) -> Thunk:
    """The two matrix products alone, into memory that is there."""
    u, w = draw.empty(a.shape[0], p.shape[1]), draw.empty(a.shape[0], p.shape[1])
    return lambda: (torch.mm(a, p, out=u), torch.mm(v, q, out=w))


def _inputs(sizes: dict[str, int], draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, C, D, N = sizes["B"], sizes["C"], sizes["D"], sizes["O"] * sizes["K"]
    return (draw(B, C), draw(B, D), draw(C, N, scale=C**-0.5), draw(D, N, scale=D**-0.5))


def _mfb(tensors: tuple[Tensor, ...], factor: int) -> Peer:
    """MFB of block.bootstrap.pytorch 0.1.6 up to its sum over factors: no activations, no output layer."""
    fusions = importlib.import_module("block.models.networks.fusions.fusions")
    a, v, p, q, p_bias, q_bias = tensors
    outputs = p.shape[1] // factor
    module = fusions.MFB(
        (a.shape[1], v.shape[1]), 1, outputs, factor, activ_input=None, activ_output=None
    ).to(a.device, a.dtype)
    module.linear_out = nn.Identity()
    layers = (module.linear0, module.linear1)
    for layer, weight, bias in zip(layers, (p, q), (p_bias, q_bias), strict=True):
        layer.weight.data, layer.bias.data = weight.T.contiguous(), bias.clone()
    weights = (layers[0].weight, layers[1].weight, layers[0].bias, layers[1].bias)

    def run(a: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        pooled: Tensor = module([a, v])
        return pooled

    def like_ours(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        da, dv, dp, dq, *biases = gradients
        return (da, dv, dp.T, dq.T, *biases)

    return Peer(run, (a, v, *weights), like_ours)
