"""accelerate: the fused kernels come in, everything else stays as it was."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fbp_kernels as fk

from .accelerating.zoo import snapshot


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.AdaptiveAvgPool2d(2)
        )
        self.attention = fk.AttentionPool(8, 4, trunks=2, backend="reference")
        self.fusion = fk.AdaptiveMultiLevelFBP(8, 8, 3, 2, 4, 5, 2, backend="reference")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        frames = self.features(image).flatten(2).transpose(1, 2)
        pooled, trunks, _ = self.attention(frames)
        return self.fusion(pooled, pooled, trunks, trunks)


def test_same_results_with_the_same_objects() -> None:
    model = Model()
    plain = copy.deepcopy(model)
    parameters = [id(p) for p in model.parameters()]
    modules = [id(m) for m in model.modules()]
    keys = list(model.state_dict())
    report = fk.accelerate(model)
    assert [(r.name, r.module, r.operator, r.backend) for r in report] == [
        ("features.2", "LocalResponseNorm", "local_response_norm", "native"),
        ("attention", "AttentionPool", "attention_pool", "native"),
        ("fusion", "AdaptiveMultiLevelFBP", "am_fbp", "native"),
    ]
    assert parameters == [id(p) for p in model.parameters()]
    assert modules == [id(m) for m in model.modules()]
    assert keys == list(model.state_dict())
    image = torch.randn(3, 1, 8, 8)
    results = [m(image) for m in (model, plain)]
    torch.testing.assert_close(*results)
    for _m, z in zip((model, plain), results, strict=True):
        z.square().sum().backward()
    for p, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad)


def test_hooks_and_training_mode_stay() -> None:
    model = Model()
    seen = []
    model.features[2].register_forward_hook(lambda module, *_: seen.append(type(module)))
    model.features[2].eval()
    fk.accelerate(model)
    assert not model.features[2].training
    assert model.features[0].training
    model(torch.randn(2, 1, 8, 8))
    assert seen == [fk.LocalResponseNorm]


def test_the_model_itself_and_shared_modules_are_accelerated() -> None:
    root = nn.LocalResponseNorm(3, alpha=0.5, beta=0.5, k=2.0)
    x = torch.randn(2, 6, 4)
    want = root(x)
    assert [r.name for r in fk.accelerate(root)] == [""]
    assert isinstance(root, fk.LocalResponseNorm)
    torch.testing.assert_close(root(x), want)
    shared = nn.LocalResponseNorm(3)
    twice = nn.ModuleDict({"one": shared, "two": shared})
    fk.accelerate(twice)
    assert twice["one"] is twice["two"]


def test_what_cannot_be_served_is_reported_and_stays() -> None:
    class Mine(fk.AttentionPool):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    class Same(fk.AttentionPool):
        pass

    hooked = fk.BatchNormReLU(3, backend="reference")
    hooked.relu.register_forward_hook(lambda *_: None)
    synchronised = fk.BatchNormReLU(3, backend="reference")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(synchronised)
    pooled = weight_norm(fk.FactorizedBilinearPooling(3, 4, 5, 2, backend="reference"), "p", dim=1)
    modules = {
        "mine": Mine(3, 4, backend="reference"),
        "same": Same(3, 4, backend="reference"),
        "hooked": hooked,
        "synchronised": synchronised,
        "parametrized": pooled,
    }
    model = nn.ModuleDict(modules)
    report = fk.accelerate(model)
    assert {r.name: r.reason for r in report} == {
        "mine": "Mine is a subclass of AttentionPool with a forward of its own",
        "same": "",
        "hooked": "there are hooks on its relu",
        "synchronised": "its norm is a SyncBatchNorm",
        "parametrized": "",
    }
    assert {r.name for r in report.replaced} == {"same", "parametrized"}
    assert {r.name for r in report.left} == {"mine", "hooked", "synchronised"}
    assert {n for n, m in modules.items() if m.backend is None} == {"same", "parametrized"}
    lines = str(report).splitlines()
    assert lines[0] == f"mine: Mine stays as it was, on reference: {report[0].reason}"
    assert lines[1] == "same: Same runs attention_pool on native"
    inputs = torch.randn(2, 3), torch.randn(2, 4)
    fused = pooled(*inputs)
    assert set(fk.restore(model)) == {"same", "parametrized"}
    assert pooled.backend == "reference"
    torch.testing.assert_close(pooled(*inputs), fused)


def test_back_to_the_reference() -> None:
    model = Model()
    fk.accelerate(model)
    report = fk.accelerate(model, "reference")
    assert {r.backend for r in report} == {"reference"}
    assert model.fusion.backend == model.features[2].backend == "reference"
    fk.restore(model)
    assert type(model.features[2]) is nn.LocalResponseNorm
    (entry,) = fk.accelerate(model.features, "reference")
    assert (entry.backend, type(model.features[2])) == ("reference", nn.LocalResponseNorm)


def test_what_nobody_asked_a_backend_for_follows_the_model() -> None:
    model = nn.Sequential(nn.LocalResponseNorm(3))
    fk.accelerate(model)
    assert model.to("meta")(torch.empty(2, 4, 3, device="meta")).shape == (2, 4, 3)
    fk.accelerate(model, "native")
    with pytest.raises(RuntimeError, match=r"cannot run on backend 'native'.* on meta"):
        model(torch.empty(2, 4, 3, device="meta"))


def test_the_environment_may_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBP_BACKEND", "reference")
    model = Model()
    before = snapshot(model)
    report = fk.accelerate(model)
    assert {r.reason for r in report} == {"the environment variable FBP_BACKEND asks for it"}
    assert snapshot(model) == before


def test_what_cannot_run_is_an_error_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    model = Model()
    with pytest.raises(RuntimeError, match="nothing can run on backend 'triton'"):
        fk.accelerate(model, "triton")
    with pytest.raises(ValueError, match="backend is 'fast'"):
        fk.accelerate(model, "fast")
    assert type(model.features[2]) is nn.LocalResponseNorm
    assert model.fusion.backend == "reference"


class Stubborn(fk.AttentionPool):
    """Whose backend cannot be set."""

    broken = False

    def __setattr__(self, name: str, value: object) -> None:
        if self.broken and name == "backend":
            raise KeyboardInterrupt
        super().__setattr__(name, value)


@pytest.mark.parametrize("place", ["first", "last"])
def test_all_or_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = Stubborn(3, 4, backend="reference")
    parts: list[nn.Module] = [stubborn, Model()]
    model = nn.Sequential(*(parts if place == "first" else reversed(parts)))
    monkeypatch.setattr(Stubborn, "broken", True)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        fk.accelerate(model, channels_last=True)
    assert snapshot(model) == before
    monkeypatch.setattr(Stubborn, "broken", False)
    fk.accelerate(model, channels_last=True)
    accelerated = snapshot(model)
    assert accelerated != before
    monkeypatch.setattr(Stubborn, "broken", True)
    with pytest.raises(KeyboardInterrupt):
        fk.restore(model)
    assert snapshot(model) == accelerated


def test_a_layout_that_fails_undoes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3), nn.Conv2d(4, 5, 3))
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before, plain, calls = snapshot(model), torch.empty_strided, []
    memory = [p.data_ptr() for p in (*model.parameters(), model[2].weight.grad)]

    def full(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory left")
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "empty_strided", full)
    with pytest.raises(torch.OutOfMemoryError):
        fk.accelerate(model, channels_last=True)
    assert len(calls) == 3
    assert snapshot(model) == before
    assert [p.data_ptr() for p in (*model.parameters(), model[2].weight.grad)] == memory


def test_restore_on_copies_on_parts_and_after_several_calls() -> None:
    model = Model()
    before = snapshot(model)
    for backend in (None, "native", "reference", "native"):
        fk.accelerate(model, backend, channels_last=backend is None)
    twin, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert fk.restore(model.features) == ["0", "2"]
    assert fk.restore(model) == ["attention", "fusion"]
    assert snapshot(model) == before
    for other in (twin, read):
        assert fk.restore(nn.Sequential(other)) == [
            f"0.{name}" for name in ("features.0", "features.2", "attention", "fusion")
        ]
        assert type(other.features[2]) is nn.LocalResponseNorm
        assert other.features[0].weight.stride() == (9, 9, 3, 1)
        assert other.fusion.backend == "reference"


def test_restore_changes_nothing_where_a_class_is_not_ours_any_more() -> None:
    class Wrapped(fk.LocalResponseNorm):
        pass

    model = Model()
    fk.accelerate(model)
    model.features[2].__class__ = Wrapped
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r"restore: features\.2 is a Wrapped, expected a Local"):
        fk.restore(model)
    assert snapshot(model) == before


def test_what_was_replaced_since_stays() -> None:
    model = Model()
    fk.accelerate(model, channels_last=True)
    weight = nn.Parameter(torch.randn(8, 2, 3, 3))
    model.features[0].weight = weight
    model.attention = nn.Identity()
    assert fk.restore(model) == ["features.0", "features.2", "fusion"]
    assert model.features[0].weight is weight
    assert weight.stride() == (18, 9, 3, 1)


def test_an_optimizer_goes_on_through_both() -> None:
    """Its parameters are the same objects, and take the same steps."""
    torch.manual_seed(0)
    model = Model().double()
    plain = copy.deepcopy(model)
    image = torch.randn(4, 1, 8, 8).double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=3e-3) for m in (model, plain)]
    for change in (lambda m: None, lambda m: fk.accelerate(m, channels_last=True), fk.restore):
        change(model)
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            m(image).square().sum().backward()
            optimizer.step()
        for p, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, other, rtol=1e-9, atol=1e-12)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fk.accelerate(Model())
    assert capsys.readouterr() == ("", "")


def test_the_same_loss_curve_as_the_plain_model() -> None:
    torch.manual_seed(0)
    model = Model().double()
    plain = copy.deepcopy(model)
    fk.accelerate(model)
    image, target = torch.randn(16, 1, 8, 8).double(), torch.randn(16, 7).double()
    curves = []
    for m in (model, plain):
        optimizer = torch.optim.Adam(m.parameters(), lr=3e-3)
        losses = []
        for _ in range(100):
            loss = (m(image) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.6 * curves[0][0], "it trains"
    assert max(abs(x - y) for x, y in zip(*curves, strict=True)) < 1e-12
