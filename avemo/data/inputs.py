"""From stored clips to what a network takes: the one place for it, in training and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from avemo.data.batch import Batch
from avemo.data.features import (
    FACE_MEAN,
    FACE_STD,
    Clip,
    FeatureConfig,
    dequantize,
    fill_missing,
    samples_of,
)
from avemo.data.media import BOTH

AUDIO_MEAN_DB, AUDIO_STD_DB = -65.0, 20.0
"""About the mean and deviation of speech over time and frequency. Constants, not a corpus's own
statistics, so that a model hears the same whatever it was trained with."""


class Sample(NamedTuple):
    """One clip as a network takes it.

    Attributes:
        audio: float32 (F, T_a), a spectrogram of about zero mean and unit deviation, or a waveform
            between -1 and 1 in stretches of F samples.
        video: float32 (T_v, S, S), zero mean and unit deviation over the clip; a frame without a
            face is 0 everywhere, which no picture is, and which is how a model knows it.
        label: class index; -1 where it is not known.
        name: the clip's path.
        heard: bool (T_a,), the frames that have sound: all, or none of a clip without it.
        seen: bool (T_v,), the frames in which a face is seen: none of a clip without a picture.
    """

    audio: NDArray[np.float32]
    video: NDArray[np.float32]
    label: int
    name: str
    heard: NDArray[np.bool_]
    seen: NDArray[np.bool_]

    def without(self, stream: str) -> Sample:
        """The sample of a clip that lacks one stream, "audio" or "video": zeros, the mean of either
        input, of which no frame is heard or seen."""
        if stream == "audio":
            return self._replace(audio=np.zeros_like(self.audio), heard=np.zeros_like(self.heard))
        return self._replace(video=np.zeros_like(self.video), seen=np.zeros_like(self.seen))


def to_sample(clip: Clip, config: FeatureConfig, label: int = -1, name: str = "") -> Sample:
    """Maps a stored clip to network inputs; a stream that it lacks is as in :meth:`Sample.without`."""
    streams, clip = clip.streams, fill_missing(clip, config)
    audio = _sound(clip.audio, config)
    video = (clip.video.astype(np.float32) - np.float32(FACE_MEAN)) / np.float32(FACE_STD)
    video[~clip.valid] = 0
    heard = np.ones(audio.shape[1], bool)
    sample = Sample(np.ascontiguousarray(audio), video, label, name, heard, clip.valid)
    for stream in BOTH:
        if stream not in streams:
            sample = sample.without(stream)
    return sample


def _sound(audio: NDArray[Any], config: FeatureConfig) -> NDArray[np.float32]:
    """What a network hears, (F, T_a)."""
    if config.sound == "waveform":
        return samples_of(audio).reshape(audio.shape).T
    return (dequantize(audio, config).T - np.float32(AUDIO_MEAN_DB)) / np.float32(AUDIO_STD_DB)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads samples with zeros to the longest of them."""
    audio_lengths = torch.tensor([s.audio.shape[1] for s in samples])
    video_lengths = torch.tensor([len(s.video) for s in samples])
    audio = torch.zeros(len(samples), samples[0].audio.shape[0], int(audio_lengths.max()))
    video = torch.zeros(len(samples), int(video_lengths.max()), *samples[0].video.shape[1:])
    heard = torch.zeros(len(samples), audio.shape[2], dtype=torch.bool)
    seen = torch.zeros(len(samples), video.shape[1], dtype=torch.bool)
    for row, sample in enumerate(samples):
        audio[row, :, : sample.audio.shape[1]] = torch.from_numpy(sample.audio)
        video[row, : len(sample.video)] = torch.from_numpy(sample.video)
        heard[row, : len(sample.heard)] = torch.from_numpy(sample.heard)
        seen[row, : len(sample.seen)] = torch.from_numpy(sample.seen)
    labels = torch.tensor([s.label for s in samples])
    names = [s.name for s in samples]
    return Batch(audio, audio_lengths, video, video_lengths, labels, names, heard, seen)
