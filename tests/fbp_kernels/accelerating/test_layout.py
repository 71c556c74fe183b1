"""Convolutions channels last: which ones, and that values, objects and training stay."""

import copy

import pytest
import torch
from torch import nn

import fbp_kernels as fk


def network(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.Conv2d(8, 2, (2, 1))
    )


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_weights_and_results_are_channels_last_where_fused_kernels_come_in(backend: str) -> None:
    model = network()
    weight, values = model[0].weight, model[0].weight.detach().clone()
    fk.accelerate(model, "reference", channels_last=True)
    fk.accelerate(model, backend)
    assert weight.stride() == (9, 9, 3, 1)
    report = fk.accelerate(model, backend, channels_last=True)
    assert report.layout.changed == ["0", "3"]
    assert "channels last: 0, 3" in str(report)
    assert weight.stride() == (9, 1, 3, 1), "and of one channel too, so that its result is"
    assert model[3].weight.stride() == (16, 1, 8, 8)
    assert model[0].weight is weight
    assert torch.equal(weight, values)
    image = torch.randn(3, 1, 8, 8)
    assert model[:3](image).is_contiguous(memory_format=torch.channels_last)
    gradients = []
    for m in (model, copy.deepcopy(model).to(memory_format=torch.contiguous_format)):
        m(image).square().sum().backward()
        gradients.append(m[0].weight.grad)
    torch.testing.assert_close(*gradients)
    assert fk.accelerate(model, backend, channels_last=True).layout.changed == [], (
        "they are already"
    )
    only_convolutions = nn.Sequential(nn.Conv2d(2, 3, 3))
    fk.accelerate(only_convolutions, channels_last=True)
    assert only_convolutions[0].weight.stride() == (18, 9, 3, 1), "nothing was accelerated"


def test_gradients_go_along() -> None:
    """A fused optimiser wants them laid out as their weights are."""
    model = network()
    model(torch.randn(3, 1, 8, 8)).sum().backward()
    gradient = model[0].weight.grad
    values = gradient.clone()
    fk.accelerate(model, channels_last=True)
    assert model[0].weight.grad is gradient
    assert gradient.stride() == (9, 1, 3, 1)
    assert torch.equal(gradient, values)
    fk.restore(model)
    assert gradient.stride() == (9, 9, 3, 1)
    assert torch.equal(gradient, values)


def test_in_inference_mode_nothing_becomes_a_tensor_that_cannot_be_trained() -> None:
    model = network()
    with torch.inference_mode():
        fk.accelerate(model, channels_last=True)
        made_there = network()
        report = fk.accelerate(made_there, channels_last=True)
    assert set(report.layout.left.values()) == {"its weight was made in inference mode"}
    model(torch.randn(3, 1, 8, 8)).sum().backward()
    assert model[0].weight.grad is not None
    with torch.inference_mode():
        fk.restore(model)
    model(torch.randn(3, 1, 8, 8)).sum().backward()


def test_a_convolution_with_a_forward_of_its_own_stays() -> None:
    class Standardised(nn.Conv2d):
        """Whose weight is viewed as a matrix, as several libraries have it."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            rows = self.weight.view(self.weight.shape[0], -1)
            weight = (rows - rows.mean(1, keepdim=True)).view_as(self.weight)
            return self._conv_forward(input, weight, self.bias)

    model = network()
    model[3] = Standardised(8, 2, 3)
    report = fk.accelerate(model, channels_last=True)
    assert report.layout.changed == ["0"]
    assert report.layout.left == {"3": "Standardised has a forward of its own"}
    model(torch.randn(3, 1, 8, 8)).sum().backward()


def test_no_memory_is_no_longer_shared() -> None:
    """With another process, with another module, with a vector of all weights."""
    alone, tied, flat = network(), network(), network()
    alone.share_memory()
    tied.append(nn.Conv2d(2, 1, 1))
    tied[4].register_buffer("twin", tied[0].weight.detach())
    vector = torch.cat([p.detach().flatten() for p in flat.parameters()])
    sizes = [p.numel() for p in flat.parameters()]
    for p, part in zip(flat.parameters(), vector.split(sizes), strict=True):
        p.data = part.view_as(p)
    for model, left in ((alone, {"0", "3"}), (tied, {"0"}), (flat, {"0", "3"})):
        report = fk.accelerate(model, channels_last=True)
        assert report.layout.left == dict.fromkeys(left, "its weight shares its memory")
    assert alone[0].weight.is_shared()
    assert tied[0].weight.data_ptr() == tied[4].twin.data_ptr()
    vector.zero_()
    assert not any(p.any() for p in flat.parameters())
