"""What a model sees: padded clips and their true lengths."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of B clips, padded with zeros to its longest.

    Attributes:
        audio: log spectrogram, float32 (B, F, T_a), F frequency bins.
        audio_lengths: int64 (B,), frames of each clip, at least 1.
        video: grey face crops, float32 (B, T_v, S, S).
        video_lengths: int64 (B,), frames of each clip, at least 1.
        labels: int64 (B,), class indices.
        names: the clips' paths as the manifest gives them.
    """

    audio: Tensor
    audio_lengths: Tensor
    video: Tensor
    video_lengths: Tensor
    labels: Tensor
    names: list[str]
