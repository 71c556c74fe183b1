"""Models and batches small enough for a test."""

import torch
from torch import Tensor, nn

from avemo.data.batch import Batch
from avemo.models import ModelConfig, build_model
from avemo.models.config import (
    AttentionConfig,
    AudioEncoderConfig,
    FusionConfig,
    VideoEncoderConfig,
)

BINS, FACE_SIZE, CLASSES = 20, 16, 4


def tiny_config(name: str = "am_fbp", **changes: object) -> ModelConfig:
    """Odd widths, so that no size equals another by chance."""
    sizes: dict[str, object] = {
        "audio": AudioEncoderConfig((3, 5, 6, 4, 7), (1, 2), out_features=9, dropout=0.0),
        "video": VideoEncoderConfig((3, 6), out_features=11, dropout=0.0),
        "audio_attention": AttentionConfig(hidden=5, scale=1.7),
        "video_attention": AttentionConfig(hidden=4, scale=0.6),
        "fusion": FusionConfig(6, 3, 5, 2, trunks=3, dropout=0.0),
        "dropout": 0.0,
        "members": ({"name": "audio"}, {"name": "g_fbp"}) if name == "ensemble" else (),
    }
    return ModelConfig(name, **(sizes | changes))  # type: ignore[arg-type]


def tiny_model(name: str = "am_fbp", **changes: object) -> nn.Module:
    """A model in evaluation mode with weights from a fixed seed."""
    torch.manual_seed(1)
    config = tiny_config(name, **changes)
    return build_model(config, bins=BINS, face_size=FACE_SIZE, classes=CLASSES).eval()


def tiny_batch(
    audio_lengths: tuple[int, ...] = (61, 1, 7, 30), video_lengths: tuple[int, ...] = (8, 1, 2, 5)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random clips, padded with zeros as batches are."""
    generator = torch.Generator().manual_seed(2)
    a_len, v_len = torch.tensor(audio_lengths), torch.tensor(video_lengths)
    audio = torch.randn(len(a_len), BINS, int(a_len.max()), generator=generator)
    video = torch.randn(len(v_len), int(v_len.max()), FACE_SIZE, FACE_SIZE, generator=generator)
    for row in range(len(a_len)):
        audio[row, :, a_len[row] :] = 0
        video[row, v_len[row] :] = 0
    return audio, a_len, video, v_len


def whole_batch(
    audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor, labels: Tensor
) -> Batch:
    """A batch of clips that have both streams, and a face in each frame."""
    heard = torch.arange(audio.shape[2]) < audio_lengths[:, None]
    seen = torch.arange(video.shape[1]) < video_lengths[:, None]
    names = [""] * len(labels)
    return Batch(audio, audio_lengths, video, video_lengths, labels, names, heard, seen)
