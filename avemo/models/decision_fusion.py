"""Decision fusion: two systems of one stream each, and a weighted mean of what they decide.

What Zhou, Du et al. (2021) compare fusion in the network with, in Table VI. Each stream has a
classifier of its own and is trained by its own loss; the posteriors' weight is not trained but fitted on
the validation split.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from avemo.data.batch import Batch
from avemo.models.config import ModelConfig
from avemo.models.head import linear_head
from avemo.models.output import BOTH, Output
from avemo.models.pretrained import Pretrained
from avemo.models.stream import AudioStream, VideoStream

_STEPS = 100  # of the weight, from 0 to 1


class DecisionFusion(Pretrained):
    """The posteriors of an audio system and a video system, `share` times the one and the rest the other.

    Args:
        config: sizes of all parts.
        bins: frequency bins of the spectrograms.
        face_size: height and width of the face crops.
        classes: number of emotions.

    Attributes:
        share: what the audio system has to say, 0 to 1: a half until it is fitted.
    """

    streams = BOTH
    share: Tensor

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        super().__init__()
        self.audio = AudioStream(config, bins)
        self.video = VideoStream(config, face_size)
        self.audio_classifier = linear_head(self.audio.out_features, classes, config.dropout)
        self.video_classifier = linear_head(self.video.out_features, classes, config.dropout)
        self.register_buffer("share", torch.tensor(0.5))

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        """Classifies a batch as `AudioVisual`; the logits are logarithms of probabilities."""
        a = self.audio(audio, audio_lengths)
        v = self.video(video, video_lengths)
        decided = self.audio_classifier(a.vector), self.video_classifier(v.vector)
        logits = _mixed(self.share, *decided)
        return Output(logits, a.attention, v.attention, trained=decided)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Sets `share` to what gets most clips right; of equals the one with the least cross-entropy.

        Args:
            batches: of the validation split, on the model's device.
        """
        outputs = [(self(*batch[:4]).trained, batch.labels) for batch in batches]
        labels = torch.cat([label for _, label in outputs])
        heard, seen = (torch.cat([scores[i] for scores, _ in outputs]) for i in (0, 1))

        def merit(share: float) -> tuple[int, float]:
            logits = _mixed(torch.tensor(share, device=heard.device), heard, seen)
            right = int((logits.argmax(1) == labels).sum())
            return right, -nn.functional.nll_loss(logits, labels).item()

        best = max((step / _STEPS for step in range(_STEPS + 1)), key=merit)
        self.share.fill_(best)


def _mixed(share: Tensor, heard: Tensor, seen: Tensor) -> Tensor:
    """The logarithm of `share` of the one's probabilities and the rest of the other's."""
    least = math.log(torch.finfo(torch.float32).tiny)  # a stream without a say is no infinity
    return torch.logaddexp(
        heard.log_softmax(1) + share.log().clamp(min=least),
        seen.log_softmax(1) + (1 - share).log().clamp(min=least),
    )
