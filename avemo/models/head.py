"""What turns a stream's vector into scores."""

from torch import nn


def linear_head(features: int, classes: int, dropout: float) -> nn.Sequential:
    """Normalisation, dropout and a linear layer: (B, features) to logits (B, classes)."""
    return nn.Sequential(nn.LayerNorm(features), nn.Dropout(dropout), nn.Linear(features, classes))
