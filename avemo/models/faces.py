"""What the face encoder is trained by alone: the emotion of each crop, whatever comes before and after it."""

import torch
from torch import Tensor

from avemo.models.config import ModelConfig
from avemo.models.head import linear_head
from avemo.models.output import Output
from avemo.models.pretrained import Pretrained
from avemo.models.ragged import mask
from avemo.models.stream import VideoStream


class Faces(Pretrained):
    """Names the emotion of each face by the clip's label; of a clip by the mean of what its faces say.

    Called like every model, blind to `audio`. Clips of a batch count alike: where one is shorter than the longest, its
    faces come again in turn.
    """

    streams = ("video",)

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        self.video = VideoStream(config, face_size).encoder
        features = int(self.video.out_features)  # type: ignore[arg-type]
        self.classifier = linear_head(features, classes, config.dropout)

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        scores = self.classifier(self.video(video, video_lengths))
        probabilities = mask(scores.softmax(2).transpose(1, 2), video_lengths).sum(2)
        rows = torch.arange(len(scores), device=scores.device)
        crops = tuple(scores[rows, t % video_lengths] for t in range(scores.shape[1]))
        return Output((probabilities / video_lengths[:, None]).log(), None, None, trained=crops)
