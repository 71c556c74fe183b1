"""The fully convolutional audio encoders (1D-ABFCN and 2D-ABFCN).

An AlexNet without its dense layers reads the log spectrogram. In the 1D-ABFCN a last layer as high as
what is left of the frequency axis collapses it, so that attention runs over time alone: the audio
stream of Zhou et al. (2021), "Information Fusion in Attention Networks Using Adaptive and
Multi-Level Factorized Bilinear Pooling for Audio-Visual Emotion Recognition". In the 2D-ABFCN
attention runs over time and frequency: Zhang, Du et al. (2018), "Attention Based Fully
Convolutional Network for Speech Emotion Recognition", whose network starts from an AlexNet that
was trained on pictures.
"""

from torch import Tensor, nn

from avemo.models.config import AudioEncoderConfig
from avemo.models.ragged import mask, max_pool, pooled, strided
from fbp_kernels import BatchNorm, Conv2d, LocalResponseNorm

_POOL = 3  # frames (and bins) that a pooling window covers


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
        self.conv1 = Conv2d(
            1, c1, 11, stride=config.stride, padding=5, bias=False, backend="reference"
        )
        self.conv2 = Conv2d(c1, c2, 5, padding=2, bias=False, backend="reference")
        self.conv3 = Conv2d(c2, c3, 3, padding=1, bias=False, backend="reference")
        self.conv4 = Conv2d(c3, c4, 3, padding=1, bias=False, backend="reference")
        self.conv5 = Conv2d(c4, c5, 3, padding=1, bias=False, backend="reference")
        self.norms = nn.ModuleList(BatchNorm(c, backend="reference") for c in config.channels)
        self.lrn1, self.lrn2 = (
            LocalResponseNorm(backend="reference") if config.lrn else nn.Identity()
            for _ in range(2)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        heights = strided(bins, config.stride[0])
        for _ in range(2):
            if heights < _POOL:
                raise ValueError(
                    f"bins must leave at least {_POOL} rows to each of the two poolings; "
                    f"got {bins} bins with stride {config.stride[0]}"
                )
            heights = pooled(heights, _POOL)
        self.positions = 1 if collapse else heights
        self.out_features = config.out_features if collapse else c5
        self.collapse = (
            Conv2d(c5, config.out_features, (heights, 1), backend="reference") if collapse else None
        )

    def out_lengths(self, lengths: Tensor) -> Tensor:
        """Encoded frames, times P, that clips of `lengths` frames give: int64 (B,) to int64 (B,)."""
        lengths = strided(lengths, self.stride[1])
        return self.positions * pooled(pooled(lengths, _POOL), _POOL)

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes a batch.

        Args:
            spectrogram: (B, F, T), padded at the end to the longest clip.
            lengths: int64 (B,), frames of each clip, 1 to T.

        Returns:
            (B, P T', C), zero past each clip's end, and int64 (B,), P times its encoded frames. The P
            places of a frame follow each other.
        """
        x = mask(spectrogram, lengths).unsqueeze(1)
        lengths = strided(lengths, self.stride[1])
        x = self.norms[0](self.conv1(x), lengths, relu=True)
        x, lengths = max_pool(self.lrn1(x), lengths, _POOL)
        x = self.norms[1](self.conv2(x), lengths, relu=True)
        x, lengths = max_pool(self.lrn2(x), lengths, _POOL)
        for conv, norm in zip((self.conv3, self.conv4, self.conv5), self.norms[2:], strict=True):
            x = norm(conv(x), lengths, relu=True)
        x = self.dropout(x)
        if self.collapse:
            x = mask(self.collapse(x), lengths)
        return x.transpose(1, 3).flatten(1, 2), self.positions * lengths


def abfcn_1d(bins: int, config: AudioEncoderConfig) -> AudioEncoder:
    """The 1D-ABFCN, without its response normalisations where `config.lrn` is not set."""
    return AudioEncoder(bins, config)


def abfcn_2d(bins: int, config: AudioEncoderConfig) -> AudioEncoder:
    """The 2D-ABFCN."""
    return AudioEncoder(bins, config, collapse=False)
