"""The operators, one file each; importing this package registers them all."""

from .am_fbp import am_fbp
from .attention_pool import attention_pool
from .batch_norm import batch_norm
from .conv2d import conv2d
from .dropout import dropout
from .fbp import fbp
from .local_response_norm import local_response_norm
from .power_normalize import power_normalize
from .trunk_fbp import trunk_fbp

__all__ = [
    "am_fbp",
    "attention_pool",
    "batch_norm",
    "conv2d",
    "dropout",
    "fbp",
    "local_response_norm",
    "power_normalize",
    "trunk_fbp",
]
