"""accelerate: the fused kernels come in, everything else stays as it was."""

import copy

import pytest
import torch
from torch import nn

import fbp_kernels as fk


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


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_convolutions_become_channels_last_where_fused_kernels_come_in(backend: str) -> None:
    def strides(model: Model) -> tuple[int, ...]:
        return model.features[0].weight.stride()

    model = Model()
    weight, values = model.features[0].weight, model.features[0].weight.detach().clone()
    fk.accelerate(model, "reference")
    assert strides(model) == (9, 9, 3, 1)
    fk.accelerate(model, backend)
    assert strides(model) == (9, 1, 3, 1), "and of one channel too, so that its result is"
    assert model.features[0].weight is weight
    assert torch.equal(weight, values)
    image = torch.randn(3, 1, 8, 8)
    assert model.features[:3](image).is_contiguous(memory_format=torch.channels_last)
    gradients = []
    for m in (model, copy.deepcopy(model).to(memory_format=torch.contiguous_format)):
        m.features(image).square().sum().backward()
        gradients.append(m.features[0].weight.grad)
    torch.testing.assert_close(*gradients)
    only_convolutions = nn.Sequential(nn.Conv2d(2, 3, 3))
    fk.accelerate(only_convolutions)
    assert only_convolutions[0].weight.stride() == (18, 9, 3, 1), "nothing was accelerated"


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


def test_subclasses_are_left_alone() -> None:
    class Mine(nn.LocalResponseNorm):
        pass

    model = nn.Sequential(Mine(3))
    assert fk.accelerate(model) == []
    assert type(model[0]) is Mine


def test_back_to_the_reference() -> None:
    model = Model()
    fk.accelerate(model)
    report = fk.accelerate(model, "reference")
    assert {r.backend for r in report} == {"reference"}
    assert model.fusion.backend == "reference"


def test_what_cannot_run_is_an_error_that_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    model = Model()
    with pytest.raises(RuntimeError, match="nothing can run on backend 'triton'"):
        fk.accelerate(model, "triton")
    with pytest.raises(ValueError, match="backend is 'fast'"):
        fk.accelerate(model, "fast")
    assert type(model.features[2]) is nn.LocalResponseNorm
    assert model.fusion.backend == "reference"


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
