"""The inter-modality attention of the multi-attention fusion network (MAFN).

Wang, Wu and Hoashi (2019), "Multi-Attention Fusion Network for Video-based Emotion Recognition": attention
within each modality finds the frames that say something, which is what the two streams do here, and
attention between the modalities weighs their vectors. Its text is not public; from its abstract it is
not known how the two are brought to one width, how they are scored (here by a projection and
by a layer of tanh, as within a modality), nor what its domain adaptation is, which is left out.
"""

import torch
from torch import Tensor, nn

from avemo.models.config import FusionConfig
from avemo.models.fusion import Fusion


class InterModalityAttention(nn.Module):
    """The weighted sum of two vectors of one width, by a softmax over a score of each.

    Args:
        a_features: C.
        v_features: D.
        out_features: O.
    """

    def __init__(self, a_features: int, v_features: int, out_features: int) -> None:
        super().__init__()
        self.audio = nn.Linear(a_features, out_features)
        self.video = nn.Linear(v_features, out_features)
        self.hidden = nn.Linear(out_features, out_features)
        self.query = nn.Linear(out_features, 1, bias=False)

    def forward(self, a: Tensor, v: Tensor) -> Tensor:
        """a (B, C) and v (B, D) to (B, O)."""
        both = torch.stack([self.audio(a), self.video(v)], dim=1)
        weights = self.query(torch.tanh(self.hidden(both))).softmax(dim=1)
        return (weights * both).sum(1)


def _build(a_features: int, v_features: int, config: FusionConfig) -> nn.Module:
    return InterModalityAttention(a_features, v_features, config.global_features)


MAFN = Fusion(_build, ("vector",), lambda _a, _v, config: [config.global_features])
