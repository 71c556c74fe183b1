"""What a model sees: padded clips and their true lengths."""

from __future__ import annotations

from collections.abc import Callable
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
        heard: bool (B, T_a), the frames of sound that there are: not those of padding, and none where
            a clip has no sound, whose `audio` is zeros as long as its `video`.
        seen: bool (B, T_v), the frames in which a face is seen; none where a clip has no picture,
            whose `video` is zeros as long as its `audio`.
    """

    audio: Tensor
    audio_lengths: Tensor
    video: Tensor
    video_lengths: Tensor
    labels: Tensor
    names: list[str]
    heard: Tensor
    seen: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with a function applied to each of its tensors."""
        return Batch._make(function(x) if isinstance(x, Tensor) else x for x in self)

    def without(self, stream: str) -> Batch:
        """The batch of clips that all lack one stream, "audio" or "video", as `Sample.without` has one of them."""
        if stream == "audio":
            return self._replace(
                audio=torch.zeros_like(self.audio), heard=torch.zeros_like(self.heard)
            )
        return self._replace(video=torch.zeros_like(self.video), seen=torch.zeros_like(self.seen))


def no_clips(bins: int, face_size: int) -> Batch:
    """A batch of no clips: the share of a process for which none are left."""
    none, never = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, dtype=torch.bool)
    sound, faces = torch.zeros(0, bins, 1), torch.zeros(0, 1, face_size, face_size)
    return Batch(sound, none, faces, none, none, [], never, never)


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
        torch.ones(size, audio_frames, dtype=torch.bool),
        torch.ones(size, video_frames, dtype=torch.bool),
    )
