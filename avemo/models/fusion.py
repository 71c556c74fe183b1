"""Fusions by factorized bilinear pooling, and by concatenation.

Zhou, Du et al. (2021), "Information Fusion in Attention Networks Using Adaptive and Multi-Level
Factorized Bilinear Pooling for Audio-Visual Emotion Recognition": G-FBP pools the two vectors of a
clip, AG-FBP weighs them by their norms before, M-FBP pools trunk by trunk and adds up, and AM-FBP
is AG-FBP and M-FBP side by side. Encoder concatenation is what the paper compares them with.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from avemo.models.config import FusionConfig
from fbp_kernels import (
    AdaptiveMultiLevelFBP,
    FactorizedBilinearPooling,
    TrunkFactorizedBilinearPooling,
)


class Fusion(NamedTuple):
    """How two streams become the vector that is classified.

    Attributes:
        build: from C, D and the sizes, a module that gives (B, sum of `levels`).
        inputs: what it is called with, fields of `avemo.models.stream.Pooled`: of each, the audio
            stream's and then the video stream's.
        levels: from C, D and the sizes, the widths of the parts of its output. They are normalised
            one by one, for they may differ by orders of magnitude.
    """

    build: Callable[[int, int, FusionConfig], nn.Module]
    inputs: tuple[str, ...]
    levels: Callable[[int, int, FusionConfig], list[int]]


class Concat(nn.Module):
    """Vectors (B, C) and (B, D), one after the other."""

    def forward(self, a: Tensor, v: Tensor) -> Tensor:
        return torch.cat([a, v], dim=1)


def _global(adaptive: bool) -> Fusion:
    def build(a_features: int, v_features: int, config: FusionConfig) -> nn.Module:
        return FactorizedBilinearPooling(
            a_features,
            v_features,
            config.global_features,
            config.global_factor,
            adaptive=adaptive,
            dropout=config.dropout,
            backend="reference",
        )

    return Fusion(build, ("vector",), lambda _a, _v, config: [config.global_features])


def _trunks(a_features: int, v_features: int, config: FusionConfig) -> nn.Module:
    return TrunkFactorizedBilinearPooling(
        a_features,
        v_features,
        config.trunk_features,
        config.trunk_factor,
        config.trunks,
        dropout=config.dropout,
        backend="reference",
    )


def _both(a_features: int, v_features: int, config: FusionConfig) -> nn.Module:
    return AdaptiveMultiLevelFBP(
        a_features,
        v_features,
        config.global_features,
        config.global_factor,
        config.trunk_features,
        config.trunk_factor,
        config.trunks,
        adaptive=config.adaptive,
        dropout=config.dropout,
        backend="reference",
    )


G_FBP = _global(adaptive=False)
AG_FBP = _global(adaptive=True)
M_FBP = Fusion(_trunks, ("trunks",), lambda _a, _v, config: [config.trunk_features])
AM_FBP = Fusion(
    _both,
    ("vector", "trunks"),
    lambda _a, _v, config: [config.global_features, config.trunk_features],
)
CONCAT = Fusion(lambda _a, _v, _config: Concat(), ("vector",), lambda a, v, _config: [a, v])
