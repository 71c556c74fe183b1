"""The audio-visual network: adaptive and multi-level factorized bilinear pooling of two streams.

Zhou, Du et al. (2021), "Information Fusion in Attention Networks Using Adaptive and Multi-Level
Factorized Bilinear Pooling for Audio-Visual Emotion Recognition".
"""

import torch
from torch import Tensor, nn

from avemo.models.config import ModelConfig
from avemo.models.output import Output
from avemo.models.stream import AudioStream, VideoStream
from fbp_kernels import AdaptiveMultiLevelFBP


class AMFBP(nn.Module):
    """Two attention streams, fused as whole clips and trunk by trunk, and a linear classifier.

    The global and the intra-trunk outputs are normalised one by one before they are concatenated:
    a trunk holds only a share of the attention, so its products are smaller by orders of
    magnitude and would drown in the global ones.

    Args:
        config: sizes of all parts.
        bins: frequency bins of the spectrograms.
        face_size: height and width of the face crops.
        classes: number of emotions.
    """

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        fusion = config.fusion
        self.audio = AudioStream(config, bins, fusion.trunks)
        self.video = VideoStream(config, face_size, fusion.trunks)
        self.fusion = AdaptiveMultiLevelFBP(
            self.audio.out_features,
            self.video.out_features,
            fusion.global_features,
            fusion.global_factor,
            fusion.trunk_features,
            fusion.trunk_factor,
            fusion.trunks,
            adaptive=fusion.adaptive,
            dropout=fusion.dropout,
            backend="reference",
        )
        self.levels = [fusion.global_features, fusion.trunk_features]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.levels)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(sum(self.levels), classes)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        """Classifies a batch.

        Args:
            audio: log spectrograms, (B, F, T_a), padded at the end.
            audio_lengths: int64 (B,), 1 to T_a.
            video: grey face crops, (B, T_v, S, S), padded at the end.
            video_lengths: int64 (B,), 1 to T_v.
        """
        a = self.audio(audio, audio_lengths)
        v = self.video(video, video_lengths)
        fused = self.fusion(a.vector, v.vector, a.trunks, v.trunks)
        levels = fused.split(self.levels, dim=1)
        fused = torch.cat([norm(x) for norm, x in zip(self.norms, levels, strict=True)], dim=1)
        return Output(self.classifier(self.dropout(fused)), a.attention, v.attention)
