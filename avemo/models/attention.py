"""How the frames of a stream become one vector, and one for each trunk.

Self-attention is that of Zhou, Du et al. (2021), Figure 3. The others are what networks of other papers end in.
"""

import math

import torch
from torch import Tensor, nn

from avemo.models.config import AttentionConfig
from avemo.models.ragged import inside
from fbp_kernels import AttentionPool


def self_attention(encoder: nn.Module, trunks: int, config: AttentionConfig) -> AttentionPool:
    """Scores every frame by a small network of one hidden layer, and takes their weighted sum."""
    return attention_pool(int(encoder.out_features), trunks, config)  # type: ignore[arg-type]


def attention_pool(features: int, trunks: int, config: AttentionConfig) -> AttentionPool:
    """The same over frames of so many features."""
    other = config.scale_in_training
    start = config.scale if other is None else other
    pool = AttentionPool(
        features,
        config.hidden,
        trunks,
        start,
        config.learned or other is not None,
        backend="reference",
    )
    if other is not None:
        assert pool.log_scale is not None
        pool.log_scale.requires_grad_(False)  # set by `set_scales`, and saved with the weights
        pool.scales = {True: other, False: config.scale}  # type: ignore[assignment]
    return pool


def set_scales(model: nn.Module, *, training: bool) -> None:
    """Sets every lambda that is another one in training to what it is then, or to what it is otherwise."""
    for module in model.modules():
        scales: dict[bool, float] | None = getattr(module, "scales", None)
        if scales is not None:
            assert isinstance(module.log_scale, nn.Parameter)
            module.log_scale.data.fill_(math.log(scales[training]))


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
    """The last state of each direction of a recurrent encoder; it has no weights over time.

    A state of zeros is none, such as that of a frame without a face: the last one before it is taken.

    Raises:
        ValueError: vectors for several trunks are wanted, or the encoder is not recurrent.
    """

    def __init__(self, encoder: nn.Module, trunks: int, config: AttentionConfig) -> None:
        super().__init__()
        if trunks != 1:
            raise ValueError(
                f"attention 'last' has a vector for the whole clip alone, and {trunks} trunks are wanted"
            )
        self.directions = int(getattr(encoder, "directions", 0))
        if not self.directions:
            raise ValueError(
                "attention 'last' takes the last state of an LSTM, and the encoder has none"
            )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        """Frames (B, T, C), forward states and then backward ones if any, of clips of `lengths` int64 (B,)."""
        rows = torch.arange(x.shape[0], device=x.device)
        there = x.detach().any(2).int()
        ends = x.shape[1] - 1 - there.flip(1).argmax(1), there.argmax(1)
        states = x.chunk(self.directions, dim=2)
        vector = torch.cat(
            [state[rows, end] for state, end in zip(states, ends, strict=False)], dim=1
        )
        return vector, vector[:, None], None
