"""From stored clips to what a network takes: the one place for it, in training and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avemo.data.batch import Batch
from avemo.data.features import FACE_MEAN, FACE_STD, Clip, FeatureConfig, dequantize

AUDIO_MEAN_DB, AUDIO_STD_DB = -65.0, 20.0
"""About the mean and deviation of speech over time and frequency. Constants, not a corpus's own
statistics, so that a model hears the same whatever it was trained with."""


class Sample(NamedTuple):
    """One clip as a network takes it.

    Attributes:
        audio: float32 (F, T_a), about zero mean and unit deviation.
        video: float32 (T_v, S, S), zero mean and unit deviation over the clip.
        label: class index; -1 where it is not known.
        name: the clip's path.
    """

    audio: NDArray[np.float32]
    video: NDArray[np.float32]
    label: int
    name: str


def to_sample(clip: Clip, config: FeatureConfig, label: int = -1, name: str = "") -> Sample:
    """Maps a stored clip to network inputs."""
    audio = (dequantize(clip.audio, config).T - np.float32(AUDIO_MEAN_DB)) / np.float32(
        AUDIO_STD_DB
    )
    video = (clip.video.astype(np.float32) - np.float32(FACE_MEAN)) / np.float32(FACE_STD)
    return Sample(np.ascontiguousarray(audio), video, label, name)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads samples with zeros to the longest of them."""
    audio_lengths = torch.tensor([s.audio.shape[1] for s in samples])
    video_lengths = torch.tensor([len(s.video) for s in samples])
    audio = torch.zeros(len(samples), samples[0].audio.shape[0], int(audio_lengths.max()))
    video = torch.zeros(len(samples), int(video_lengths.max()), *samples[0].video.shape[1:])
    for row, sample in enumerate(samples):
        audio[row, :, : sample.audio.shape[1]] = torch.from_numpy(sample.audio)
        video[row, : len(sample.video)] = torch.from_numpy(sample.video)
    labels = torch.tensor([s.label for s in samples])
    return Batch(audio, audio_lengths, video, video_lengths, labels, [s.name for s in samples])
