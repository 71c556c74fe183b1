"""How the frames of a stream become one vector, and one for each trunk.

Self-attention is that of Zhou, Du et al. (2021), Figure 3. The others are what networks of other papers end in.
"""

import math

import torch
from torch import Tensor, nn

from avemo.models.config import AttentionConfig
from avemo.models.ragged import inside
from fbp_kernels import AttentionPool

# From which to which share of the training a lambda rises: where the learning rate of one cycle is nearly zero, for
# weights that still learn quickly learn a flat attention instead.
_RISE = (0.9, 0.95)


def self_attention(encoder: nn.Module, trunks: int, config: AttentionConfig) -> AttentionPool:
    """Scores every frame by a small network of one hidden layer, and takes their weighted sum."""
    return attention_pool(int(encoder.out_features), trunks, config)  # type: ignore[arg-type]


def attention_pool(features: int, trunks: int, config: AttentionConfig) -> AttentionPool:
    """The same over frames of so many features."""
    start = config.scale if config.rises_from is None else config.rises_from
    rises = config.rises_from is not None
    pool = AttentionPool(
        features, config.hidden, trunks, start, config.learned or rises, backend="reference"
    )
    if rises:
        assert pool.log_scale is not None
        pool.log_scale.requires_grad_(False)  # set by `raise_scales`, and saved with the weights
        pool.rise = (start, config.scale)  # type: ignore[assignment]
    return pool


def raise_scales(model: nn.Module, share: float) -> None:
    """Sets every lambda that rises in training to what it is after a share of all steps, 0 to 1."""
    for module in model.modules():
        rise: tuple[float, float] | None = getattr(module, "rise", None)
        if rise is not None:
            low, high = map(math.log, rise)
            risen = (share - _RISE[0]) / (_RISE[1] - _RISE[0])
            assert isinstance(module.log_scale, nn.Parameter)
            module.log_scale.data.fill_(low + min(1.0, max(0.0, risen)) * (high - low))


class Mean(nn.Module):
    """The mean over frames: every frame has the same weight."""

    def __init__(self, encoder: nn.Module, trunks: int, config: AttentionConfig) -> None:
        super().__init__()
        self.trunks = trunks

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B, T, C), zero past the end, of clips of `lengths` int64 (B,) as in `AttentionPool`."""
        weights = inside(lengths, x.shape[1]).to(x.dtype) / lengths[:, None]
        bounds = torch.arange(self.trunks + 1, device=x.device) * lengths[:, None] // self.trunks
        before = inside(bounds.flatten(), x.shape[1]).unflatten(0, bounds.shape)
        members = before[:, 1:] & ~before[:, :-1]
        trunks = (members * weights[:, None]) @ x
        return trunks.sum(1), trunks, weights


class Last(nn.Module):
    """The last state of each direction of a bidirectional recurrent encoder; it has no weights over time.

    Raises:
        ValueError: vectors for several trunks are wanted.
    """

    def __init__(self, encoder: nn.Module, trunks: int, config: AttentionConfig) -> None:
        super().__init__()
        if trunks != 1:
            raise ValueError(
                f"attention 'last' has a vector for the whole clip alone, and {trunks} trunks are wanted"
            )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        """Frames (B, T, C), forward states and then backward ones, of clips of `lengths` int64 (B,)."""
        forward, backward = x.chunk(2, dim=2)
        rows = torch.arange(len(x), device=x.device)
        vector = torch.cat([forward[rows, lengths - 1], backward[:, 0]], dim=1)
        return vector, vector[:, None], None
