"""Clips of different lengths in one batch: what lies past a clip's end never reaches it."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Length = TypeVar("Length", int, Tensor)


def inside(lengths: Tensor, frames: int) -> Tensor:
    """Which of so many frames are a clip's own: int64 (B,) to bool (B, frames)."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def mask(x: Tensor, lengths: Tensor) -> Tensor:
    """Zeroes what lies past each clip's end: x (B, *, T), lengths int64 (B,)."""
    own = inside(lengths, x.shape[-1])
    own = own.view(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    return x.where(own, 0.0)  # keeps the memory format, as masked_fill does not


def strided(length: Length, stride: int) -> Length:
    """Outputs of a convolution with an odd kernel, padded by half of it."""
    return (length - 1) // stride + 1


def pooled(length: Length, window: int, stride: int = 2) -> Length:
    """Outputs of a pooling without padding; what is shorter than its window gives one."""
    outputs = (length - window) // stride + 1
    return outputs.clamp(min=1) if isinstance(outputs, Tensor) else max(outputs, 1)


def max_pool(x: Tensor, lengths: Tensor, window: int, stride: int = 2) -> tuple[Tensor, Tensor]:
    """Max-pools (B, C, F, T), at least one window over time; x is not negative, and zero past each end.

    A window that reaches past a clip's end has some of the clip in it, and is not there for the clip alone.
    """
    short = window - x.shape[-1]
    if short > 0:
        x = F.pad(x, (0, short))
    lengths = pooled(lengths, window, stride)
    return mask(F.max_pool2d(x, window, stride), lengths), lengths


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Turns each clip's own frames around, and leaves what lies past its end: x (B, T, C), lengths int64 (B,)."""
    own, frames = inside(lengths, x.shape[1]), torch.arange(x.shape[1], device=x.device)
    order = torch.where(own, lengths[:, None] - 1 - frames, frames)
    return x.gather(1, order[..., None].expand_as(x))


def states(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """The states of an LSTM of one layer and direction: frames (B, T, C) to (B, T, H).

    In an exported graph each step is written out, in a loop: of the LSTM itself PyTorch makes one for as many frames as
    it was shown.
    """
    if not torch.compiler.is_exporting():
        whole: Tensor = lstm(x)[0]
        return whole
    from torch._higher_order_ops.scan import scan

    of_input, of_state, one, other = lstm.all_weights[0]
    frames = F.linear(x, of_input, one + other).transpose(0, 1)
    nothing = torch.zeros_like(frames[0, :, : lstm.hidden_size])

    def step(before: tuple[Tensor, Tensor], frame: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        hidden, cell = before
        enter, keep, new, out = (frame + F.linear(hidden, of_state)).chunk(4, dim=1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = out.sigmoid() * cell.tanh()
        return (hidden, cell), hidden.clone()

    _, found = scan(step, (nothing, nothing.clone()), frames)
    return found.transpose(0, 1)


class LSTM(nn.Module):
    """An LSTM that reads each clip from its beginning.

    Args:
        features: C, of a frame.
        hidden: H, its units.
    """

    directions = 1

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(features, hidden, batch_first=True)
        self.out_features = hidden

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames (B, T, C) of clips of `lengths` int64 (B,) to (B, T, H), zero past each clip's end."""
        own = inside(lengths, x.shape[1])[..., None]
        return states(self.onward, x.where(own, 0.0)).where(own, 0.0)


class BLSTM(nn.Module):
    """A bidirectional LSTM whose two directions begin at a clip's own ends.

    These are two LSTMs, one over frames that are turned around: PyTorch's own, for packed sequences, takes several
    times as long to train on a CPU (docs/systems.md). It takes that one's state dict, too.

    Args:
        features: C, of a frame.
        hidden: H, of each direction.
    """

    directions = 2

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.onward = nn.LSTM(features, hidden, batch_first=True)
        self.back = nn.LSTM(features, hidden, batch_first=True)
        self.out_features = 2 * hidden
        self.register_load_state_dict_pre_hook(_two_for_one)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames (B, T, C) of clips of `lengths` int64 (B,) to (B, T, 2 H), zero past each clip's end."""
        own = inside(lengths, x.shape[1])[..., None]
        x = x.where(own, 0.0)  # whatever it is, it would come into the weights' gradients
        onward = states(self.onward, x)
        back = states(self.back, turned(x, lengths))
        return torch.cat([onward, turned(back, lengths)], 2).where(own, 0.0)


def _two_for_one(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Takes the weights of the one LSTM of PyTorch, under its names, as checkpoints of before have them."""
    del module
    for name in [name for name in state if name.startswith(prefix + "lstm.")]:
        weight = name.removeprefix(prefix + "lstm.")
        name_there = weight.removesuffix("_reverse")
        direction = "onward" if weight == name_there else "back"
        state[f"{prefix}{direction}.{name_there}"] = state.pop(name)


def scaled(width: int, share: float) -> int:
    """A published width at another scale, at least 1."""
    return max(1, round(width * share))
