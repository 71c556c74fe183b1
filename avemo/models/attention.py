"""Self-attention over the frames of a stream, as in Zhou, Du et al. (2021), Figure 3."""

from torch import nn

from avemo.models.config import AttentionConfig
from fbp_kernels import AttentionPool


def self_attention(features: int, trunks: int, config: AttentionConfig) -> nn.Module:
    """Scores every frame by a small network of one hidden layer, and takes their weighted sum."""
    return AttentionPool(features, config.hidden, trunks, config.scale, backend="reference")
