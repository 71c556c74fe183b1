"""CNN+LSTM: convolutions over the spectrogram, then a bidirectional LSTM over what they leave of time.

Satt, Rozenberg and Hoory (2017), "Efficient Emotion Recognition from Speech Using Deep Learning on
Spectrograms": three convolutions with tall and wide kernels, each followed by a max-pooling that
halves both axes, a bidirectional LSTM of 128 units, and a softmax layer on its last state. The
batch normalisation is ours, as in the other encoders; so is that a clip is read as a whole, and
not in segments of three seconds.
"""

from torch import Tensor, nn

from avemo.models.config import AudioEncoderConfig
from avemo.models.ragged import BLSTM, mask, max_pool, pooled, scaled
from fbp_kernels import BatchNorm, Conv2d

_CHANNELS = (16, 24, 32)
_KERNELS = ((12, 16), (8, 12), (5, 7))  # bins by frames
_HIDDEN = 128
_POOL = 2


class CNNLSTM(nn.Module):
    """Encodes log spectrograms of any length from one frame up; padding does not reach a clip's result.

    Args:
        bins: F, frequency bins of the input, at least 8.
        config: the width.

    Raises:
        ValueError: `bins` are too few to be halved three times.
    """

    positions = 1
    directions = BLSTM.directions

    def __init__(self, bins: int, config: AudioEncoderConfig) -> None:
        super().__init__()
        if bins < _POOL ** len(_CHANNELS):
            raise ValueError(f"bins must be at least 8 to be halved three times; got {bins}")
        channels = [1, *(scaled(c, config.width) for c in _CHANNELS)]
        self.convolutions = nn.ModuleList(
            Conv2d(before, after, kernel, padding="same", bias=False, backend="reference")
            for before, after, kernel in zip(channels, channels[1:], _KERNELS, strict=False)
        )
        self.norms = nn.ModuleList(BatchNorm(c, backend="reference") for c in channels[1:])
        for _ in _CHANNELS:
            bins = pooled(bins, _POOL)
        self.blstm = BLSTM(channels[-1] * bins, scaled(_HIDDEN, config.width))
        self.out_features = self.blstm.out_features

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, F, T) of `lengths` int64 (B,) as (B, T', C), zero past each end, and its frames int64 (B,)."""
        x = mask(spectrogram, lengths).unsqueeze(1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x, lengths = max_pool(norm(convolution(x), lengths, relu=True), lengths, _POOL)
        return self.blstm(x.flatten(1, 2).transpose(1, 2), lengths), lengths
