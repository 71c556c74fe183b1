"""Batch normalisation: against PyTorch's own, padded clips, numbers at the edge, and the module."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fbp_kernels as fk

from .checks import fused
from .test_native import ISAS

BACKENDS = (*fused("batch_norm"), "reference")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def differentiated(x: Tensor, *parameters: Tensor, **options: object) -> list[Tensor]:
    """Result, statistics and the gradients of a sum of squares."""
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
    y, mean, var = fk.batch_norm(*leaves, **options)
    return [y.detach(), mean, var, *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_the_batch_norm_of_pytorch(layout: torch.memory_format, backend: str) -> None:
    x = torch.randn(6, 5, 7, 9, dtype=torch.float64).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, 5, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y, mean, var = fk.batch_norm(*leaves, eps=0.01, relu=True, backend=backend)
    running = torch.zeros(2, 5, dtype=torch.float64)
    want = F.relu(F.batch_norm(x, *running, weight, bias, True, 1.0, 0.01))
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    assert y.stride() == x.stride()
    torch.testing.assert_close(mean, running[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var, running[1] * (6 * 63 - 1) / (6 * 63), rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(y)
    for got, true in zip(
        *(torch.autograd.grad(z, leaves, cotangent) for z in (y, want)), strict=True
    ):
        torch.testing.assert_close(got, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])
def test_results_that_are_written_past_the_cache(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 64 MB, channels last, an odd number of pixels; with lengths, parts of it are cleared beside."""
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    x = torch.randn(3, 64, 1, 90_001).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 64)
    whole, *_, slope, _, _ = differentiated(x, weight, bias, relu=True, backend="native")
    leaf = x.clone().requires_grad_()
    want = F.relu(F.batch_norm(leaf, None, None, weight, bias, True))
    torch.testing.assert_close(whole, want.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        slope, torch.autograd.grad(want.square().sum(), leaf)[0], rtol=1e-3, atol=1e-3
    )
    lengths = torch.tensor([90_001, 50_002, 0])
    parts = differentiated(x, weight, bias, lengths=lengths, relu=True, backend="native")
    for result in (parts[0], parts[3]):
        assert result[0].abs().sum() > 0
        assert result[1, ..., 50_002:].abs().sum() == 0
        assert result[2].abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stands_after_a_clip_does_not_count(layout: torch.memory_format, backend: str) -> None:
    lengths = torch.tensor([6, 0, 1, 4])
    x = torch.randn(4, 5, 3, 6, dtype=torch.float64)
    spoiled = F.pad(x, (0, 8))
    outside = torch.arange(14) >= lengths[:, None]
    spoiled = spoiled.masked_fill(outside[:, None, None], torch.nan).contiguous(
        memory_format=layout
    )
    parameters = torch.randn(2, 5, dtype=torch.float64)
    options = {"lengths": lengths, "relu": True, "backend": backend}
    clean = differentiated(x, *parameters, **options)
    padded = differentiated(spoiled, *parameters, **options)
    for i in (0, 3):
        assert not padded[i].masked_select(outside[:, None, None]).any(), "zero, and no gradient"
        padded[i] = padded[i][..., :6]
    for got, want in zip(padded, clean, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    frames = torch.cat([x[row, ..., :n].flatten(1) for row, n in enumerate(lengths)], 1)
    torch.testing.assert_close(clean[1], frames.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(clean[2], frames.var(1, correction=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_cut_exactly_where_the_result_is(
    layout: torch.memory_format, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    # Few different values, and a mean that is one of them: many results are 0 or next to it.
    x = torch.randint(-2, 3, (8, 19, 5, 7)).float() / 3 + 1000
    x = torch.cat([x, 2000 - x]).contiguous(memory_format=layout).requires_grad_()
    weight, bias = torch.rand(19) + 0.5, torch.zeros(19)
    y, _, var = fk.batch_norm(x, weight, bias, relu=True, backend="native")
    scale = (weight * (var + 1e-5).rsqrt())[:, None, None]
    # One element's gradient of its own result is scale (1 - 1/n - ...), and without a cut far from 0.
    ones = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, x, ones)
    # dx is an affine function of x where g = 1 and another, `scale` lower, where g = 0.
    true = x.detach().double()
    centred = true - true.mean((0, 2, 3), keepdim=True)
    cut = (y == 0).double()
    n = x[:, 0].numel()
    sums = [t.sum((0, 2, 3), keepdim=True) for t in (1 - cut, (1 - cut) * centred)]
    expected = scale * (
        (1 - cut) - sums[0] / n - centred * sums[1] / n / (var + 1e-5)[:, None, None]
    )
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-4)
    assert 0.3 < cut.mean() < 0.8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 40])
def test_same_bits_for_any_number_of_threads(layout: torch.memory_format, channels: int) -> None:
    x = torch.randn(9, channels, 30, 61).contiguous(memory_format=layout)
    parameters = torch.randn(2, channels)
    lengths = torch.tensor([61, 60, 1, 0, 33, 8, 61, 2, 17])
    before = torch.get_num_threads()
    runs = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        try:
            for n in (None, lengths):
                runs.append(differentiated(x, *parameters, lengths=n, relu=True, backend="native"))
        finally:
            torch.set_num_threads(before)
    for first, *others in (runs[::2], runs[1::2]):
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
# A part of a vector; several of them in every direction; more than one block; one position.
@pytest.mark.parametrize("shape", [(2, 3, 3, 5), (3, 33, 7, 5), (2, 70, 19, 31), (40, 5, 1, 1)])
def test_gradients_come_in_any_layout(
    isa: str, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (t.requires_grad_() for t in torch.rand(2, shape[1], dtype=wide).unbind())
    x = torch.randn(shape).to(dtype, memory_format=torch.channels_last).requires_grad_()
    lengths = torch.randint(shape[3] + 1, shape[:1])
    padding = torch.arange(shape[3]) >= lengths[:, None, None, None]
    for n in (None, lengths):
        y, of_a_constant = (
            fk.batch_norm(t, weight, bias, lengths=n, relu=True, backend="native")[0]
            for t in (x, x.detach())
        )
        dy = torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        if n is not None:
            dy = dy.masked_fill(padding, torch.nan).contiguous(memory_format=torch.channels_last)
        want = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
        assert all(t.isfinite().all() for t in want)
        for given in (dy.contiguous(), dy.transpose(2, 3).contiguous().transpose(2, 3)):
            before = given.clone()
            got = torch.autograd.grad(y, (x, weight, bias), given, retain_graph=True)
            assert all(map(torch.equal, got, want))
            got = torch.autograd.grad(of_a_constant, (weight, bias), given, retain_graph=True)
            assert all(map(torch.equal, got, want[1:]))
            torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_that_is_constant_or_has_one_value(
    layout: torch.memory_format, backend: str
) -> None:
    parameters = torch.tensor([[1.5] * 3, [0.25, -0.5, 0.0]])
    constant = torch.full((2, 3, 4, 5), 77.5).contiguous(memory_format=layout)
    single = torch.randn(2, 3, 1, 1).contiguous(memory_format=layout)
    for x, lengths in ((constant, None), (single, torch.tensor([0, 1]))):
        y, mean, var, dx, d_weight, d_bias = differentiated(
            x, *parameters, lengths=lengths, backend=backend
        )
        alive = slice(None) if lengths is None else slice(1, 2)
        want = parameters[1][:, None, None].expand_as(x[alive])
        torch.testing.assert_close(y[alive], want, rtol=0, atol=1e-3)
        torch.testing.assert_close(mean, x[-1, :, 0, 0])
        assert (var < 1e-9).all()
        assert dx.abs().max() < 0.1
        torch.testing.assert_close(d_weight, torch.zeros(3), rtol=0, atol=0.1)
        torch.testing.assert_close(d_bias, 2 * want.sum((0, 2, 3)), rtol=0, atol=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_counts(backend: str) -> None:
    for x, lengths in ((torch.randn(2, 3, 4), torch.tensor([0, 0])), (torch.empty(0, 3, 4), None)):
        results = differentiated(x, torch.ones(3), torch.ones(3), lengths=lengths, backend=backend)
        assert all(t.shape in (x.shape, (3,)) and not t.any() for t in results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mean_of_many_deviations(
    layout: torch.memory_format, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where x^2 and the square of the mean agree in all digits of float32, the variance is still right."""
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    x = (torch.randn(4, 17, 40, 33) + 1e5).contiguous(memory_format=layout)
    y, mean, var = fk.batch_norm(x, torch.ones(17), torch.zeros(17), backend="native")
    true = x.double()
    dims = (0, 2, 3)
    torch.testing.assert_close(mean.double(), true.mean(dims), rtol=6e-8, atol=0)
    torch.testing.assert_close(var.double(), true.var(dims, correction=0), rtol=1e-6, atol=0)
    want = F.batch_norm(true, None, None, training=True)
    torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=1e-6)


def test_not_a_number_and_infinity_stay_in_their_channel() -> None:
    x = torch.randn(2, 4, 3, 3)
    x[0, 1, 0, 0], x[1, 2, 0, 0] = torch.nan, torch.inf
    y, mean, _ = fk.batch_norm(x, torch.ones(4), torch.zeros(4), relu=True, backend="native")
    assert y[:, 1].isnan().all()
    assert y[:, 2].isnan().all()
    assert not mean[1:3].isfinite().any()
    want = F.relu(F.batch_norm(x[:, ::3], None, None, training=True))
    torch.testing.assert_close(y[:, ::3], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_may_be_wider_than_x(dtype: torch.dtype) -> None:
    """As in mixed precision."""
    x = torch.randn(3, 6, 5, 4).to(dtype)
    weight, bias = torch.randn(2, 6)
    results = [differentiated(x, weight, bias, relu=True, backend=backend) for backend in BACKENDS]
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracking", [False, True])
def test_the_module_is_the_one_of_pytorch(
    momentum: float | None, relu: bool, affine: bool, tracking: bool, backend: str
) -> None:
    options = {"momentum": momentum, "affine": affine, "track_running_stats": tracking}
    ours = fk.BatchNorm(4, **options, relu=relu, backend=backend).double()
    norm = nn.BatchNorm2d(4, **options).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(norm.state_dict())
    parts = {"norm": norm, "relu": nn.ReLU()}
    theirs = nn.Sequential(OrderedDict(parts)) if relu else norm
    assert list(ours.state_dict()) == list(theirs.state_dict())
    training = [True, True, False, True, True, False]
    for mode in training:
        x = torch.randn(3, 4, 5, 6, dtype=torch.float64) * 3 + 1
        got, want = (m.train(mode)(x) for m in (ours, theirs))
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        for mine, statistic in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, statistic, rtol=1e-12, atol=1e-12)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_module_without_statistics_takes_those_of_the_frames_in_evaluation_too(
    backend: str,
) -> None:
    norm = fk.BatchNorm(3, track_running_stats=False, backend=backend).double()
    x, lengths = torch.randn(2, 3, 4, 6).double(), torch.tensor([6, 2])
    torch.testing.assert_close(norm.eval()(x, lengths), norm.train()(x, lengths))
    frozen = fk.BatchNorm(3, backend=backend).double().train()
    frozen.track_running_stats = False
    frozen(x, lengths)
    assert not frozen.running_mean.any(), "nothing is tracked"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_relu_is_asked_for_in_the_call_or_is_a_child(backend: str) -> None:
    lengths = torch.tensor([6, 2])
    norm = fk.BatchNorm(3, backend=backend).double()
    both = fk.BatchNorm(3, relu=True, backend=backend).double()
    assert type(both) is fk.BatchNormReLU
    assert [type(m) for m in both.children()] == [nn.BatchNorm2d, nn.ReLU]
    x = torch.randn(2, 3, 4, 6).double()
    called = copy.deepcopy(norm)
    for mode in (True, False):
        want = F.relu(norm.train(mode)(x, lengths))
        got = called.train(mode)(x, lengths, relu=True), both.train(mode)(x, lengths)
        for one in got:
            torch.testing.assert_close(one, want, rtol=1e-12, atol=1e-12)

    class Mine(fk.BatchNorm):
        pass

    with pytest.raises(TypeError, match="Mine: relu is True, expected False in a subclass"):
        Mine(3, relu=True)


def observe(module: nn.Module) -> Any:
    return module.register_forward_hook(lambda _, __, y: y + 1)


def track_everywhere(_: nn.Module) -> Any:
    return nn.modules.module.register_module_forward_hook(
        lambda module, _, y: y + 1 if isinstance(module, nn.BatchNorm2d) else None
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda both: observe(both.norm),
        lambda both: observe(both.relu),
        lambda both: both.norm.register_forward_pre_hook(lambda _, x: (x[0] ** 2,)),
        track_everywhere,
        lambda both: setattr(both, "relu", nn.SiLU()),
        lambda both: setattr(both, "norm", nn.GroupNorm(1, 3).double()),
        lambda both: setattr(both, "norm", nn.Identity()),
    ],
    ids=["norm hooked", "relu hooked", "pre-hook", "global hook", "SiLU", "GroupNorm", "Identity"],
)
def test_what_is_done_to_a_child_is_heeded_by_the_next_call(
    change: Callable[[fk.BatchNormReLU], Any],
) -> None:
    both = fk.BatchNormReLU(3).double()
    x, lengths = torch.randn(2, 3, 4, 6).double(), torch.tensor([6, 2])
    fused = both(x)
    assert not both.apart()
    handle = change(both)
    try:
        torch.testing.assert_close(both(x), both.relu(both.norm(x)), rtol=0, atol=0)
        assert not torch.allclose(both(x), fused)
        with pytest.raises(
            ValueError, match=r"BatchNormReLU: lengths are given, .*BatchNorm takes"
        ):
            both(x, lengths)
    finally:
        if handle is not None:
            handle.remove()
    if handle is not None:
        torch.testing.assert_close(both(x), fused)
        both(x, lengths)


def test_gradients_that_are_watched_pass_a_child() -> None:
    """A hook on the way back alone."""
    seen = []
    both = fk.BatchNormReLU(3)
    both.norm.register_full_backward_hook(lambda _, __, g: seen.append(g[0]))
    both(torch.randn(2, 3, 4, 6, requires_grad=True)).sum().backward()
    assert len(seen) == 1
    assert seen[0].unique().tolist() == [0, 1], "what the ReLU lets through"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_module_on_clips_is_pytorch_on_their_frames(backend: str) -> None:
    ours, theirs = fk.BatchNorm(3, backend=backend).double(), nn.BatchNorm1d(3).double()
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.25)
    lengths = torch.tensor([6, 1, 4])
    for _ in range(3):
        x = torch.randn(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
        spoiled = x.detach().clone()
        for row, n in enumerate(lengths):
            spoiled[row, ..., n:] = torch.nan
        spoiled.requires_grad_()
        y = ours(spoiled, lengths)
        frames = [x[row, ..., :n].flatten(1).T for row, n in enumerate(lengths)]
        expected = theirs(torch.cat(frames))
        got = torch.cat([y[row, ..., :n].flatten(1).T for row, n in enumerate(lengths)])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        got.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(spoiled.grad, x.grad, rtol=1e-9, atol=1e-12)
    for name, statistic in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), statistic, rtol=1e-12, atol=1e-12)
    ours.eval()
    theirs.eval()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = theirs(x.flatten(2)).unflatten(2, (5, 6))
    expected[1, ..., 2:] = 0
    got = ours(x, torch.tensor([6, 2]))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_single_value_per_channel_is_an_error_of_the_module_as_in_pytorch() -> None:
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            fk.BatchNorm(3, backend=backend)(torch.randn(1, 3, 1, 1))


def test_the_module_is_copied_and_accelerated() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), fk.BatchNormReLU(3, backend="reference"))
    plain = copy.deepcopy(model)
    (entry,) = fk.accelerate(model)
    assert (entry.operator, entry.backend) == ("batch_norm", "native")
    x = torch.randn(4, 2, 6, 5)
    torch.testing.assert_close(model(x), plain(x))
    for name, statistic in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), statistic)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.eval()(x), model.eval()(x))
        twin.load_state_dict(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict())
        assert not torch.equal(twin(x), model(x)), "each loads into its own"


def test_what_one_pass_computes_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it cannot be, two: nobody would see either in the results."""
    calls = []

    def counted(*arguments: Tensor, **options: Any) -> Any:
        calls.append(options["relu"])
        return fk.batch_norm(*arguments, **options)

    monkeypatch.setattr(fk.modules.ops, "batch_norm", counted)
    both = fk.BatchNormReLU(3, backend="native")
    x = torch.randn(2, 3, 4, 6)
    both(x)
    assert calls == [True]
    observe(both.norm)
    both(x)
    assert calls == [True]
