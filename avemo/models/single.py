"""The audio system and the video system: what fusion has to beat."""

from torch import Tensor

from avemo.models.config import ModelConfig
from avemo.models.head import linear_head
from avemo.models.output import Output
from avemo.models.pretrained import Pretrained
from avemo.models.stream import AudioStream, VideoStream


class AudioOnly(Pretrained):
    """Audio encoder, attention over time, classifier; called like every model, deaf to `video`."""

    streams = ("audio",)

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        self.audio = AudioStream(config, bins)
        self.classifier = linear_head(self.audio.out_features, classes, config.dropout)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        pooled = self.audio(audio, audio_lengths)
        return Output(self.classifier(pooled.vector), pooled.attention, None)


class VideoOnly(Pretrained):
    """Face-frame encoder, attention over time, classifier; called like every model, blind to `audio`."""

    streams = ("video",)

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        self.video = VideoStream(config, face_size)
        self.classifier = linear_head(self.video.out_features, classes, config.dropout)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        pooled = self.video(video, video_lengths)
        return Output(self.classifier(pooled.vector), None, pooled.attention)
