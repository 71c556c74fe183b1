"""What every model returns."""

from typing import NamedTuple

from torch import Tensor

BOTH = ("audio", "video")
"""The streams that there are."""


class Output(NamedTuple):
    """Scores of B clips over the classes, and where in time the model looked.

    Attributes:
        logits: (B, classes), unnormalised.
        audio_attention: (B, T'), the weights of the encoded audio frames, which sum to 1 over each
            clip's frames and are 0 after; None where the model does not listen, or
            not by attention. Encoded frame t of n covers the share t/n .. (t+1)/n of the clip.
        video_attention: (B, T_v), likewise for the video frames; None where it does not look.
        trained: scores like `logits`, each of which training minimises the loss of; none where
            these are the logits.
    """

    logits: Tensor
    audio_attention: Tensor | None
    video_attention: Tensor | None
    trained: tuple[Tensor, ...] = ()
