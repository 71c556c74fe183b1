"""Random changes to training clips that leave the emotion as it is. All are off by default."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avemo.data.inputs import AUDIO_STD_DB, Sample


@dataclass(frozen=True)
class AugmentConfig:
    """How much training clips are changed. Zero means: not at all.

    Attributes:
        flip: probability that the faces of a clip are mirrored.
        shift: largest shift of the faces of a clip, as a share of their side.
        contrast: largest change of the faces' contrast, as a share of it; brightness moves by as
            much.
        gain_db: largest change of the sound's level, dB.
        time_mask: largest number of spectrogram frames blanked out in one stretch, as a share of
            the clip.
        bin_mask: largest number of frequency bins blanked out in one stretch, as a share of them.
        face_mask: largest side of a square blanked out in all faces, as a share of their side.
        modality_dropout: probability that a clip loses one of its two streams, so that fusion
            learns to do with the other one.
    """

    flip: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    gain_db: float = 0.0
    time_mask: float = 0.0
    bin_mask: float = 0.0
    face_mask: float = 0.0
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "flip",
            "shift",
            "contrast",
            "time_mask",
            "bin_mask",
            "face_mask",
            "modality_dropout",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.gain_db < 0:
            raise ValueError(f"augment.gain_db must not be negative, got {self.gain_db}")


def augment(
    sample: Sample, config: AugmentConfig, rng: np.random.Generator, *, waveform: bool = False
) -> Sample:
    """Changes one training clip at random.

    Every number is drawn whatever the settings are, so that turning one change off leaves the
    others as they were. Blanked parts become 0, the mean of either input; frames without a face
    stay 0 everywhere. A waveform has no bins to blank out.
    """
    draw = rng.random(16)
    audio = _gain(sample.audio, config.gain_db * (2 * draw[0] - 1), waveform)
    audio = _blank(audio, 1, config.time_mask, draw[1], draw[2])
    audio = _blank(audio, 0, 0.0 if waveform else config.bin_mask, draw[3], draw[4])
    video = sample.video[:, :, ::-1] if draw[5] < config.flip else sample.video
    video = _shift(video, config.shift * (2 * draw[6:8] - 1))
    video = _contrast(video, sample.seen, config.contrast * (2 * draw[8:10] - 1))
    video = _blank_square(video, config.face_mask * draw[10], draw[11], draw[12])
    changed = sample._replace(audio=np.ascontiguousarray(audio), video=np.ascontiguousarray(video))
    for stream, values in (("audio", sample.audio), ("video", sample.video)):
        if not values.any():  # a clip without it: its place stays empty, and the other is not lost
            return changed.without(stream)
    if draw[13] < config.modality_dropout:
        return changed.without("audio" if draw[14] < 0.5 else "video")
    return changed


def _gain(audio: NDArray[np.float32], decibels: float, waveform: bool) -> NDArray[np.float32]:
    if waveform:
        return audio * np.float32(10 ** (decibels / 20))
    return audio + np.float32(decibels / AUDIO_STD_DB)


def _blank(
    audio: NDArray[np.float32], axis: int, largest: float, width_draw: float, place_draw: float
) -> NDArray[np.float32]:
    size = audio.shape[axis]
    width = int(width_draw * (largest * size + 1)) if largest else 0
    if not width:
        return audio
    first = int(place_draw * (size - width + 1))
    audio = audio.copy()
    np.moveaxis(audio, axis, 0)[first : first + width] = 0
    return audio


def _shift(video: NDArray[np.float32], share: NDArray[np.float64]) -> NDArray[np.float32]:
    dy, dx = (round(float(s) * video.shape[1]) for s in share)
    if not dy and not dx:
        return video
    size = video.shape[1]
    rows = np.clip(np.arange(size) - dy, 0, size - 1)
    columns = np.clip(np.arange(size) - dx, 0, size - 1)
    return video[:, rows][:, :, columns]


def _contrast(
    video: NDArray[np.float32], seen: NDArray[np.bool_], change: NDArray[np.float64]
) -> NDArray[np.float32]:
    if not change.any():
        return video
    changed = video * np.float32(1 + change[0]) + np.float32(change[1])
    return np.where(seen[:, None, None], changed, np.float32(0))


def _blank_square(
    video: NDArray[np.float32], share: float, y_draw: float, x_draw: float
) -> NDArray[np.float32]:
    side = round(share * video.shape[1])
    if not side:
        return video
    y, x = (int(d * (video.shape[1] - side + 1)) for d in (y_draw, x_draw))
    video = video.copy()
    video[:, y : y + side, x : x + side] = 0
    return video
