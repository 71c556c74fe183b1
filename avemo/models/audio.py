"""The fully convolutional audio encoders (1D-ABFCN and 2D-ABFCN).

An AlexNet without its dense layers reads the log spectrogram. In the 1D-ABFCN a last layer as high as
what is left of the frequency axis collapses it, so that attention runs over time alone: the audio
stream of Zhou et al. (2021), "Information Fusion in Attention Networks Using Adaptive and
Multi-Level Factorized Bilinear Pooling for Audio-Visual Emotion Recognition". In the 2D-ABFCN
attention runs over time and frequency: Zhang, Du et al. (2018), "Attention Based Fully
Convolutional Network for Speech Emotion Recognition", whose network starts from an AlexNet that
was trained on pictures.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.models.config import AudioEncoderConfig
from fbp_kernels import BatchNorm, LocalResponseNorm

Length = TypeVar("Length", int, Tensor)

_POOL = 3  # frames (and bins) that a pooling window covers
_POOL_STRIDE = 2


class AudioEncoder(nn.Module):
    """Encodes log spectrograms of any length from one frame up.

    A clip's result does not depend on how far its batch is padded: what lies past its end is zero
    before every layer, where a convolution of the clip alone pads with zeros too; as max-pooling
    follows a ReLU, zeros never win over a clip's own values; and the batch normalisation leaves
    padding out of its statistics and makes it zero. That normalisation is not in the paper;
    without it a few hundred clips do not suffice to train the network from scratch.

    Args:
        bins: F, frequency bins of the input.
        config: channels, stride and output width.
        collapse: end with the layer that collapses the frequency axis.

    Attributes:
        out_features: C, features per encoded frame, or per place of one.
        positions: P, places of the frequency axis that are kept for every frame; 1 where it is collapsed.

    Raises:
        ValueError: `bins` are too few to be pooled twice.
    """

    def __init__(self, bins: int, config: AudioEncoderConfig, collapse: bool = True) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = config.channels
        self.stride = config.stride
        self.conv1 = nn.Conv2d(1, c1, 11, stride=config.stride, padding=5, bias=False)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, bias=False)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1, bias=False)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, bias=False)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(BatchNorm(c, backend="reference") for c in config.channels)
        self.lrn1, self.lrn2 = (
            LocalResponseNorm(backend="reference") if config.lrn else nn.Identity()
            for _ in range(2)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        heights = _strided(bins, config.stride[0])
        for _ in range(2):
            if heights < _POOL:
                raise ValueError(
                    f"bins must leave at least {_POOL} rows to each of the two poolings; "
                    f"got {bins} bins with stride {config.stride[0]}"
                )
            heights = _pooled(heights)
        self.positions = 1 if collapse else heights
        self.out_features = config.out_features if collapse else c5
        self.collapse = nn.Conv2d(c5, config.out_features, (heights, 1)) if collapse else None

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Encoded frames, times P, that clips of `lengths` frames give: int64 (B,) to int64 (B,)."""
        lengths = _strided(lengths, self.stride[1])
        return self.positions * _pooled(_pooled(lengths))

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes a batch.

        Args:
            spectrogram: (B, F, T), padded at the end to the longest clip.
            lengths: int64 (B,), frames of each clip, 1 to T.

        Returns:
            (B, P T', C), zero past each clip's end, and int64 (B,), P times its encoded frames. The P
            places of a frame follow each other.
        """
        x = _mask(spectrogram, lengths).unsqueeze(1)
        lengths = _strided(lengths, self.stride[1])
        x = self.norms[0](self.conv1(x), lengths, relu=True)
        x, lengths = _max_pool(self.lrn1(x), lengths)
        x = self.norms[1](self.conv2(x), lengths, relu=True)
        x, lengths = _max_pool(self.lrn2(x), lengths)
        for conv, norm in zip((self.conv3, self.conv4, self.conv5), self.norms[2:], strict=True):
            x = norm(conv(x), lengths, relu=True)
        x = self.dropout(x)
        if self.collapse:
            x = _mask(self.collapse(x), lengths)
        return x.transpose(1, 3).flatten(1, 2), self.positions * lengths


def abfcn_1d(bins: int, config: AudioEncoderConfig) -> AudioEncoder:
    """The 1D-ABFCN, without its response normalisations where `config.lrn` is not set."""
    return AudioEncoder(bins, config)


def abfcn_2d(bins: int, config: AudioEncoderConfig) -> AudioEncoder:
    """The 2D-ABFCN."""
    return AudioEncoder(bins, config, collapse=False)


def _strided(length: Length, stride: int) -> Length:
    """Outputs of a convolution with an odd kernel, padded by half of it."""
    return (length - 1) // stride + 1


def _pooled(length: Length) -> Length:
    """Outputs of a pooling without padding; what is shorter than its window gives one."""
    pooled = (length - _POOL) // _POOL_STRIDE + 1
    return pooled.clamp(min=1) if isinstance(pooled, Tensor) else max(pooled, 1)


def _max_pool(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pools (B, C, F, T), at least one window over time; x is not negative, and zero past each end.

    A window that reaches past a clip's end has some of the clip in it, and is not there for the clip alone.
    """
    short = _POOL - x.shape[-1]
    if short > 0:
        x = F.pad(x, (0, short))
    lengths = _pooled(lengths)
    return _mask(F.max_pool2d(x, _POOL, _POOL_STRIDE), lengths), lengths


def _mask(x: Tensor, lengths: Tensor) -> Tensor:
    """Zeroes what lies past each clip's end: x (B, *, T), lengths int64 (B,)."""
    inside = torch.arange(x.shape[-1], device=x.device) < lengths[:, None]
    inside = inside.view(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    return x.where(inside, 0.0)  # keeps the memory format, as masked_fill does not
