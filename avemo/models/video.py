"""The face-frame encoder: one small convolutional network for every frame of every clip.

A frame comes with its difference from the clip's usual face. An expression is a departure from how
this face looks otherwise; the difference shows it free of identity, which a network that
sees few people would learn by heart. The usual face is a median over time, not a mean: a mean has some of the
expression in it, so that a neutral frame would differ from it by the expression's opposite, say the
emotion as well as any other, and leave attention with nothing to choose by.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from avemo.models.config import VideoEncoderConfig
from avemo.models.ragged import inside
from fbp_kernels import BatchNormReLU, Conv2d

_SPREAD = 9  # frames that the usual face is the median of


class VideoEncoder(nn.Module):
    """Encodes the face crops of clips; padding and frames without a face are not computed.

    Every stage is a 3x3 convolution with stride 2, batch normalisation and ReLU. A dense layer reads
    what is left of the picture: where in the face a feature sits matters, so there is no average
    over positions. Statistics of the batch normalisation see faces only.

    Args:
        face_size: S, height and width of the crops.
        config: channels and output width.

    Raises:
        ValueError: `face_size` is too small to be halved by every stage.
    """

    def __init__(self, face_size: int, config: VideoEncoderConfig) -> None:
        super().__init__()
        smallest = 1 << len(config.channels)
        if face_size < smallest:
            raise ValueError(
                f"face_size must be at least {smallest} for {len(config.channels)} stages; "
                f"got {face_size}"
            )
        side = -(-face_size // smallest)
        # The numbers are those of saved weights: the ReLU was a module of its own once, the third.
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 2  # the frame, and its difference from the usual face
        for i, out in enumerate(config.channels):
            stages[f"{3 * i}"] = Conv2d(
                channels, out, 3, stride=2, padding=1, bias=False, backend="reference"
            )
            stages[f"{3 * i + 1}"] = BatchNormReLU(out, backend="reference")
            channels = out
        # The layout that convolutions with many small pictures are fastest in, on CPUs and GPUs.
        self.stages = nn.Sequential(stages).to(
            memory_format=torch.channels_last  # type: ignore[call-overload]
        )
        self.out_features = config.out_features
        self.dropout = nn.Dropout2d(config.dropout)
        self.project = nn.Linear(channels * side * side, config.out_features)

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            faces: (B, T, S, S), grey, padded at the end to the longest clip; a frame that is 0
                everywhere has no face.
            lengths: int64 (B,), frames of each clip, 1 to T.

        Returns:
            (B, T, D), zero past each clip's end and in frames without a face.
        """
        seen = seen_frames(faces, lengths)
        faces = faces.masked_fill(~seen[..., None, None], 0.0)
        usual = usual_face(faces, seen)
        # Channels last from the start, as the first convolution wants them.
        pair = torch.stack([faces, faces - usual[:, None]], dim=-1)  # (B, T, S, S, 2)
        if (
            torch.compiler.is_exporting()
        ):  # how many frames are seen, no exported graph can depend on
            every = self._encode(pair.flatten(0, 1)).unflatten(0, seen.shape)
            return every.masked_fill(~seen[..., None], 0.0)
        x = self._encode(pair[seen])
        encoded = x.new_zeros(*faces.shape[:2], x.shape[1])
        encoded[seen] = x
        return encoded

    def _encode(self, pairs: Tensor) -> Tensor:
        """Frames and their differences from the usual face, (N, S, S, 2), to (N, D)."""
        return self.project(self.dropout(self.stages(pairs.permute(0, 3, 1, 2))).flatten(1))


def usual_face(faces: Tensor, seen: Tensor) -> Tensor:
    """The median of nine frames with a face that are spread evenly over a clip.

    Args:
        faces: (B, T, S, S), finite; those that are not seen are 0.
        seen: bool (B, T), which have a face.

    Returns:
        (B, S, S); 0 where there is no face.
    """
    count = seen.sum(1)
    nth = (2 * torch.arange(_SPREAD, device=seen.device) + 1) * count[:, None] // (2 * _SPREAD)
    # The place of the n-th face, counted from 0: the first frame up to which there are more than n.
    places = (seen.long().cumsum(1)[:, None] > nth[..., None]).int().argmax(2)
    chosen = faces[torch.arange(faces.shape[0], device=seen.device)[:, None], places]
    return _middle(list(chosen.unbind(1)))


def _middle(values: list[Tensor]) -> Tensor:
    """The median of an odd number of tensors, element by element: a network of exchanges, which takes a
    hundredth of the time of PyTorch's sort over a dimension so short."""
    count = len(values)
    for turn in range(count):
        for i in range(turn % 2, count - 1, 2):
            one, other = values[i], values[i + 1]
            values[i], values[i + 1] = one.minimum(other), one.maximum(other)
    return values[count // 2]


def seen_frames(faces: Tensor, lengths: Tensor) -> Tensor:
    """Which frames of clips have a face: those that are not 0 everywhere.

    Args:
        faces: (B, T, S, S), padded at the end with whatever.
        lengths: int64 (B,), frames of each clip.

    Returns:
        bool (B, T).
    """
    return inside(lengths, faces.shape[1]) & faces.flatten(2).any(2)
