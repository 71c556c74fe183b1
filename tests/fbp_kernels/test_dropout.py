"""dropout: PyTorch's own masks, bit by bit, and the state that PyTorch would leave its generator in."""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

import fbp_kernels as fk
from fbp_kernels import generator

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ISAS = torch.ops.fbp_native.cpu_isas().split(",")

alike = pytest.mark.skipif(
    not generator.draws_alike(), reason="PyTorch draws its masks by MKL on this processor"
)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    yield
    torch.set_num_threads(threads)


def after(seed: int, words: int) -> Tensor:
    """The state of a generator of which so many words were drawn."""
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(words):
        torch.randint(9, (), generator=drawn)
    return drawn.get_state()


def same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.stride() == y.stride() and repr_bits(x) == repr_bits(y)


def repr_bits(x: Tensor) -> bytes:
    return x.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


@alike
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_results_and_the_state_after_are_pytorchs_own(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes about vectors, about blocks of 624 words and about all that are held at once; states in every phase."""
    monkeypatch.setenv("FBP_CPU_ISA", isa)
    sizes = (1, 2, 15, 17, 311, 312, 313, 624, 1871, 1872, 1873, 2183, 2184, 2185, 9001)
    for i, size in enumerate(sizes):
        for words in (0, 1, 2, 623, 624, 625):
            x, p = torch.randn(size).to(dtype), (0.1, 0.2, 0.37, 0.5, 0.9)[(i + words) % 5]
            torch.set_rng_state(after(i, words))
            want, left = F.dropout(x, p), torch.get_rng_state()
            torch.set_rng_state(after(i, words))
            assert same_bits(fk.dropout(x, p, backend="native"), want), (size, words, p)
            assert torch.equal(torch.get_rng_state(), left), (size, words)


@alike
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_any_probability_is_rounded_as_pytorch_rounds(backend: str) -> None:
    for i in range(200):
        x, p = torch.randn(64).to(DTYPES[i % 4]), torch.rand(()).item()
        state = torch.get_rng_state()
        want = F.dropout(x, p)
        torch.set_rng_state(state)
        assert same_bits(fk.dropout(x, p, backend=backend), want), p


@alike
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_the_order_is_that_of_memory_in_every_layout(backend: str) -> None:
    last = torch.channels_last
    for x in (
        torch.randn(3, 5, 7, 9).to(memory_format=last),
        torch.randn(6, 8).t(),
        torch.randn(4, 6, 8)[:, :, ::2],
        torch.randn(4, 6, 8).transpose(0, 2)[1:],
        torch.randn(5, 1, 3).expand(5, 4, 3),
        torch.randn(0, 3),
        torch.randn(()),
    ):
        x.requires_grad_()
        state = torch.get_rng_state()
        want = F.dropout(x, 0.3)
        dy = torch.randn(want.shape)  # contiguous, whatever x is
        due = torch.autograd.grad(want, x, dy)[0]
        torch.set_rng_state(state)
        got = fk.dropout(x, 0.3, backend=backend)
        assert same_bits(got, want)
        assert torch.equal(torch.autograd.grad(got, x, dy)[0], due)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_what_is_dropped_is_nought_times_the_input(backend: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -1.0, 1.0])
    got = fk.dropout(x, 1.0, backend=backend)
    assert got.isnan().tolist() == [True, True, False, False]
    assert torch.signbit(got[2:]).tolist() == [True, False]
    assert torch.equal(fk.dropout(x[2:], 0.0, backend=backend), x[2:])


def test_threads_that_call_at_once_draw_masks_of_their_own() -> None:
    """Together those that one thread would draw."""
    x = torch.ones(5000)
    torch.manual_seed(5)
    alone = {repr_bits(fk.dropout(x, 0.5)) for _ in range(160)}
    left = torch.get_rng_state()
    torch.manual_seed(5)
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(lambda _: repr_bits(fk.dropout(x, 0.5)), range(160)))
    assert len(set(masks)) == len(alone) == 160
    assert set(masks) == alone
    assert torch.equal(torch.get_rng_state(), left)


def test_the_same_bits_for_any_number_of_threads() -> None:
    x = torch.randn(300_001)
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        torch.set_rng_state(after(4, 7))
        found.append((fk.dropout(x, 0.2, backend="native"), torch.get_rng_state()))
    for y, state in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(state, found[0][1])


def test_a_share_of_p_is_dropped_and_the_mean_stays() -> None:
    y = fk.dropout(torch.ones(100_000), 0.3, backend="native")
    assert abs((y == 0).double().mean().item() - 0.3) < 0.006
    assert abs(y.double().mean().item() - 1) < 0.01


def test_a_state_that_is_given_is_drawn_from_and_nothing_else() -> None:
    own, given = torch.get_rng_state(), after(9, 1).view(torch.int64)
    before = given.clone()
    x = torch.ones(999)
    y = fk.dropout(x, 0.5, state=given, backend="native")
    assert torch.equal(y, fk.dropout(x, 0.5, state=given, backend="reference"))
    assert torch.equal(torch.get_rng_state(), own)
    assert torch.equal(given, before)


def test_a_state_of_nonsense_is_refused() -> None:
    given = after(9, 1).view(torch.int64)
    given[1] = 0
    with pytest.raises(RuntimeError, match="state says that 0 words are left, expected 1 to 624"):
        fk.dropout(torch.ones(9), 0.5, state=given, backend="native")


# The module.


def steps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Results, gradients and the generator's state of two calls in training."""
    torch.manual_seed(5)
    found = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        found += [y.detach(), *torch.autograd.grad(y.square().sum(), leaf)]
    return [*found, torch.get_rng_state()]


def test_an_accelerated_dropout_is_pytorchs_to_the_bit() -> None:
    plain = nn.Sequential(nn.Dropout(0.2), nn.ReLU(), nn.Dropout(0.5))
    model = copy.deepcopy(plain)
    report = fk.accelerate(model)
    assert [(r.name, r.operator, r.backend) for r in report] == [
        ("0", "dropout", "native"),
        ("2", "dropout", "native"),
    ]
    assert type(model[0]) is fk.Dropout
    x = torch.randn(70, 900)
    for mine, theirs in zip(steps(model, x), steps(plain, x), strict=True):
        assert torch.equal(mine, theirs)
    state = torch.get_rng_state()
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert torch.equal(torch.get_rng_state(), state), "evaluation draws nothing"
    assert fk.restore(model) == ["0", "2"]
    assert type(model[0]) is nn.Dropout
    assert vars(model[0]).keys() == vars(plain[0]).keys()


def test_in_place_and_subclasses_stay() -> None:
    class Mine(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(inplace=True), Mine(), nn.Dropout2d())
    assert [r.reason for r in fk.accelerate(model)] == [
        "it works in place",
        "Mine is a subclass of Dropout, and would not be any more",
    ]


def runs(module: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a call in training comes to our operator."""
    called = []
    monkeypatch.setattr(fk.ops, "dropout", lambda x, *_, **__: called.append(x) or x)
    module(x)
    return bool(called)


def test_pytorchs_own_runs_where_it_costs_nothing_or_must(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(300, 400)
    monkeypatch.setattr(generator, "draws_alike", lambda: True)
    assert runs(fk.Dropout(0.5), x, monkeypatch)
    assert not runs(fk.Dropout(0.5, backend="reference"), x, monkeypatch)
    assert not runs(fk.Dropout(0.5, inplace=True), x.clone(), monkeypatch)
    for p in (0.0, 1.0):
        assert not runs(fk.Dropout(p), x, monkeypatch)
    assert not runs(fk.Dropout(0.5).eval(), x, monkeypatch)
    assert not runs(fk.Dropout(0.5), x.to("meta"), monkeypatch)
    monkeypatch.setattr(generator, "draws_alike", lambda: False)
    assert not runs(fk.Dropout(0.5), x, monkeypatch), "other masks than the plain model's"
    assert runs(fk.Dropout(0.5, backend="native"), x, monkeypatch), "by name"


@pytest.mark.parametrize("module", [nn.Dropout(0.5), fk.Dropout(0.5)])
def test_vmap_is_pytorchs(module: nn.Module) -> None:
    x = torch.ones(4, 5000)
    with pytest.raises(RuntimeError, match="random"):
        vmap(module)(x)
    rows = vmap(module, randomness="different")(x)
    assert not torch.equal(rows[0], rows[1])
    rows = vmap(module, randomness="same")(x)
    assert torch.equal(rows[0], rows[1])


@pytest.mark.slow
def test_the_module_compiles_without_a_graph_break_and_scripts() -> None:
    x = torch.ones(50, 60)
    torch.compiler.reset()
    compiled = torch.compile(fk.Dropout(0.5), fullgraph=True, backend="eager")
    scripted = torch.jit.script(fk.Dropout(0.5))
    for call in (compiled, scripted):
        assert set(call(x).unique().tolist()) == {0.0, 2.0}
