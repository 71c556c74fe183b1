"""Fusion_TACN: temporal convolutions with attention, on the spectrogram and on a latent representation.

Liu et al. (2020), "Temporal Attention Convolutional Network for Speech Emotion Recognition with
Latent Representation": a temporal convolutional network with attention (TACN) as the model of
sequences, applied to acoustic features and to the latent representation that a VQ-VAE, trained on
much speech without labels, gives of them; both are fused. The residual blocks are those of temporal
convolutional networks (Bai et al. 2018): two dilated causal convolutions with weight normalisation,
ReLU and dropout, dilation doubled from block to block. What the public sources do not say is ours: four
blocks of 128 channels with kernels of 3 frames, and the fusion by concatenation. The VQ-VAE and the
speech that it was trained on are not public; its place is taken by an encoder of its form (two
convolutions of 4 frames with stride 2) that is trained with the rest and is not quantised.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from avemo.models.config import AudioEncoderConfig
from avemo.models.ragged import mask, scaled

_CHANNELS = 128
_BLOCKS = 4
_KERNEL = 3
_LATENT = 64
_LATENT_KERNEL, _LATENT_STRIDE = 4, 2


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions and a residual connection: (B, C, T) to (B, C', T)."""

    def __init__(self, features: int, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = (_KERNEL - 1) * dilation
        self.first = weight_norm(nn.Conv1d(features, channels, _KERNEL, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(channels, channels, _KERNEL, dilation=dilation))
        self.dropout = nn.Dropout(dropout)
        self.residual = nn.Identity() if features == channels else nn.Conv1d(features, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.relu(self.first(F.pad(x, (self.past, 0)))))
        h = self.dropout(F.relu(self.second(F.pad(h, (self.past, 0)))))
        return F.relu(h + self.residual(x))


class FusionTACN(nn.Module):
    """Encodes log spectrograms frame by frame by two temporal convolutional networks side by side.

    Args:
        bins: F, frequency bins of the input.
        config: the width and dropout.
    """

    positions = 1

    def __init__(self, bins: int, config: AudioEncoderConfig) -> None:
        super().__init__()
        latent = scaled(_LATENT, config.width)
        channels = scaled(_CHANNELS, config.width)
        self.latent = nn.ModuleList(
            nn.Conv1d(features, latent, _LATENT_KERNEL, _LATENT_STRIDE, padding=1)
            for features in (bins, latent)
        )
        self.heard = _network(bins, channels, config.dropout)
        self.coded = _network(latent, channels, config.dropout)
        self.out_features = 2 * channels

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, F, T) of `lengths` int64 (B,) as (B, T, C), zero past each end, and the same lengths."""
        x = mask(spectrogram, lengths)
        codes = self._codes(x, lengths)
        both = torch.cat([self.heard(x), self.coded(codes)], dim=1)
        return mask(both, lengths).transpose(1, 2), lengths

    def _codes(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The latent representation (B, L, T): a code lasts as long as the frames that it was made of."""
        frames, step = x.shape[2], _LATENT_STRIDE ** len(self.latent)
        x = F.pad(x, (0, -frames % step))
        for convolution in self.latent:
            lengths = -(-lengths // _LATENT_STRIDE)
            x = mask(F.relu(convolution(x)), lengths)
        return x.repeat_interleave(step, dim=2)[:, :, :frames]


def _network(features: int, channels: int, dropout: float) -> nn.Sequential:
    widths = [features, *[channels] * _BLOCKS]
    return nn.Sequential(
        *(TemporalBlock(widths[i], channels, 2**i, dropout) for i in range(_BLOCKS))
    )
