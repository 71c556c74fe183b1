"""Every kind of derivative of every operator, on every backend: the reference's numbers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)  # fmt: skip

import fbp_kernels as fk
from fbp_kernels.ops._derivatives import push_forward

from .checks import fused, pairs

Call = Callable[..., Any]
LENGTHS = torch.tensor([2, 0])
STATE = torch.Generator().manual_seed(2).get_state().view(torch.int64)


def fbp(backend: str | None) -> Call:
    def call(a: Tensor, v: Tensor, p: Tensor, q: Tensor, p_bias: Tensor, q_bias: Tensor) -> Tensor:
        return fk.fbp(
            a, v, p, q, 2, p_bias=p_bias, q_bias=q_bias, adaptive=True,
            dropout=0.3, training=True, backend=backend,
        )  # fmt: skip

    return call


def trunk_fbp(backend: str | None) -> Call:
    return lambda *t: fk.trunk_fbp(
        *t[:4], 2, p_bias=t[4], q_bias=t[5], lengths=LENGTHS, dropout=0.3, training=True,
        backend=backend,
    )  # fmt: skip


def am_fbp(backend: str | None) -> Call:
    return lambda *t: fk.am_fbp(*t, 2, 1, lengths=LENGTHS, backend=backend)


def attention_pool(backend: str | None) -> Call:
    def call(*tensors: Tensor) -> Tensor:
        pooled, trunks, weights = fk.attention_pool(
            *tensors, trunks=2, lengths=torch.tensor([3, 2]), backend=backend
        )
        return pooled + trunks[:, 1] * weights.square().sum(1, keepdim=True)

    return call


def batch_norm(backend: str | None) -> Call:
    lengths = torch.tensor(
        [3, 1]
    )  # of two values alone the result would be 1 and -1, whatever they are
    return lambda x, w, b: fk.batch_norm(x, w, b, lengths=lengths, relu=True, backend=backend)[0]


CALLS: dict[str, tuple[Callable[[str | None], Call], list[tuple[int, ...]]]] = {
    # Of a sine, likewise.
    "conv2d": (
        lambda k: (
            lambda x, w, b: fk.conv2d(x.sin(), w, b.sin(), stride=(2, 1), padding=(1, 0), backend=k)
        ),
        [(2, 2, 3, 3), (2, 2, 3, 2), (2,)],
    ),
    # Of a sine, as it is linear itself: its tangents do not depend on x.
    "dropout": (lambda k: lambda x: fk.dropout(x.sin(), 0.3, state=STATE, backend=k), [(3, 4)]),
    "fbp": (fbp, [(2, 3), (2, 2), (3, 4), (2, 4), (4,), (4,)]),
    "trunk_fbp": (trunk_fbp, [(2, 2, 3), (2, 2, 2), (2, 3, 4), (2, 2, 4), (2, 4), (2, 4)]),
    "am_fbp": (
        am_fbp,
        [(2, 3), (2, 2), (2, 2, 3), (2, 2, 2), (3, 4), (2, 4), (2, 3, 2), (2, 2, 2)],
    ),
    "attention_pool": (attention_pool, [(2, 3, 2), (2, 3), (3,), (3,), ()]),
    "local_response_norm": (
        lambda k: lambda x: fk.local_response_norm(x, 3, alpha=0.5, relu=True, backend=k),
        [(2, 4, 1, 2)],
    ),
    "batch_norm": (batch_norm, [(2, 2, 1, 3), (2,), (2,)]),
    "power_normalize": (lambda k: lambda z: fk.power_normalize(z, backend=k), [(2, 3)]),
}


def draw(operator: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = CALLS[operator][1]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def summed(call: Call) -> Call:
    return lambda *t: call(*t).pow(3).sum()


def every(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def backward(call: Call, inputs: list[Tensor], _: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    return torch.autograd.grad(summed(call)(*leaves), leaves)


def second(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    first = torch.autograd.grad(summed(call)(*leaves), leaves, create_graph=True)
    product = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
    return torch.autograd.grad(product, leaves)


def third(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    once = grad(summed(call))

    # Squared: the sum alone is 0 in batch_norm, which a shift of its input does not change.
    def twice(x: Tensor) -> Tensor:
        return jvp(lambda y: once(y, *inputs[1:]), (x,), (directions[0],))[1].square().sum()

    return grad(twice)(inputs[0])


def dual_tensors(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, d) for x, d in zip(inputs, directions, strict=True)]
        return forward_ad.unpack_dual(call(*duals)).tangent


def each_dual(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    """One input after the other: the others have no tangent at all."""
    found = []
    for i, direction in enumerate(directions):
        with forward_ad.dual_level():
            duals = list(inputs)
            duals[i] = forward_ad.make_dual(inputs[i], direction)
            found.append(forward_ad.unpack_dual(call(*duals)).tangent)
    return found


def reverse_over_dual(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    return torch.autograd.grad(dual_tensors(call, leaves, directions).square().sum(), leaves)


def dual_over_reverse(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    return jvp(grad(summed(call), every(len(inputs))), tuple(inputs), tuple(directions))[1]


def linearized(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    return linearize(call, *inputs)[1](*directions)


def pulled(call: Call, inputs: list[Tensor], _: list[Tensor]) -> Any:
    result, pull = vjp(call, *inputs)
    return pull(result.cos())


def batched_gradients(call: Call, inputs: list[Tensor], _: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    z = call(*leaves)
    many = torch.linspace(-1, 1, 3 * z.numel(), dtype=z.dtype).reshape(3, *z.shape)
    return torch.autograd.grad(z, leaves, many, is_grads_batched=True)


def by_sample(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    many = [torch.stack([x, d]) for x, d in zip(inputs, directions, strict=True)]
    return vmap(grad(summed(call), every(len(inputs))), randomness="same")(*many)


def over_each_input(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    found = []
    for i in range(len(inputs)):
        many = list(inputs)
        many[i] = torch.stack([inputs[i], directions[i]], -1)  # the last dimension is mapped over
        dims = tuple(-1 if j == i else None for j in range(len(inputs)))
        found.append(vmap(call, dims, randomness="same")(*many))
    return found


def over_all(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    many = [torch.stack([x, d, x]) for x, d in zip(inputs, directions, strict=True)]
    return vmap(vmap(call, randomness="same"), randomness="same")(*(m.unsqueeze(1) for m in many))


def functional(call: Call, inputs: list[Tensor], _: list[Tensor]) -> Any:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(t.detach().clone() for t in inputs[1:])

        def forward(self, x: Tensor) -> Tensor:
            return call(x, *self.weights)

    module = Module()
    parameters = {n: p.detach() * 2 for n, p in module.named_parameters()}
    return grad(lambda ps, x: functional_call(module, ps, (x,)).square().sum(), (0, 1))(
        parameters, inputs[0]
    )


def jacrev_by_each(call: Call, inputs: list[Tensor], _: list[Tensor]) -> Any:
    """One input after the other: no gradient of the others is due."""

    def by(i: int) -> Any:
        return jacrev(lambda x: call(*inputs[:i], x, *inputs[i + 1 :]))(inputs[i])

    return [by(i) for i in range(len(inputs))]


KINDS: dict[str, Callable[[Call, list[Tensor], list[Tensor]], Any]] = {
    "backward": backward,
    "second derivatives (create_graph)": second,
    "third derivatives": third,
    "torch.func.jvp": lambda f, x, d: jvp(f, tuple(x), tuple(d))[1],
    "dual tensors": dual_tensors,
    "dual tensors, one input": each_dual,
    "reverse over forward": reverse_over_dual,
    "forward over reverse": dual_over_reverse,
    "torch.func.linearize": linearized,
    "torch.func.jacfwd": lambda f, x, _: jacfwd(f, every(len(x)), randomness="same")(*x),
    "torch.func.grad": lambda f, x, _: grad(summed(f), every(len(x)))(*x),
    "torch.func.vjp": pulled,
    "torch.func.jacrev": lambda f, x, _: jacrev(f, every(len(x)))(*x),
    "torch.func.jacrev, one input": jacrev_by_each,
    "torch.func.hessian": lambda f, x, _: jacfwd(
        jacrev(lambda y: summed(f)(y, *x[1:])), randomness="same"
    )(x[0]),
    "is_grads_batched": batched_gradients,
    "gradients by sample": by_sample,
    "vmap over each input": over_each_input,
    "vmap over all, nested": over_all,
    "functional_call": functional,
}

# PyTorch's own forward mode, which the reference goes by, writes over what its reverse of it needs (softmax, norms):
# for these the truth is reached by reverse mode alone.


def reverse_twice(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Tensor:
    def seeded(*tensors: Tensor) -> tuple[Tensor]:
        torch.manual_seed(1)
        return (call(*tensors),)

    return push_forward(seeded, inputs, directions)[0]


def truth_of_reverse_over_forward(call: Call, inputs: list[Tensor], d: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    return torch.autograd.grad(reverse_twice(call, leaves, d).square().sum(), leaves)


def truth_of_third(call: Call, inputs: list[Tensor], directions: list[Tensor]) -> Any:
    leaves = [t.requires_grad_() for t in inputs]
    (once,) = torch.autograd.grad(summed(call)(*leaves), leaves[:1], create_graph=True)
    (twice,) = torch.autograd.grad((once * directions[0]).sum(), leaves[:1], create_graph=True)
    return torch.autograd.grad(twice.square().sum(), leaves[0])


TRUTHS = {
    "reverse over forward": truth_of_reverse_over_forward,
    "third derivatives": truth_of_third,
}


def evaluate(kind: Any, call: Call, operator: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    found = kind(call, draw(operator, dtype), draw(operator, dtype, 1))
    return [t.detach() for t in torch.utils._pytree.tree_leaves(found)]


# What the others do not show already of kernels that Triton's interpreter takes seconds for.
INTERPRETED = (
    "backward",
    "second derivatives (create_graph)",
    "torch.func.jvp",
    "gradients by sample",
)


@pytest.mark.parametrize(
    ("kind", "operator", "backend"),
    [(k, o, b) for k in KINDS for o, b in pairs(CALLS) if b == "native" or k in INTERPRETED],
)
def test_every_kind_of_derivative_is_the_references(kind: str, operator: str, backend: str) -> None:
    dtype = torch.float32 if backend == "triton" else torch.float64
    got = evaluate(KINDS[kind], CALLS[operator][0](backend), operator, dtype)
    truth = TRUTHS.get(kind, KINDS[kind])
    want = evaluate(truth, CALLS[operator][0]("reference"), operator, torch.float64)
    assert len(got) == len(want)
    assert any(t.abs().max() > 0 for t in want)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-9
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("operator", CALLS)
def test_gradcheck_of_first_and_second_derivatives(operator: str, backend: str) -> None:
    make, _ = CALLS[operator]

    def call(*tensors: Tensor) -> Tensor:
        torch.manual_seed(1)
        return make(backend)(*tensors)

    inputs = [t.requires_grad_() for t in draw(operator, torch.float64, 3)]
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap_over_lengths(backend: str) -> None:
    x, w, b, u = draw("attention_pool", torch.float64)[:4]
    rows = torch.tensor([[3, 1], [0, 2]])
    call = lambda n: fk.attention_pool(x, w, b, u, 1.0, trunks=2, lengths=n, backend=backend)  # noqa: E731
    for got, one, two in zip(vmap(call)(rows), call(rows[0]), call(rows[1]), strict=True):
        torch.testing.assert_close(got, torch.stack([one, two]))
    tensors = draw("trunk_fbp", torch.float64)[:4]
    pool = lambda n: fk.trunk_fbp(*tensors, 2, lengths=n, backend=backend)  # noqa: E731
    rows = torch.tensor([[2, 1], [0, 2]], dtype=torch.int32)
    torch.testing.assert_close(vmap(pool)(rows), torch.stack([pool(n) for n in rows]))
    with pytest.raises(ValueError, match="lengths go from 0 to 7, expected from 0 to 2"):
        vmap(pool)(torch.tensor([[7, 0]]))
    # With weights that are many, too, there is one call after the other, each with lengths of its own.
    p = torch.stack([tensors[2], tensors[2] * 2])
    weighed = lambda n, p: fk.trunk_fbp(*tensors[:2], p, tensors[3], 2, lengths=n, backend=backend)  # noqa: E731
    alone = torch.stack([weighed(n, w) for n, w in zip(rows, p, strict=True)])
    torch.testing.assert_close(vmap(weighed)(rows, p), alone)


@pytest.mark.parametrize("operator", CALLS)
def test_what_another_transform_holds_is_not_taken_for_a_constant(operator: str) -> None:
    """Derivatives by what an inner transform, which differentiates something else or nothing, is closed over."""
    inputs, directions = draw(operator, torch.float64), draw(operator, torch.float64, 1)

    def found(backend: str) -> list[Any]:
        torch.manual_seed(1)
        call = CALLS[operator][0](backend)

        def inner(x: Tensor) -> Tensor:
            return grad(lambda w: (call(x * 2, *inputs[1:]).sin() * w).sum())(
                torch.ones(()).double()
            )

        def beside(x: Tensor) -> Tensor:  # computed within, so that the inner transform wraps it
            return vmap(lambda w: w * call(x * 2, *inputs[1:]))(torch.ones(2).double())

        first, direction = (inputs[0],), (directions[0],)
        many = torch.stack([inputs[0], directions[0]])
        leaf = inputs[0].clone().requires_grad_()
        (by_leaf,) = torch.autograd.grad(inner(leaf), leaf)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(inputs[0], directions[0])
            by_dual = forward_ad.unpack_dual(inner(dual)).tangent
        return [
            jvp(inner, first, direction)[1],
            grad(inner)(*first),
            by_leaf,
            by_dual,
            vmap(inner, randomness="same")(many),
            vmap(grad(inner), randomness="same")(many),
            vmap(lambda w: w * call(*inputs), randomness="same")(torch.ones(2).double()),
            *([] if operator in ("fbp", "trunk_fbp") else [jvp(beside, first, direction)[1]]),
        ]

    for mine, theirs in zip(found("native"), found("reference"), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", fused("fbp"))
def test_dropout_under_vmap_is_as_torch_has_it(backend: str) -> None:
    a, v, p, q = torch.ones(4, 3), torch.ones(4, 2), torch.ones(3, 40), torch.ones(2, 40)
    many = torch.stack([a, a])
    call = lambda a: fk.fbp(a, v, p, q, 2, dropout=0.5, training=True, backend=backend)  # noqa: E731
    same = vmap(call, randomness="same")(many)
    assert torch.equal(same[0], same[1])
    different = vmap(call, randomness="different")(many)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(call)(many)


def test_many_rows_under_vmap_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    a, v, p, q = torch.randn(5, 2, 3), torch.randn(2, 2), torch.randn(3, 4), torch.randn(2, 4)
    calls = []
    kernel = fk.backends.kernel("fbp", "native")
    counting = fk.backends.Kernel(
        lambda *t: calls.append(t[0].shape) or kernel.forward(*t), kernel.backward
    )
    monkeypatch.setattr(fk.backends, "kernel", lambda *_: counting)
    vmap(lambda a: fk.fbp(a, v, p, q, 2))(a)
    assert calls == [(10, 3)]
    vmap(lambda p: fk.fbp(a[0], v, p, q, 2))(torch.stack([p, p]))
    assert calls[1:] == [(2, 3)] * 2


PRIVATE = re.compile(
    r"\b(?:torch|os|sys|inspect|functools|importlib|threading)(?:\.\w+)*\._(?!_)\w+"
    r"|from (?:torch|os|inspect)[\w.]*\._\w+|from (?:torch|os|inspect)[\w.]* import _\w+|\._C\b|\._op\b"
)


def test_no_private_name_of_torch_or_of_the_standard_library() -> None:
    """Except where the line before says which public name there is instead, and what it costs."""
    package = Path(fk.__file__).parent
    found = []
    for file in sorted(package.rglob("*.py")):
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            if PRIVATE.search(line) and "public alternative" not in lines[number - 1]:
                found.append(f"{file.relative_to(package)}:{number + 1}: {line.strip()}")
    assert not found
