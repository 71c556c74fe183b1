"""One stream of the network: an encoder and the attention over its frames."""

from typing import NamedTuple

from torch import Tensor, nn

from avemo.models.audio import AudioEncoder
from avemo.models.config import AttentionConfig, ModelConfig
from avemo.models.video import VideoEncoder
from fbp_kernels import AttentionPool


class Pooled(NamedTuple):
    """A stream after attention.

    Attributes:
        vector: (B, C), the weighted sum over all frames.
        trunks: (B, H, C), the weighted sums over H equal parts of each clip; they add up to `vector`.
        attention: (B, T), the weights.
    """

    vector: Tensor
    trunks: Tensor
    attention: Tensor


class AudioStream(nn.Module):
    """Log spectrograms (B, F, T) of given lengths to `Pooled` with C = `config.audio.out_features`."""

    def __init__(self, config: ModelConfig, bins: int, trunks: int = 1) -> None:
        super().__init__()
        self.out_features = config.audio.out_features
        self.encoder = AudioEncoder(bins, config.audio)
        self.attention = _attention(self.out_features, config.audio_attention, trunks)

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> Pooled:
        encoded, lengths = self.encoder(spectrogram, lengths)
        return Pooled(*self.attention(encoded, lengths))


class VideoStream(nn.Module):
    """Face crops (B, T, S, S) of given lengths to `Pooled` with D = `config.video.out_features`."""

    def __init__(self, config: ModelConfig, face_size: int, trunks: int = 1) -> None:
        super().__init__()
        self.out_features = config.video.out_features
        self.encoder = VideoEncoder(face_size, config.video)
        self.attention = _attention(self.out_features, config.video_attention, trunks)

    def forward(self, faces: Tensor, lengths: Tensor) -> Pooled:
        return Pooled(*self.attention(self.encoder(faces, lengths), lengths))


def _attention(features: int, config: AttentionConfig, trunks: int) -> AttentionPool:
    return AttentionPool(features, config.hidden, trunks, config.scale, backend="reference")
