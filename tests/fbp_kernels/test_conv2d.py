"""conv2d: the gradient of the weights in every build of the kernels, and the module."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

import fbp_kernels as fk
from fbp_kernels import backends, choice, native

from .checks import assert_parity

ISAS = torch.ops.fbp_native.cpu_isas().split(",")
LAST = torch.channels_last


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=LAST)


# Images, channels, height, width; outputs, kernel; stride, padding. In turn: several blocks of outputs and of columns,
# all taps of some channels together; several shares of the positions; panels over several rows of a patch; a kernel as
# large as the map; rows of the map that nothing reads; nothing but border.
SHAPES = [
    ((2, 48, 7, 9), (270, 3, 3), (1, 1), (1, 1)),
    ((3, 32, 40, 50), (7, 3, 3), (2, 2), (1, 1)),
    ((3, 2, 17, 31), (13, 5, 11), (4, 2), (2, 5)),
    ((4, 17, 5, 6), (6, 5, 6), (1, 1), (0, 0)),
    ((5, 16, 9, 8), (20, 2, 1), (3, 3), (0, 0)),
    ((2, 3, 1, 1), (5, 3, 3), (1, 1), (1, 1)),
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0)),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_parity_in_every_build(
    isa: str, dtype: torch.dtype, case: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    x, (outputs, *kernel), stride, padding = case

    def draw(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(outputs, x[1], *kernel, generator=generator) * x[1] ** -0.5
        return [last(torch.randn(x, generator=generator)).to(dtype), last(weight).to(dtype)]

    assert_parity(fk.conv2d, draw, {"stride": stride, "padding": padding}, "native", draws=4)


def gradient(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
    leaf = weight.detach().requires_grad_()
    return torch.autograd.grad(fk.conv2d(x, leaf, padding=1, backend="native"), leaf, dy)[0]


def test_the_same_bits_for_any_number_of_threads_and_in_any_layout() -> None:
    """Shares of positions are sums of their own, so their number must not follow from the threads."""
    torch.manual_seed(1)
    x, weight, dy = torch.randn(6, 16, 33, 35), torch.randn(9, 16, 3, 3), torch.randn(6, 9, 33, 35)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(gradient(last(x), last(dy), last(weight)))
    finally:
        torch.set_num_threads(threads)
    sliced = torch.randn(6, 16, 33, 70)[..., ::2].copy_(x)
    found += [gradient(x, dy, weight), gradient(sliced, last(dy), last(weight))]
    for other in found[1:]:
        assert torch.equal(other, found[0])
    assert found[0].is_contiguous(memory_format=LAST)
    assert found[4].is_contiguous(), "in the layout of the weight"


def test_taps_over_the_border_see_noughts() -> None:
    x, weight = last(torch.ones(1, 16, 4, 4)), last(torch.zeros(3, 16, 3, 3))
    dy = last(torch.zeros(1, 3, 4, 4))
    dy[..., 3, 3] = 1.0  # sees rows and columns 2 and 3, and one past the border
    due = torch.zeros(3, 3)
    due[:2, :2] = 1.0
    found = torch.ops.fbp_native.conv2d_weight_gradient(dy, x, weight, 1, 1, 1, 1)
    assert torch.equal(found, due.expand(3, 16, 3, 3))


def test_without_positions_or_outputs_the_gradient_is_nought_or_nothing() -> None:
    raw = torch.ops.fbp_native.conv2d_weight_gradient
    weight = torch.ones(3, 2, 1, 1)
    none = raw(torch.ones(0, 3, 4, 4), torch.ones(0, 2, 4, 4), weight, 1, 1, 0, 0)
    assert torch.equal(none, torch.zeros(3, 2, 1, 1))
    assert raw(torch.ones(1, 0, 4, 4), torch.ones(1, 2, 4, 4), weight[:0], 1, 1, 0, 0).shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dy": torch.ones(1, 3, 4, 4)}, r"dy has shape \(1, 3, 4, 4\), expected \(1, 3, 2, 4\)"),
        ({"stride_y": 0}, r"stride is \(0, 1\), expected at least 1"),
        ({"padding_x": -1}, r"padding is \(0, -1\), expected at least 0"),
        ({"weight": torch.ones(3, 2, 5, 1)}, "expected at least as many as the 5 of weight"),
        ({"weight": torch.ones(3, 4, 3, 1)}, r"weight has shape .*, expected \(3, 2, 3, 1\)"),
        ({"x": torch.ones(2, 4, 4)}, "x has 3 dimensions"),
        ({"x": torch.ones(1, 2, 4, 4).double()}, "weight has dtype Float, expected Double"),
    ],
)
def test_the_kernel_refuses_what_does_not_fit(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "dy": torch.ones(1, 3, 2, 4), "x": torch.ones(1, 2, 4, 4), "weight": torch.ones(3, 2, 3, 1),
        "stride_y": 1, "stride_x": 1, "padding_y": 0, "padding_x": 0,
    }  # fmt: skip
    torch.ops.fbp_native.conv2d_weight_gradient(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fbp_native.conv2d_weight_gradient(**(arguments | changes))


def test_autocast_narrows_as_it_does_pytorchs_own() -> None:
    torch.manual_seed(2)
    x, weight = last(torch.randn(2, 16, 8, 8)), last(torch.randn(4, 16, 3, 3)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fk.conv2d(x, weight, backend="native")
        want = F.conv2d(x, weight)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    ours, theirs = (torch.autograd.grad(y.float().sum(), weight)[0] for y in (got, want))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_where_it_has_no_instructions(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    x, weight = last(torch.randn(2, 40, 9, 9)).to(dtype), last(torch.randn(6, 40, 3, 3)).to(dtype)
    bias, dy = torch.randn(6).to(dtype), last(torch.randn(2, 6, 7, 7)).to(dtype)
    leaf = x.requires_grad_()
    found = {}
    for instructions in ("avx2", "avx512_bf16"):
        monkeypatch.setattr(native, "instruction_set", lambda name=instructions: name)
        y = fk.conv2d(leaf, weight, bias, backend="native")
        found[instructions] = [y.detach(), torch.autograd.grad(y, leaf, dy)[0]]
    wide = x.detach().float().requires_grad_()
    z = F.conv2d(wide, weight.float(), bias.float())
    once = [z.detach().to(dtype), torch.autograd.grad(z, wide, dy.float())[0].to(dtype)]
    for got, want in zip(found["avx2"], once, strict=True):
        assert torch.equal(got, want)
    plain = F.conv2d(leaf, weight, bias)
    assert torch.equal(found["avx512_bf16"][0], plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_look_like_the_inputs(dtype: torch.dtype) -> None:
    """As tracers are told, whatever PyTorch's own makes of layouts, and though half precision is widened between."""
    x, weight = torch.randn(2, 16, 8, 9).to(dtype), last(torch.randn(4, 16, 3, 3)).to(dtype)
    for one, other in ((x, weight), (last(x), weight.contiguous())):
        dy = torch.ones_like(fk.conv2d(one, other))
        found = torch.ops.fbp_kernels.conv2d_backward(
            dy, one, other, None, (1, 1), (0, 0), 3, "native"
        )
        for gradient, like in zip(found, (one, other), strict=False):
            assert (gradient.dtype, gradient.stride()) == (like.dtype, like.stride())


def test_the_native_forward_takes_no_more_than_is_said() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(16, 8, 8\), expected \(N, C, H, W\)"):
        fk.conv2d(torch.randn(16, 8, 8), torch.randn(4, 16, 3, 3), backend="native")


# The choice.


def test_a_vendors_library_goes_first_where_nothing_was_measured() -> None:
    for target in ("avx512", "cuda"):
        unknown = choice.choice(target, "conv2d", "float32", rows=[])
        assert {unknown.step(mode).order[0] for mode in choice.MODES} == {"reference"}
        assert "PyTorch's own is the work of a processor's makers" in unknown.step("training").why
    assert choice.choice("avx512", "fbp", "float32", rows=[]).step("training").order[0] == "native"


# The module.


def runs(module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a call comes to our operator."""
    called = []
    own = fk.ops.conv2d
    with monkeypatch.context() as patch:
        patch.setattr(fk.ops, "conv2d", lambda *a, **k: called.append(1) or own(*a, **k))
        module(x)
    return bool(called)


def test_pytorchs_own_runs_where_ours_cannot_or_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    x = last(torch.randn(2, 16, 9, 9))

    def ours(x: Tensor = x, **options: object) -> bool:
        options = {"backend": "native", "kernel": 3} | options
        module = fk.Conv2d(16, 8, options.pop("kernel"), **options)  # type: ignore[arg-type]
        return runs(module, x, monkeypatch)

    assert ours()
    assert ours(stride=(2, 1), padding=1, bias=False)
    assert not ours(backend="reference")
    assert not ours(groups=2)
    assert not ours(dilation=2)
    assert ours(padding="same")
    assert not ours(padding="same", kernel=2), "more zeros on one side"
    assert not ours(padding=1, padding_mode="circular")
    assert not ours(x.contiguous()), "copies would cost more"
    assert not ours(x[0]), "a picture without a batch"
    assert not ours(x.to("meta"), device="meta", backend=None)
    frozen = fk.Conv2d(16, 8, 3, backend="native").requires_grad_(False)
    assert not runs(frozen, x, monkeypatch)
    with torch.no_grad():
        assert not ours()
        assert ours(x.bfloat16().contiguous(), dtype=torch.bfloat16), "half precision, always"


def net(convolution: type[nn.Conv2d]) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        convolution(3, 16, 3, padding="same"),
        nn.ReLU(),
        convolution(16, 8, (2, 3), stride=2, padding=(1, 0), bias=False),
    )


def test_an_accelerated_convolution_trains_as_the_plain_one_and_comes_back() -> None:
    plain, model = net(nn.Conv2d), net(fk.Conv2d)
    strides = [model[i].weight.stride() for i in (0, 2)]
    report = fk.accelerate(model, backend="native", channels_last=True)
    assert [(r.name, r.module, r.operator, r.backend) for r in report] == [
        ("0", "Conv2d", "conv2d", "native"),
        ("2", "Conv2d", "conv2d", "native"),
    ]
    assert report.layout.changed == ["0", "2"]
    x = torch.randn(3, 3, 12, 10)
    y, want = model(last(x)), plain(x)
    torch.testing.assert_close(y, want)
    for mine, theirs in zip(
        torch.autograd.grad(y.square().sum(), list(model.parameters())),
        torch.autograd.grad(want.square().sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    assert fk.accelerate(model, channels_last=True).layout.left == {}, "our own forward is known"
    assert fk.restore(model) == ["0", "2"]
    assert [model[i].weight.stride() for i in (0, 2)] == strides
    assert model[0].backend is None


def test_pytorchs_own_class_stays() -> None:
    """Tools that fuse and quantise go by the very class."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), fk.Conv2d(4, 4, 3, groups=2))
    report = fk.accelerate(model)
    assert [(r.name, r.backend, r.reason) for r in report] == [
        ("1", "reference", "its groups is 2, expected 1")
    ]
    assert type(model[0]) is nn.Conv2d


def test_a_module_of_ours_is_told_and_gets_back_what_it_had() -> None:
    model = nn.Sequential(fk.Conv2d(2, 4, 3, backend="reference"))
    fk.accelerate(model, backend="native", channels_last=True)
    assert model[0].backend == "native"
    fk.restore(model)
    assert model[0].backend == "reference"
    fk.accelerate(nn.Sequential(model[0], nn.LocalResponseNorm(3)), channels_last=True)
    assert model[0].backend is None
    fk.restore(model)
    assert model[0].backend == "reference"


def test_strides_are_those_of_before_the_first_time() -> None:
    model = nn.Sequential(fk.Conv2d(2, 4, (2, 3)))
    weight = model[0].weight
    weight.data = torch.randn(4, 2, 3, 2).transpose(2, 3)
    before = weight.stride()
    for _ in range(2):
        fk.accelerate(model, backend="native", channels_last=True)
        assert weight.is_contiguous(memory_format=LAST)
        weight.data = weight.data.contiguous()
    fk.restore(model)
    assert weight.stride() == before != weight.contiguous().stride()


def test_under_vmap_it_is_pytorchs() -> None:
    torch.manual_seed(5)
    module = fk.Conv2d(2, 3, 3, backend="native")
    x = torch.randn(4, 1, 2, 5, 5)
    torch.testing.assert_close(vmap(module)(x)[:, 0], module(x[:, 0]))


@pytest.mark.slow
def test_the_module_compiles_without_a_graph_break_and_scripts() -> None:
    x = last(torch.randn(2, 16, 8, 8))
    module = fk.Conv2d(16, 4, 3, backend="native")
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for call in (compiled, torch.jit.script(module), torch.jit.trace(module, x)):
        torch.testing.assert_close(call(x), module(x))


def test_the_work_is_that_of_a_stride_of_one() -> None:
    inputs = (torch.ones(2, 3, 5, 7), torch.ones(11, 3, 3, 3), None)
    assert backends.work("conv2d", inputs) == 11 * 27 * 2 * 35
