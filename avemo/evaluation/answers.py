"""What a model says of a window, and what it would say if parts of it were hidden."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from avemo.data.batch import Batch
from avemo.data.features import Clip, FeatureConfig
from avemo.data.inputs import collate, to_sample

PART_SECONDS = 0.5
MOST_PARTS = 10
_FRAMES_AT_ONCE = 1024  # of video, in all clips of a batch


@dataclass(frozen=True)
class Answer:
    """What a model says of a window.

    Attributes:
        probabilities: float64 (classes,), in the model's order.
        audio_attention: float64 (T_a',), sums to 1; None if the model does not listen.
        video_attention: float64 (T_v,), sums to 1; None if the model does not look.
        hidden: what hiding costs, by stream; empty if that was not asked for.
    """

    probabilities: NDArray[np.float64]
    audio_attention: NDArray[np.float64] | None
    video_attention: NDArray[np.float64] | None
    hidden: dict[str, Hidden]


@dataclass(frozen=True)
class Hidden:
    """The probabilities when a stream is hidden: zeros, as a clip has them that lacks it.

    Attributes:
        whole: all of it, float64 (classes,).
        parts: each of equal parts in time, float64 (parts, classes).
    """

    whole: NDArray[np.float64]
    parts: NDArray[np.float64]


class Asker:
    """Asks a model about windows, one at a time.

    One at a time and never several, for the convolutions and products of PyTorch on processors give
    other last bits to a clip in a batch than to the same clip alone: so the probabilities are the same
    bits whatever else is asked.

    Args:
        model: in evaluation mode, on the CPU.
        features: what its inputs are.
        streams: that it attends to.
    """

    def __init__(self, model: nn.Module, features: FeatureConfig, streams: tuple[str, ...]) -> None:
        self.model, self.features, self.streams = model, features, streams

    @torch.inference_mode()
    def __call__(self, clip: Clip, *, hide: bool = False) -> Answer:
        """The answer to a window, with what hiding parts of it costs where `hide` is set."""
        batch = collate([to_sample(clip, self.features)])
        output = self.model(*batch[:4])
        audio, video = (
            None if weights is None else weights[0].double().numpy()
            for weights in (output.audio_attention, output.video_attention)
        )
        probabilities = output.logits[0].double().softmax(0).numpy()
        shown = [name for name in self.streams if name in clip.streams]
        hidden = {name: self._hide(batch, name) for name in shown} if hide else {}
        return Answer(probabilities, audio, video, hidden)

    def _hide(self, batch: Batch, stream: str) -> Hidden:
        seconds = int(batch.video_lengths[0]) / self.features.fps
        count = min(MOST_PARTS, max(1, round(seconds / PART_SECONDS)))
        inputs = {"audio": batch.audio[0], "video": batch.video[0]}
        along = {"audio": 1, "video": 0}[stream]
        frames = inputs[stream].shape[along]
        edges = [round(frames * i / count) for i in range(count + 1)]
        variants = [inputs[stream].clone() for _ in range(count + 1)]
        variants[0].zero_()
        for part, (first, after) in enumerate(itertools.pairwise(edges)):
            variants[part + 1].narrow(along, first, after - first).zero_()
        at_once = max(1, _FRAMES_AT_ONCE // len(inputs["video"]))
        rows = []
        for first in range(0, len(variants), at_once):
            some = {stream: torch.stack(variants[first : first + at_once])}
            size = len(some[stream])
            whole = {name: some.get(name, x.expand(size, *x.shape)) for name, x in inputs.items()}
            lengths = batch.audio_lengths.expand(size), batch.video_lengths.expand(size)
            output = self.model(whole["audio"], lengths[0], whole["video"], lengths[1])
            rows.append(output.logits.double().softmax(1).numpy())
        found = np.concatenate(rows)
        return Hidden(found[0], found[1:])
