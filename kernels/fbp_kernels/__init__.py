"""Fused factorized bilinear pooling and what goes with it: operators, modules and `accelerate`."""

from . import reference
from .accelerate import Replacement, Report, accelerate, restore
from .backends import BackendStatus, available_backends
from .explain import Explanation, explain
from .modules import (
    AdaptiveMultiLevelFBP,
    AttentionPool,
    BatchNorm,
    BatchNormReLU,
    Conv2d,
    Dropout,
    FactorizedBilinearPooling,
    LocalResponseNorm,
    TrunkFactorizedBilinearPooling,
)
from .ops import (
    am_fbp,
    attention_pool,
    batch_norm,
    conv2d,
    dropout,
    fbp,
    local_response_norm,
    power_normalize,
    trunk_fbp,
)
from .triton import autotune, tuning

tuning.search_by(autotune.choose)

__all__ = [
    "AdaptiveMultiLevelFBP",
    "AttentionPool",
    "BackendStatus",
    "BatchNorm",
    "BatchNormReLU",
    "Conv2d",
    "Dropout",
    "Explanation",
    "FactorizedBilinearPooling",
    "LocalResponseNorm",
    "Replacement",
    "Report",
    "TrunkFactorizedBilinearPooling",
    "accelerate",
    "am_fbp",
    "attention_pool",
    "available_backends",
    "batch_norm",
    "conv2d",
    "dropout",
    "explain",
    "fbp",
    "local_response_norm",
    "power_normalize",
    "reference",
    "restore",
    "trunk_fbp",
]
