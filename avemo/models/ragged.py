"""Clips of different lengths in one batch: what lies past a clip's end never reaches it."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


class BLSTM(nn.Module):
    """A bidirectional LSTM whose two directions begin at a clip's own ends.

    Args:
        features: C, of a frame.
        hidden: H, of each direction.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        self.out_features = 2 * hidden

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames (B, T, C) of clips of `lengths` int64 (B,) to (B, T, 2 H), zero past each clip's end."""
        if not len(x):  # which cannot be packed
            return self.lstm(x.sum((0, 1))[None, None])[0][:0].expand(0, x.shape[1], -1)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return states


def scaled(width: int, share: float) -> int:
    """A published width at another scale, at least 1."""
    return max(1, round(width * share))
