"""Networks of all kinds, most of them PyTorch's own modules alone, and what accelerate has to say of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import fbp_kernels as fk

CHANNELS = 6


def stem(norm: nn.Module | None = None, activation: nn.Module | None = None) -> list[nn.Module]:
    return [
        nn.Conv2d(3, CHANNELS, 3, padding=1),
        norm or nn.BatchNorm2d(CHANNELS),
        activation or nn.ReLU(),
    ]


def head() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 3)]


def net(*middle: nn.Module, **options: Any) -> nn.Sequential:
    """Convolution, normalisation and ReLU; what is between; a classifier."""
    return nn.Sequential(*stem(**options), *(middle or [lrn()]), *head())


def lrn(*arguments: Any, **options: Any) -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(*arguments or (5,), **{"alpha": 0.5} | options)


class Residual(nn.Module):
    """Two blocks that share their ReLU and their local response normalisation."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace)
        self.lrn = lrn()
        self.head = nn.Sequential(*head())

    def forward(self, x: Tensor) -> Tensor:
        first = self.lrn(self.relu(self.bn1(self.conv1(x))))
        return self.head(self.lrn(self.relu(first + self.bn2(self.conv2(first)))))


class Functional(nn.Module):
    """Activations, pooling and flattening by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lrn = nn.Conv2d(3, CHANNELS, 3), lrn()
        self.dense = nn.Linear(4 * CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(self.lrn(F.relu(self.conv(x), inplace=True)), 2)
        return self.dense(self.flat(x))

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Viewing(Functional):
    """Takes it for granted that the result of a convolution can be viewed as a matrix, as much code does."""

    def flat(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1)


class Lines(nn.Module):
    """Sequences and volumes, which have other normalisations and the same local one."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(3, CHANNELS, 3), nn.BatchNorm1d(CHANNELS), lrn())
        self.volume = nn.Sequential(nn.Conv3d(3, CHANNELS, 3, padding=1), lrn())

    def forward(self, x: Tensor) -> Tensor:
        volume = self.volume(x.unsqueeze(2)).mean((2, 3, 4))
        return self.line(x.flatten(2)).mean(2) + volume


class Louder(nn.LocalResponseNorm):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Named(nn.LocalResponseNorm):
    """Nothing but a name."""


def with_hooks() -> nn.Module:
    model = net()
    for module in model:
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.5,))
        module.register_forward_hook(lambda _, __, output: output * 0.5)
    return model


def replaced_forward() -> nn.Module:
    model = net()
    model[3].forward = lambda x: x + 1  # type: ignore[method-assign]
    return model


def own_attribute() -> nn.Module:
    model = net()
    model[3].relu = nn.ReLU()
    return model


def lazy() -> nn.Module:
    model = net()
    model[0] = nn.LazyConv2d(CHANNELS, 3, padding=1)
    return model


def parametrized() -> nn.Module:
    model = net()
    model.insert(0, parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1)))
    return model


def pruned() -> nn.Module:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def in_shared_memory() -> nn.Module:
    model = net()
    model[0].share_memory()
    return model


def tied_by_memory() -> nn.Module:
    model = net()
    twin = nn.Conv2d(3, CHANNELS, 3, padding=1)
    model.insert(0, nn.Sequential(twin, nn.Conv2d(CHANNELS, 3, 1)))
    twin.weight.data = model[1].weight.data
    return model


def flat_memory() -> nn.Module:
    """All parameters in one piece of memory, as some optimisers want them."""
    model = net()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    with torch.no_grad():
        for p, part in zip(
            model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.data = part.view_as(p)
    return model


def spread_out(**options: Any) -> nn.Module:
    return net(norm=nn.BatchNorm2d(CHANNELS, **options))


@dataclass(frozen=True)
class Entry:
    """A network, what accelerate reports of it and where, "" where it is served; and likewise of the convolutions."""

    build: Callable[[], nn.Module]
    entries: dict[str, str] = field(default_factory=lambda: {"3": ""})
    layout: dict[str, str] = field(default_factory=dict)


WEIGHT = "its weight"
ZOO: dict[str, Entry] = {
    "conv, bn, relu, lrn": Entry(net),
    "without a norm": Entry(lambda: net(norm=nn.Identity())),
    "relu in place": Entry(lambda: net(activation=nn.ReLU(inplace=True))),
    "other activations": Entry(lambda: net(activation=nn.SiLU(inplace=True))),
    "no running statistics": Entry(lambda: spread_out(track_running_stats=False)),
    "cumulative statistics": Entry(lambda: spread_out(momentum=None)),
    "no affine": Entry(lambda: spread_out(affine=False)),
    "frozen norm": Entry(lambda: net(norm=nn.BatchNorm2d(CHANNELS).eval())),
    "other norms": Entry(lambda: net(norm=nn.GroupNorm(2, CHANNELS))),
    "one window over all": Entry(lambda: net(lrn(CHANNELS * 2, beta=1.0, k=2.0))),
    "even window": Entry(lambda: net(lrn(2, alpha=0.0), lrn(1)), {"3": "", "4": ""}),
    "residual": Entry(lambda: Residual(inplace=False), {"lrn": ""}),
    "residual, relu in place": Entry(lambda: Residual(inplace=True), {"lrn": ""}),
    "dropout": Entry(lambda: net(lrn(), nn.Dropout(0.3)), {"3": "", "4": ""}),
    "dropout in place": Entry(
        lambda: net(lrn(), nn.Dropout(0.3, inplace=True)), {"3": "", "4": "it works in place"}
    ),
    "functional": Entry(Functional, {"lrn": ""}),
    "view": Entry(Viewing, {"lrn": ""}),
    "lines and volumes": Entry(Lines, {"line.2": "", "volume.1": ""}),
    "the model itself": Entry(lambda: lrn(3), {"": ""}),
    "hooks": Entry(with_hooks),
    "k = 0": Entry(
        lambda: net(lrn(k=0.0), activation=nn.SiLU()), {"3": "k is 0.0, expected above 0"}
    ),
    "k < 0": Entry(lambda: net(lrn(k=-2.0)), {"3": "k is -2.0, expected above 0"}),
    "alpha < 0": Entry(lambda: net(lrn(alpha=-0.1)), {"3": "alpha is -0.1"}),
    "learnt k": Entry(lambda: net(lrn(k=torch.tensor(1.5))), {"3": r"k is tensor\(1.5"}),
    "forward of its own": Entry(lambda: net(Louder(5)), {"3": "Louder .* forward of its own"}),
    "subclass": Entry(lambda: net(Named(5)), {"3": "Named is a subclass"}),
    "replaced forward": Entry(replaced_forward, {"3": "forward was replaced on the object"}),
    "attribute of its own": Entry(own_attribute, {"3": "attribute 'relu' of its own"}),
    "lazy": Entry(lazy, {"3": ""}, {"0": "UninitializedParameter"}),
    "parametrized": Entry(parametrized, {"4": ""}, {"0": f"{WEIGHT} is computed"}),
    "pruned": Entry(pruned, {"3": ""}, {"0": f"{WEIGHT} is computed"}),
    "shared memory": Entry(in_shared_memory, {"3": ""}, {"0": f"{WEIGHT} shares"}),
    "tied by memory": Entry(
        tied_by_memory, {"4": ""}, {"0.0": f"{WEIGHT} shares", "1": f"{WEIGHT} shares"}
    ),
    "flat memory": Entry(flat_memory, {"3": ""}, {"0": f"{WEIGHT} shares"}),
    "nothing known": Entry(lambda: nn.Sequential(*stem(), *head()), {}),
    "ours": Entry(
        lambda: net(fk.BatchNorm(CHANNELS), lrn(), norm=fk.BatchNormReLU(CHANNELS)),
        {"1": "", "3": "", "4": ""},
    ),
    "ours, for the reference": Entry(
        lambda: net(norm=fk.BatchNormReLU(CHANNELS, backend="reference")), {"1": "", "3": ""}
    ),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same weights and statistics each time; in training mode."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = ZOO[name].build()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
                nn.init.uniform_(norm.running_mean, -0.2, 0.2)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
    finally:
        torch.set_default_dtype(before)
    return model


def pictures(dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch."""
    return torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(1), dtype=dtype)


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that can be told of a model: its objects, their classes and attributes, values and strides."""
    simple = (int, float, str, bool, tuple, type(None))
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        attributes = {k: v if isinstance(v, simple) else id(v) for k, v in vars(module).items()}
        found[f"module {name}"] = (id(module), type(module), list(attributes.items()))
    for name, tensor in model.state_dict(keep_vars=True).items():
        values = () if nn.parameter.is_lazy(tensor) else (tensor.stride(), tensor.tolist())
        found[f"tensor {name}"] = (id(tensor), tensor.dtype, *values)
    return found
