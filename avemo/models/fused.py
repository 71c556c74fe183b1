"""The audio-visual network: two attention streams, a fusion of them, and a linear classifier.

With the fusion `am_fbp` it is the network of Zhou, Du et al. (2021), "Information Fusion in
Attention Networks Using Adaptive and Multi-Level Factorized Bilinear Pooling for Audio-Visual
Emotion Recognition".
"""

import torch
from torch import Tensor, nn

from avemo.models.config import ModelConfig
from avemo.models.output import BOTH, Output
from avemo.models.parts import FUSIONS
from avemo.models.pretrained import Pretrained
from avemo.models.stream import AudioStream, VideoStream


class AudioVisual(Pretrained):
    """Two attention streams, fused, and a linear classifier.

    The parts of the fused vector are normalised one by one before they are classified: a trunk
    holds only a share of the attention, so its products are smaller by orders of magnitude and
    would drown in the global ones.

    Args:
        config: sizes of all parts; its name is that of the fusion.
        bins: frequency bins of the spectrograms.
        face_size: height and width of the face crops.
        classes: number of emotions.
    """

    streams = BOTH

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        fusion = FUSIONS[config.name]
        trunks = config.fusion.trunks if "trunks" in fusion.inputs else 1
        self.audio = AudioStream(config, bins, trunks)
        self.video = VideoStream(config, face_size, trunks)
        widths = self.audio.out_features, self.video.out_features
        self.inputs = fusion.inputs
        self.fusion = fusion.build(*widths, config.fusion)
        self.levels = fusion.levels(*widths, config.fusion)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.levels)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(sum(self.levels), classes)
        self.stream_classifiers = nn.ModuleList(
            nn.Linear(width, classes) for width in widths if config.stream_loss
        )

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
        fused = self.fusion(*(getattr(s, name) for name in self.inputs for s in (a, v)))
        levels = fused.split(self.levels, dim=1)
        fused = torch.cat([norm(x) for norm, x in zip(self.norms, levels, strict=True)], dim=1)
        logits = self.classifier(self.dropout(fused))
        trained = (
            (logits, *self._by_stream(a.vector, v.vector))
            if self.training and self.stream_classifiers
            else ()
        )
        return Output(logits, a.attention, v.attention, trained)

    def _by_stream(self, *vectors: Tensor) -> list[Tensor]:
        """What each stream's vector (B, C) says alone: logits (B, classes)."""
        return [
            classify(self.dropout(x))
            for classify, x in zip(self.stream_classifiers, vectors, strict=True)
        ]
