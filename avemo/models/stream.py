"""One stream of the network: an encoder and the attention over its frames."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from avemo.models.config import ModelConfig
from avemo.models.parts import ATTENTIONS, AUDIO_ENCODERS, VIDEO_ENCODERS
from avemo.models.transformer import FrameTransformer, SpeechTransformer, is_pretrained
from avemo.models.video import seen_frames

Part = TypeVar("Part")


class Pooled(NamedTuple):
    """A stream after attention.

    Attributes:
        vector: (B, C), the weighted sum over all frames.
        trunks: (B, H, C), the weighted sums over H equal parts of each clip; they add up to `vector`.
        attention: (B, T), the weights; None where it is no attention.
    """

    vector: Tensor
    trunks: Tensor
    attention: Tensor | None


class AudioStream(nn.Module):
    """Log spectrograms (B, F, T) of given lengths to `Pooled`."""

    def __init__(self, config: ModelConfig, bins: int, trunks: int = 1) -> None:
        super().__init__()
        encoder = _encoder("audio", AUDIO_ENCODERS, SpeechTransformer, config.audio.encoder)
        attention = _part("model.audio_attention.kind", ATTENTIONS, config.audio_attention.kind)
        self.encoder = encoder(bins, config.audio)
        self.out_features: int = self.encoder.out_features  # type: ignore[assignment]
        self.positions: int = self.encoder.positions  # type: ignore[assignment]
        self.attention = attention(self.encoder, trunks, config.audio_attention)

    def forward(self, spectrogram: Tensor, lengths: Tensor) -> Pooled:
        vector, trunks, weights = self.attention(*self.encoder(spectrogram, lengths))
        if weights is not None:
            weights = weights.unflatten(1, (-1, self.positions)).sum(2)
        return Pooled(vector, trunks, weights)


class VideoStream(nn.Module):
    """Face crops (B, T, S, S) of given lengths to `Pooled`; a frame without a face has no weight.

    A clip without any face has a constant vector of length 1, and of length 1 / H in each trunk: a product with
    nothing would be nothing, whatever the other stream says. (Sound that is missing is zeros to its encoder, which
    answers with what it has learned of them.)
    """

    def __init__(self, config: ModelConfig, face_size: int, trunks: int = 1) -> None:
        super().__init__()
        encoder = _encoder("video", VIDEO_ENCODERS, FrameTransformer, config.video.encoder)
        attention = _part("model.video_attention.kind", ATTENTIONS, config.video_attention.kind)
        self.encoder = encoder(face_size, config.video)
        self.out_features: int = self.encoder.out_features  # type: ignore[assignment]
        self.attention = attention(self.encoder, trunks, config.video_attention)

    def forward(self, faces: Tensor, lengths: Tensor) -> Pooled:
        seen = seen_frames(faces, lengths)
        encoded = self.encoder(faces, lengths).where(seen[..., None], 0.0)
        pooled = among(seen, Pooled(*self.attention(encoded, lengths)))
        there, absent = seen.any(1)[:, None], self.out_features**-0.5
        return pooled._replace(
            vector=pooled.vector.where(there, absent),
            trunks=pooled.trunks.where(there[..., None], absent / pooled.trunks.shape[1]),
        )


def _encoder(stream: str, parts: Mapping[str, Part], pretrained: Part, name: str) -> Part:
    return pretrained if is_pretrained(name) else _part(f"model.{stream}.encoder", parts, name)


def _part(setting: str, parts: Mapping[str, Part], name: str) -> Part:
    if name not in parts:
        raise ValueError(f"{setting} must be one of {', '.join(parts)}; got {name!r}")
    return parts[name]


def among(frames: Tensor, pooled: Pooled) -> Pooled:
    """Shares the attention out among some of the frames only, bool (B, T); the others are zero.

    A softmax over some frames is the one over all, divided by what those got. Zero frames add nothing
    to the sums, so that these are divided alike, and every trunk keeps its time. Without weights,
    there is nothing to share.
    """
    if pooled.attention is None:
        return pooled
    weights = pooled.attention * frames
    share = weights.sum(1, dtype=torch.promote_types(weights.dtype, torch.float32))
    share = share.where(share > 0, 1.0)[:, None]  # 0 where there are none: so are the sums
    return Pooled(
        (pooled.vector / share).to(pooled.vector.dtype),
        (pooled.trunks / share[..., None]).to(pooled.trunks.dtype),
        (weights / share).to(weights.dtype),
    )
