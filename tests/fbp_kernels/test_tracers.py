"""What looks at a call from outside: every operator through every tracer, mode and tool, or refused in one sentence."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fbp_kernels as fk

from .test_derivatives import CALLS, INTERPRETED, KINDS, draw

Call = Callable[..., Tensor]


def gradients(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    z = call(*leaves)
    return [z.detach(), *torch.autograd.grad(z.square().sum(), leaves)]


def compiled(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    torch.compiler.reset()
    return gradients(torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager"), inputs)


class Module(torch.nn.Module):
    def __init__(self, call: Call, weights: list[Tensor]) -> None:
        super().__init__()
        self.call, self.weights = call, torch.nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.weights)


def exported(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    program = torch.export.export(Module(call, inputs[1:]), (inputs[0],))
    module = program.module()
    return gradients(lambda x, *_: module(x), inputs[:1])


def traced_by_fx(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    def both(*tensors: Tensor) -> list[Tensor]:
        return gradients(call, list(tensors))

    graph = make_fx(both)(*inputs)
    assert sum("fbp_kernels" in str(node.target) for node in graph.graph.nodes) >= 2
    found: list[Tensor] = graph(*inputs)
    return found


def traced_by_jit(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    traced = torch.jit.trace(lambda *t: call(*t), tuple(inputs), check_trace=False)
    assert "fbp_kernels::" in str(traced.graph)
    return gradients(traced, inputs)


def checkpointed(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    return gradients(lambda *t: checkpoint(call, *t, use_reentrant=False), inputs)


def in_threads(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    found: list[list[Tensor]] = []
    threads = [
        threading.Thread(target=lambda: found.append(gradients(call, inputs))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(x, y) for other in found for x, y in zip(found[0], other, strict=True))
    return found[0]


def in_inference_mode(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [call(*inputs).clone()]


TRACERS: dict[str, Callable[[Call, list[Tensor]], list[Tensor]]] = {
    "torch.compile(fullgraph=True, dynamic=True)": compiled,
    "torch.export": exported,
    "make_fx": traced_by_fx,
    "torch.jit.trace": traced_by_jit,
    "activation checkpointing": checkpointed,
    "inference_mode": in_inference_mode,
    "threads": in_threads,
}


def plain(operator: str, backend: str | None) -> Call:
    """Without dropout: a traced seed is a draw of its own."""
    call = CALLS[operator][0](backend)
    if operator == "fbp":
        return lambda a, v, p, q, b, c: fk.fbp(
            a, v, p, q, 2, p_bias=b, q_bias=c, adaptive=True, backend=backend
        )
    if operator == "trunk_fbp":
        return lambda a, v, p, q, b, c: fk.trunk_fbp(
            a, v, p, q, 2, p_bias=b, q_bias=c, backend=backend
        )
    return call


@pytest.mark.parametrize("operator", CALLS)
@pytest.mark.parametrize("tracer", TRACERS)
def test_every_tracer_gives_results_and_gradients(tracer: str, operator: str) -> None:
    inputs = draw(operator, torch.float64, 2)
    got = TRACERS[tracer](plain(operator, "native"), inputs)
    want = gradients(plain(operator, "reference"), inputs)
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("operator", CALLS)
def test_shapes_without_numbers(operator: str) -> None:
    """The meta device has no kernel, so the reference serves it; FakeTensor goes to the operator's fake kernel."""
    inputs = draw(operator, torch.float32)
    want = plain(operator, None)(*inputs)
    if operator not in ("am_fbp", "attention_pool", "batch_norm"):  # those have lengths on the CPU
        assert plain(operator, None)(*(t.to("meta") for t in inputs)).shape == want.shape
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in inputs]
        got = plain(operator, "native")(*fakes)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        for gradient, fake in zip(torch.autograd.grad(got.sum(), fakes), fakes, strict=True):
            assert gradient.shape == fake.shape


def test_fake_tensors_that_do_not_fit_are_refused_in_our_words() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(ValueError, match=r"fbp: v has shape \(3, 2\)"):
        fk.fbp(torch.ones(2, 3), torch.ones(3, 2), torch.ones(3, 4), torch.ones(2, 4), 2)


fbp = fk.fbp
torch.fx.wrap("fbp")


def test_symbolic_tracing_is_refused_and_wrap_serves_it() -> None:
    with pytest.raises(
        TypeError, match=r"fbp: a is a Proxy, expected a tensor; use torch\.fx\.wrap"
    ):
        torch.fx.symbolic_trace(lambda a, v, p, q: fk.fbp(a, v, p, q, 2))
    with pytest.raises(TypeError, match="power_normalize: z is a Proxy"):
        torch.fx.symbolic_trace(lambda z: fk.power_normalize(z))
    traced = torch.fx.symbolic_trace(lambda a, v, p, q: fbp(a, v, p, q, 2, adaptive=True))
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [fk.fbp]
    inputs = draw("fbp", torch.float64)[:4]
    assert torch.equal(traced(*inputs), fk.fbp(*inputs, 2, adaptive=True))
    with pytest.raises(TypeError, match="fbp: p is a Proxy"):  # where some are tensors
        torch.fx.symbolic_trace(lambda p: fk.fbp(*inputs[:2], p, inputs[3], 2))


def test_modules_are_copied_and_pickled() -> None:
    module = fk.FactorizedBilinearPooling(3, 2, 4, 2, bias=True, adaptive=True, normalize=True)
    inputs = torch.randn(5, 3), torch.randn(5, 2)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*inputs), module(*inputs))
    result = module(*inputs).sum()
    result.backward()
    assert copy.deepcopy(module).p.requires_grad


def test_dtensors_are_refused_and_local_map_serves_them(tmp_path: Any) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        plain = [torch.randn(s) for s in ((4, 3), (4, 2), (3, 4), (2, 4))]
        rows, shared = [Shard(0)], [Replicate()]
        placements = (rows, rows, shared, shared)
        inputs = [
            distribute_tensor(t, mesh, s).requires_grad_()
            for t, s in zip(plain, placements, strict=True)
        ]
        with pytest.raises(NotImplementedError, match="fbp: the fused kernels do not run on DTen"):
            fk.fbp(*inputs, 2)
        pool = local_map(
            lambda *t: fk.fbp(*t, 2),
            out_placements=rows,
            in_placements=placements,
            device_mesh=mesh,
        )
        got = gradients(pool, inputs)
        for mine, theirs in zip(got, gradients(lambda *t: fk.fbp(*t, 2), plain), strict=True):
            torch.testing.assert_close(mine.full_tensor(), theirs)
    finally:
        torch.distributed.destroy_process_group()


OTHERS = (
    "meta device",
    "FakeTensor",
    "deepcopy and pickle of modules",
    "DTensor: refused, by local_map",
    "torch.fx.symbolic_trace of a function: refused, by torch.fx.wrap; of a module: one call",
)


def table() -> str:
    """The rows of docs/kernels.md, section "One way in"."""
    kinds = [f"*{kind}*" if kind in INTERPRETED else kind for kind in KINDS]
    return "\n".join(
        f"| {name} | yes |" for name in (*kinds, "gradcheck, gradgradcheck", *TRACERS, *OTHERS)
    )


def test_the_documentation_lists_what_is_tested() -> None:
    page = Path(__file__).parents[2] / "docs" / "kernels.md"
    assert f"| kind | right |\n|---|---|\n{table()}\n\n" in page.read_text()


@pytest.mark.parametrize("due", [False, True])
def test_a_compiled_call_keeps_projections_where_a_gradient_is_due_alone(due: bool) -> None:
    keeps = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        target = torch.ops.fbp_kernels.fbp.default
        keeps.extend(node.args[-2] for node in graph.graph.nodes if node.target is target)
        return graph

    shapes = ((2, 3), (2, 4), (3, 6), (4, 6))
    tensors = [torch.randn(*shape, requires_grad=due) for shape in shapes]
    call = torch.compile(lambda *t: fk.fbp(*t, 2, backend="native"), backend=backend)
    call(*tensors)
    assert keeps == [due]
