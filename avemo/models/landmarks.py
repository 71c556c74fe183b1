"""Distances between landmarks of the face, as a network of pictures that finds the landmarks itself.

Liu et al. (2018), "Multi-Feature Based Emotion Recognition for Video Clips", have such distances beside convolutional
networks. Its text was not at hand. Which distances they are is known from public code that names the paper as their
source: 34 between the 68 points of the iBUG annotation (Sagonas et al. 2013), of which six are halves or sums of others
and tell a linear layer nothing. That code has 49-58 where the left side of the face has 53-55; here it is its mirror
image, 49-59. What the authors find landmarks with, and how distances are scaled, it does not say: ours are regressed
from the crop by the face encoder's convolutions, and normalised over the distances of a face.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from avemo.models.config import NetworkConfig, VideoEncoderConfig
from avemo.models.video import VideoEncoder, seen_frames

POINTS = 68
"""Of a face: jaw 0 to 16, brows to 26, nose to 35, eyes to 47, lips to 67, as seen from left to right."""

_Place = tuple[int, ...]
_ONE_UPPER_LID, _ONE_LOWER_LID = (37, 38), (40, 41)
_OTHER_UPPER_LID, _OTHER_LOWER_LID = (43, 44), (46, 47)
_NOSE, _CHIN, _UPPER_LIP, _LOWER_LIP = (33,), (8,), (51,), (57,)
_CORNER, _OTHER_CORNER = (48,), (54,)  # of the mouth

# From where to where: each place is the middle of some landmarks.
DISTANCES: tuple[tuple[_Place, _Place], ...] = (
    # brows to eyes, outside and inside
    ((17,), (36,)),
    ((26,), (45,)),
    ((21,), (39,)),
    ((22,), (42,)),
    # how far the eyes are open, and how wide they are
    (_ONE_UPPER_LID, _ONE_LOWER_LID),
    ((37,), (41,)),
    ((38,), (40,)),
    (_OTHER_UPPER_LID, _OTHER_LOWER_LID),
    ((43,), (47,)),
    ((44,), (46,)),
    ((36,), (39,)),
    ((42,), (45,)),
    # nose to brows, lips and chin
    ((17, 26), _NOSE),
    ((21, 22), _NOSE),
    (_NOSE, _UPPER_LIP),
    (_NOSE, _CORNER),
    (_NOSE, _OTHER_CORNER),
    ((*_CORNER, *_OTHER_CORNER), _NOSE),
    (_NOSE, _CHIN),
    # corners of the mouth to eyes
    ((39,), _CORNER),
    ((42,), _OTHER_CORNER),
    (_CORNER, _ONE_UPPER_LID + _ONE_LOWER_LID),
    (_OTHER_CORNER, _OTHER_UPPER_LID + _OTHER_LOWER_LID),
    # the mouth: how wide, how high, how far open
    (_CORNER, _OTHER_CORNER),
    (_UPPER_LIP, _LOWER_LIP),
    ((49,), (59,)),
    ((53,), (55,)),
    ((62,), (66,)),
)


# By distance, what of each landmark its vector is made of.
_FROM_TO = [
    [(i in one) / len(one) - (i in other) / len(other) for i in range(POINTS)]
    for one, other in DISTANCES
]


class LandmarkDistances(nn.Module):
    """Finds the landmarks of each face and gives the distances between them.

    Where it starts from weights (`avemo pretrain-landmarks`), these are not trained any further: the points would cease
    to be landmarks. Without, training puts the points wherever they help, and they are landmarks in name alone.

    Args:
        face_size: height and width of the face crops.
        config: channels of the convolutions.
        network: whether it has weights to start from.
    """

    def __init__(
        self,
        face_size: int,
        config: VideoEncoderConfig,
        network: NetworkConfig = NetworkConfig(),  # noqa: B008, it is frozen
    ) -> None:
        super().__init__()
        sizes = replace(config, out_features=2 * POINTS, dropout=0.0)
        self.find = VideoEncoder(face_size, sizes)
        self.norm = nn.LayerNorm(len(DISTANCES))
        self.out_features = len(DISTANCES)
        self.frozen = network.weights is not None
        if self.frozen:
            self.find.requires_grad_(False).eval()  # who trains need not call `train`

    def train(self, mode: bool = True) -> "LandmarkDistances":
        """As every module; statistics of landmarks that stay are not trained either."""
        super().train(mode)
        if self.frozen:
            self.find.eval()
        return self

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Encodes (B, T, S, S) of `lengths` int64 (B,) as (B, T, 28), zero where there is no face."""
        between = self.norm(distances(self.points(faces, lengths)))
        return between.where(seen_frames(faces, lengths)[..., None], 0.0)

    def points(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """The landmarks of each face: (B, T, S, S) to (B, T, 68, 2), x and y in shares of its side from the middle."""
        found: Tensor = self.find(faces, lengths)
        return found.unflatten(2, (POINTS, 2))


def distances(points: Tensor) -> Tensor:
    """The distances of `DISTANCES`: landmarks (..., 68, 2) to (..., 28), in their unit."""
    return torch.linalg.vector_norm(points.new_tensor(_FROM_TO) @ points, dim=-1)
