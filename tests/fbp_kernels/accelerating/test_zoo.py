"""What could be done with a model can be done with it accelerated, and with it restored, and gives the same."""

import copy
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.fx.experimental.optimization import fuse
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune
from torch.optim import swa_utils

import fbp_kernels as fk
from tests.marks import slow

from .zoo import ZOO, build, pictures, snapshot

Tool = Callable[[nn.Module], list[Tensor]]


def results(model: nn.Module) -> list[Tensor]:
    """The result of a batch, the gradients of it and of all parameters, and the statistics after."""
    x = pictures().requires_grad_()
    z = model(x)
    leaves = [*model.parameters(), x]
    gradients = torch.autograd.grad(z.square().sum(), leaves, allow_unused=True)
    found = [g for g in gradients if g is not None]
    return [z.detach(), *found, *(b.clone() for b in model.buffers())]


def evaluated(model: nn.Module) -> list[Tensor]:
    return results(model.eval())


def in_turns(model: nn.Module) -> list[Tensor]:
    return [model.train(mode)(pictures()).detach() for mode in (True, False, True, False)]


def trained(model: nn.Module) -> list[Tensor]:
    """Three steps with momentum, then by LBFGS, which views every gradient as a vector."""
    optimizers = [torch.optim.SGD(model.parameters(), 0.01, 0.9) for _ in range(3)]
    optimizers.append(torch.optim.LBFGS(model.parameters(), max_iter=2))
    losses = []

    def loss() -> Tensor:
        model.zero_grad()
        losses.append(model(pictures()).square().mean())
        losses[-1].backward()
        return losses[-1].detach()

    for optimizer in optimizers:
        optimizer.step(loss)
    return [*(t.detach() for t in losses), nn.utils.parameters_to_vector(model.parameters())]


def traced_by_fx(model: nn.Module) -> list[Tensor]:
    """With as many calls of modules."""
    traced = torch.fx.symbolic_trace(model)
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    return [*results(traced), *results(copy.deepcopy(traced)), torch.tensor(len(calls))]


def fused_by_fx(model: nn.Module) -> list[Tensor]:
    """With as many norms left."""
    fused = fuse(model.eval())
    left = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    return [fused(pictures()).detach(), torch.tensor(len(left))]


def scripted(model: nn.Module) -> list[Tensor]:
    return results(saved(torch.jit.script(model)))


def traced_by_jit(model: nn.Module) -> list[Tensor]:
    return results(saved(torch.jit.trace(model.eval(), (pictures(),))))


def saved(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    return torch.jit.load(file)


def copied(model: nn.Module) -> list[Tensor]:
    return results(copy.deepcopy(model))


def pickled(model: nn.Module) -> list[Tensor]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    return results(loaded) + results(pickle.loads(pickle.dumps(model)))


def synchronised(model: nn.Module) -> list[Tensor]:
    """In evaluation, which needs no other process, with as many norms that would synchronise in training."""
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    found = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
    return [converted.eval()(pictures()).detach(), torch.tensor(len(found))]


def averaged(model: nn.Module) -> list[Tensor]:
    average = swa_utils.AveragedModel(model)
    swa_utils.update_bn([pictures(), pictures() * 3, pictures() - 1], average)
    return evaluated(average)


def prepared_eagerly(model: nn.Module) -> list[Tensor]:
    """With as many observers."""
    wrapped = quantization.QuantWrapper(model.float().eval())
    wrapped.qconfig = quantization.get_default_qconfig("fbgemm")
    prepared = quantization.prepare(wrapped)
    observers = [m for m in prepared.modules() if isinstance(m, quantization.ObserverBase)]
    return [prepared(pictures().float()).detach(), torch.tensor(len(observers))]


def quantised(model: nn.Module) -> list[Tensor]:
    """By graph, with as many convolutions that took the norm and the ReLU in."""
    example = (pictures().float(),)
    mapping = quantization.get_default_qconfig_mapping("fbgemm")
    prepared = prepare_fx(model.float().eval(), mapping, example)
    prepared(*example)
    converted = convert_fx(prepared)
    kinds = [type(m).__name__ for m in converted.modules()]
    return [converted(*example).detach(), torch.tensor(kinds.count("ConvReLU2d"))]


def hooked(model: nn.Module) -> list[Tensor]:
    """With what hooks on every module see of forward and backward."""
    seen: list[Tensor] = []
    for module in model.modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(lambda _, __, y: seen.append(y.detach().clone()))
            module.register_full_backward_hook(lambda _, __, g: seen.append(g[0]))
    return results(model) + seen


def pruned_later(model: nn.Module) -> list[Tensor]:
    for module in model.modules():
        if type(module) is nn.Conv2d and isinstance(module.weight, nn.Parameter):
            prune.l1_unstructured(module, "weight", 0.5)
    return results(model)


def called_functionally(model: nn.Module) -> list[Tensor]:
    state = {k: t.detach() * 1.01 for k, t in model.state_dict().items() if t.is_floating_point()}
    return [torch.func.functional_call(model, state, (pictures(),)).detach()]


def derived(model: nn.Module) -> list[Tensor]:
    """Forward mode, per-sample gradients, a map over the batch, the derivative of a derivative."""
    x, weights = pictures(), dict(model.eval().named_parameters())

    def energy(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (row[None],)).square().sum()

    each = torch.vmap(torch.func.grad(energy), (None, 0))(weights, x)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
    found = [
        *torch.func.jvp(model, (x,), (x.flip(0),)),
        torch.vmap(model)(x[:, None]),
        *each.values(),
        *torch.autograd.grad(slope.square().sum(), leaf),
    ]
    return [t.detach() for t in found]


def in_inference_mode(model: nn.Module) -> list[Tensor]:
    with torch.inference_mode():
        return [model(pictures()).clone()]


def without_rows(model: nn.Module) -> list[Tensor]:
    return [model.eval()(pictures()[:0]).detach()]


def in_float32(model: nn.Module) -> list[Tensor]:
    return [model.float()(pictures().float()).detach()]


def in_mixed_precision(model: nn.Module) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [model.float()(pictures().float()).detach().float()]


def elsewhere(model: nn.Module) -> list[Tensor]:
    """On a device of which accelerate was not told."""
    return [torch.tensor(model.to("meta")(pictures().to("meta")).shape)]


def compiled(model: nn.Module) -> list[Tensor]:
    torch.compiler.reset()
    return results(torch.compile(model, backend="aot_eager", fullgraph=True))


def exported(model: nn.Module) -> list[Tensor]:
    rows = torch.export.Dim("rows", min=2, max=9)
    program = torch.export.export(model.eval(), (pictures(),), dynamic_shapes=({0: rows},))
    return [program.module()(pictures()[:3]).detach()]


FAST: tuple[Tool, ...] = (
    results, evaluated, in_turns, trained, traced_by_fx, fused_by_fx, scripted, traced_by_jit, copied, pickled,
    synchronised, averaged, prepared_eagerly, hooked, pruned_later, called_functionally, derived, in_inference_mode,
    without_rows, in_float32, in_mixed_precision, elsewhere,
)  # fmt: skip
SLOW: tuple[Tool, ...] = (compiled, exported, quantised)  # so each is asked of some networks alone
SOME = ("conv, bn, relu, lrn", "residual, relu in place", "ours", "k = 0", "dropout")
TOLERANCE = {prepared_eagerly: 1e-5, quantised: 1e-5, in_float32: 1e-5, in_mixed_precision: 2e-2}


def plain(name: str) -> nn.Module:
    """The network without our kernels: PyTorch's own modules where a module of ours is made of them."""
    model = build(name)
    for parent in list(model.modules()):
        for child, module in parent.named_children():
            if isinstance(module, fk.BatchNormReLU):
                setattr(parent, child, nn.Sequential(OrderedDict(module.named_children())))
            elif isinstance(module, fk.BatchNorm):
                module.backend = "reference"
    return model


def attempt(tool: Tool, model: nn.Module) -> list[Tensor] | Exception:
    torch.manual_seed(2)
    try:
        return tool(model)
    except Exception as error:
        return error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tool", slow([*FAST, *SLOW], traced_by_jit), ids=lambda tool: tool.__name__
)
def test_what_worked_works(tool: Tool) -> None:
    names = SOME if tool in SLOW else ZOO
    worked = 0
    for name in names:
        before = attempt(tool, plain(name))
        if isinstance(before, Exception):
            continue  # PyTorch alone cannot do it, and nothing is owed
        worked += 1
        for undone in (False, True):
            model = build(name)
            fk.accelerate(model)
            if undone:
                fk.restore(model)
            after = attempt(tool, model)
            which = f"{name}, {'restored' if undone else 'accelerated'}"
            assert not isinstance(after, Exception), f"{which}: {after}"
            assert len(after) == len(before), which
            bound = TOLERANCE.get(tool, 1e-9)
            for mine, theirs in zip(after, before, strict=True):
                close = torch.allclose(mine, theirs, rtol=bound, atol=bound, equal_nan=True)
                assert close, f"{which}: {mine} is not {theirs}"
    assert worked >= 0.75 * len(names), "or this says little"


@pytest.mark.parametrize("name", ZOO)
def test_the_report_says_what_became_of_each(name: str) -> None:
    model, entry = build(name), ZOO[name]
    kinds = {n: type(m) for n, m in model.named_modules()}
    report = fk.accelerate(model, channels_last=True)
    assert {r.name for r in report} == set(entry.entries)
    for r in report:
        assert r.module == kinds[r.name].__name__
        assert bool(r.reason) == bool(entry.entries[r.name])
        assert re.search(entry.entries[r.name], r.reason)
        if r.reason:
            assert type(model.get_submodule(r.name)) is kinds[r.name]
        else:
            assert r.backend == "native"
            assert model.get_submodule(r.name).backend is None, "each call chooses"
    assert set(report.layout.left) == set(entry.layout)
    for which, reason in entry.layout.items():
        assert re.search(reason, report.layout.left[which])
    assert all(
        which or "the model" in line
        for which, line in zip(report, str(report).splitlines(), strict=False)
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_restore_leaves_no_trace(name: str, channels_last: bool) -> None:
    model = build(name)
    before = snapshot(model)
    report = fk.accelerate(model, channels_last=channels_last)
    assert (snapshot(model) != before) == bool(report.replaced)
    changed = {entry.name for entry in report.replaced} | set(report.layout.changed)
    assert set(fk.restore(model)) == changed
    assert snapshot(model) == before
    assert fk.restore(model) == []


@pytest.mark.parametrize("name", [name for name in ZOO if name != "lazy"])
def test_state_dicts_are_loaded_both_ways(name: str) -> None:
    model, other = build(name), plain(name)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    fk.accelerate(model)
    assert list(model.state_dict()) == list(other.state_dict())
    model.load_state_dict(other.state_dict())
    for _ in range(2):
        got, want = (m.eval()(pictures()) for m in (model, other))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
        other.load_state_dict(model.state_dict(), assign=True)
        model.load_state_dict(other.state_dict(), assign=True)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, fully_shard])
def test_wrappers_for_several_processes(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for name in ("conv, bn, relu, lrn", "residual, relu in place", "ours"):
        want, model = results(plain(name)), build(name)
        fk.accelerate(model)
        wrapped = wrap(model)
        z = wrapped(pictures())
        z.square().sum().backward()
        torch.testing.assert_close(z, want[0], rtol=1e-9, atol=1e-9)
        for p, gradient in zip(wrapped.parameters(), want[1:], strict=False):
            assert p.grad is not None
            got = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            torch.testing.assert_close(got, gradient, rtol=1e-9, atol=1e-9)
        assert fk.restore(wrapped)
        assert not any(type(m) is fk.LocalResponseNorm for m in wrapped.modules())
