"""Every fused backend against the float64 reference, over drawn shapes, strides, dtypes and options."""

import pytest
import torch

import fbp_kernels as fk
from bench.shapes import SHAPES

from .cases import assert_case, over_examples
from .checks import assert_parity, fused, pairs

# In the interpreter they take half a minute each.
PAIRS = [
    pytest.param(*pair, marks=pytest.mark.slow if pair[1] == "triton" else ()) for pair in pairs()
]


@pytest.mark.parametrize(("operator", "backend"), PAIRS)
def test_result_and_gradients_match_float64(operator: str, backend: str) -> None:
    over_examples(operator, backend, lambda case: assert_case(case, backend))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["clip", "batch"])
def test_the_shapes_everybody_measures(name: str, dtype: torch.dtype) -> None:
    """Of the native kernels; at these sizes the interpreter would take hours."""
    shape = SHAPES[name]
    B, C, D, H = shape.B, shape.C, shape.D, shape.H
    shapes = [
        (B, C), (B, D), (B, H, C), (B, H, D),
        (C, shape.O_G * shape.K_G), (D, shape.O_G * shape.K_G),
        (H, C, shape.O_M * shape.K_M), (H, D, shape.O_M * shape.K_M),
    ]  # fmt: skip

    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [(torch.randn(s, generator=generator) / s[-2] ** 0.5).to(dtype) for s in shapes]

    arguments = {"factor": shape.K_G, "trunk_factor": shape.K_M}
    assert_parity(fk.am_fbp, draw, arguments, "native")


# The forward and dx of a convolution are PyTorch's own; see test_conv2d.py for what is ours.
@pytest.mark.parametrize(
    ("operator", "backend"), [pair for pair in PAIRS if pair.values[0] != "conv2d"]
)
def test_bit_identical_from_run_to_run_and_for_any_number_of_threads(
    operator: str, backend: str
) -> None:
    B, C, D = (70, 50, 90) if backend == "native" else (35, 20, 40)
    a, v = torch.randn(B, 3, C), torch.randn(B, 3, D)
    p, q = torch.randn(3, C, 65), torch.randn(3, D, 65)
    state = torch.Generator().manual_seed(2).get_state().view(torch.int64)
    calls = {
        "dropout": lambda a, *_: fk.dropout(a.repeat(9, 1, 1), 0.3, state=state, backend=backend),
        "fbp": (
            lambda a, v, p, q: fk.fbp(
                a[:, 0], v[:, 0], p[0], q[0], 5, adaptive=True, backend=backend
            )
        ),
        "trunk_fbp": lambda *t: fk.trunk_fbp(*t, 5, backend=backend),
        "am_fbp": lambda a, v, p, q: fk.am_fbp(
            a[:, 0], v[:, 0], a, v, p[0], q[0], p, q, 5, 13, backend=backend
        ),
        "local_response_norm": lambda a, *_: fk.local_response_norm(a, backend=backend),
        "batch_norm": lambda a, v, *_: fk.batch_norm(
            v.repeat(4, 1, 2), a[0, :, 0], a[0, :, 1], relu=True, backend=backend
        )[0],
        "power_normalize": lambda a, *_: fk.power_normalize(a, backend=backend),
        "attention_pool": lambda a, v, p, *_: fk.attention_pool(
            a, p[0], p[1, 0], p[2, 0], p[0, 0, 0], trunks=2, backend=backend
        )[1],
    }

    def run() -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_() for t in (a, v, p, q)]
        result = calls[operator](*leaves)
        gradients = torch.autograd.grad(result.square().sum(), leaves, allow_unused=True)
        return [result, *(g for g in gradients if g is not None)]

    threads = torch.get_num_threads()
    first = run()
    for count in (1, 2, 3) if backend == "native" else (1,):
        torch.set_num_threads(count)
        try:
            again = run()
        finally:
            torch.set_num_threads(threads)
        for x, y in zip(first, again, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("backend", fused("am_fbp"))
def test_am_fbp_is_the_concatenation_of_its_parts(backend: str) -> None:
    a, v, at, vt = torch.randn(9, 6), torch.randn(9, 7), torch.randn(9, 4, 6), torch.randn(9, 4, 7)
    p, q, pt, qt = (
        torch.randn(6, 10),
        torch.randn(7, 10),
        torch.randn(4, 6, 9),
        torch.randn(4, 7, 9),
    )
    lengths = torch.tensor([0, 1, 2, 3, 4, 4, 0, 1, 2])
    options = {"dropout": 0.3, "training": True, "backend": backend}
    torch.manual_seed(5)
    both = fk.am_fbp(a, v, at, vt, p, q, pt, qt, 5, 3, lengths=lengths, **options)
    torch.manual_seed(5)
    pooled = fk.fbp(a, v, p, q, 5, adaptive=True, **options)
    torch.manual_seed(5)
    trunk_pooled = fk.trunk_fbp(at, vt, pt, qt, 3, lengths=lengths, **options)
    torch.testing.assert_close(both, torch.cat([pooled, trunk_pooled], 1), rtol=0, atol=0)


@pytest.mark.parametrize("backend", [*fused("trunk_fbp"), "reference"])
def test_what_stands_in_dead_trunks_does_not_count(backend: str) -> None:
    a, v = torch.randn(4, 3, 6), torch.randn(4, 3, 7)
    p, q, bias = torch.randn(3, 6, 8), torch.randn(3, 7, 8), torch.randn(3, 8)
    lengths = torch.tensor([0, 1, 2, 3])
    dead = torch.arange(3) >= lengths[:, None]
    results = []
    for filler in (0.0, float("nan")):
        inputs = [a.clone(), v.clone(), p, q]
        inputs[0][dead] = filler
        inputs[1][dead] = filler
        leaves = [t.clone().requires_grad_() for t in inputs]
        z = fk.trunk_fbp(*leaves, 2, p_bias=bias, q_bias=bias, lengths=lengths, backend=backend)
        results.append([z, *torch.autograd.grad(z.sum(), leaves)])
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(clean, poisoned, rtol=0, atol=0)
    assert (results[0][0][0] == 0).all(), "no trunk, no output"
    assert (results[0][1][dead] == 0).all(), "no gradient into dead trunks"


@pytest.mark.parametrize("backend", [*fused("attention_pool"), "reference"])
def test_frames_past_the_length_are_never_read(backend: str) -> None:
    parameters = torch.randn(5, 4), torch.randn(4), torch.randn(4), torch.tensor(0.5)
    lengths = torch.tensor([0, 1, 3, 7, 6])
    dead = torch.arange(7) >= lengths[:, None]
    results = []
    for filler in (0.0, float("nan")):
        x = torch.randn(5, 7, 5, generator=torch.Generator().manual_seed(1))
        x[dead] = filler
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        pooled = fk.attention_pool(*leaves, trunks=3, lengths=lengths, backend=backend)
        total = sum(t.square().sum() for t in pooled)
        results.append([*pooled, *torch.autograd.grad(total, leaves)])
    for clean, poisoned in zip(*results, strict=True):
        torch.testing.assert_close(clean, poisoned, rtol=0, atol=0)
    pooled, _, weights, dx = results[0][:4]
    assert (weights[dead] == 0).all(), "no weight past the end"
    torch.testing.assert_close(weights.sum(1), (lengths > 0).float())
    assert (pooled[0] == 0).all(), "no frame, no sum"
    assert (dx[dead] == 0).all(), "no gradient past the end"


@pytest.mark.parametrize("backend", [*fused("fbp"), "reference"])
@pytest.mark.parametrize("silent", ["a", "v", "both"])
def test_adaptive_pooling_of_silent_rows_has_finite_gradients(backend: str, silent: str) -> None:
    dtype = torch.float64 if backend != "triton" else torch.float32
    a, v = torch.randn(3, 5, dtype=dtype), torch.randn(3, 6, dtype=dtype)
    if silent in ("a", "both"):
        a[1] = 0
    if silent in ("v", "both"):
        v[1] = 0
    p, q = torch.randn(5, 4, dtype=dtype), torch.randn(6, 4, dtype=dtype)
    bias = torch.randn(4, dtype=dtype)
    leaves = [t.requires_grad_() for t in (a, v, p, q)]
    z = fk.fbp(*leaves, 2, p_bias=bias, q_bias=bias, adaptive=True, backend=backend)
    expected = (bias * bias).view(2, 2).sum(1) if silent == "both" else None
    if expected is not None:
        torch.testing.assert_close(z[1], expected)
    truth = fk.reference.fbp(*leaves, 2, p_bias=bias, q_bias=bias, adaptive=True)
    for got, want in zip(
        torch.autograd.grad(z.sum(), leaves), torch.autograd.grad(truth.sum(), leaves), strict=True
    ):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("operator", "backend"), pairs(dtype=torch.float64))
def test_gradcheck(operator: str, backend: str) -> None:
    draw = lambda *s: torch.randn(s, dtype=torch.float64, requires_grad=True)  # noqa: E731
    lengths = torch.tensor([0, 3, 2, 1])
    options = {"backend": backend}
    a, v, at, vt = draw(4, 3), draw(4, 5), draw(4, 3, 3), draw(4, 3, 5)
    p, q, pt, qt = draw(3, 6), draw(5, 6), draw(3, 3, 6), draw(3, 5, 6)
    pb, qb, ptb, qtb = draw(6), draw(6), draw(3, 6), draw(3, 6)
    state = torch.Generator().manual_seed(2).get_state().view(torch.int64)
    checks = {
        "fbp": (
            lambda a, v, p, q, pb, qb: fk.fbp(
                a, v, p, q, 3, p_bias=pb, q_bias=qb, adaptive=True, **options
            ),
            (a, v, p, q, pb, qb),
        ),
        "trunk_fbp": (
            lambda a, v, p, q, pb, qb: fk.trunk_fbp(
                a, v, p, q, 2, p_bias=pb, q_bias=qb, lengths=lengths, **options
            ),
            (at, vt, pt, qt, ptb, qtb),
        ),
        "am_fbp": (
            lambda *t: fk.am_fbp(*t, 3, 2, lengths=lengths, **options),
            (a, v, at, vt, p, q, pt, qt),
        ),
        "local_response_norm": (
            lambda x: fk.local_response_norm(x, 3, 0.5, 0.75, relu=True, **options),
            (draw(2, 5, 3),),
        ),
        "batch_norm": (
            lambda x, *t: fk.batch_norm(
                x.transpose(1, 3), *t, lengths=lengths, relu=True, **options
            )[0],
            (draw(4, 3, 2, 5), draw(5), draw(5)),
        ),
        "attention_pool": (
            lambda *t: fk.attention_pool(*t, trunks=2, lengths=lengths, **options),
            (at, draw(3, 4), draw(4), draw(4), draw()),
        ),
        "conv2d": (
            lambda *t: fk.conv2d(*t, stride=(2, 1), padding=(0, 2), **options),
            (draw(2, 3, 4, 5).transpose(2, 3), draw(4, 3, 2, 3), draw(4)),
        ),
        "power_normalize": (lambda z: fk.power_normalize(z, **options), (draw(4, 3, 5),)),
        "dropout": (lambda x: fk.dropout(x, 0.3, state=state, **options), (draw(4, 3, 5).mT,)),
    }
    function, inputs = checks[operator]
    assert torch.autograd.gradcheck(function, inputs)
