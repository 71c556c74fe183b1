"""Audio-visual emotion recognition with adaptive, multi-level factorized bilinear pooling."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avemo.evaluation.predict import predict
    from avemo.models import AMFBP
    from avemo.training.checkpoint import load, save

__version__ = "0.1.0"
__all__ = ["AMFBP", "load", "predict", "save"]

# Imported when they are asked for: `import avemo` imports nothing heavy.
_PLACES = {
    "AMFBP": "avemo.models:AMFBP",
    "load": "avemo.training.checkpoint:load",
    "predict": "avemo.evaluation.predict:predict",
    "save": "avemo.training.checkpoint:save",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'avemo' has no attribute {name!r}")
    module, attribute = _PLACES[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
