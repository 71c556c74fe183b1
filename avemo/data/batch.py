"""What a model sees: padded clips and their true lengths."""

from typing import NamedTuple

import torch
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


def random_batch(
    *,
    size: int,
    bins: int,
    audio_frames: int,
    face_size: int,
    video_frames: int,
    classes: int,
    seed: int = 0,
) -> Batch:
    """A batch of noise for measurements: full-length clips, standard normal values, random labels."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(size, bins, audio_frames, generator=generator),
        torch.full((size,), audio_frames),
        torch.randn(size, video_frames, face_size, face_size, generator=generator),
        torch.full((size,), video_frames),
        torch.randint(classes, (size,), generator=generator),
        [f"noise {i}" for i in range(size)],
    )
