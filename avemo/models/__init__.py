"""Emotion recognisers, by name. A new model is one file and one line in `MODELS`; a new part, one in `parts`."""

from collections.abc import Callable

from torch import nn

from avemo.models.config import ModelConfig
from avemo.models.decision_fusion import DecisionFusion
from avemo.models.ensemble import Ensemble, ensemble_streams
from avemo.models.faces import Faces
from avemo.models.fused import AudioVisual
from avemo.models.lbp_top_svm import LBPTopSVM
from avemo.models.networks import library_of, of_others
from avemo.models.output import BOTH, Output
from avemo.models.parts import FUSIONS
from avemo.models.single import AudioOnly, VideoOnly

MODELS: dict[str, Callable[..., nn.Module]] = {
    **dict.fromkeys(FUSIONS, AudioVisual),
    "audio": AudioOnly,
    "video": VideoOnly,
    "faces": Faces,
    "decision_fusion": DecisionFusion,
    "ensemble": Ensemble,
    "lbp_top_svm": LBPTopSVM,
}

AMFBP = AudioVisual
"""The name of its paper; the same class holds the other fusions, too."""


def build_model(config: ModelConfig, *, bins: int, face_size: int, classes: int) -> nn.Module:
    """The model that `config.name` names, newly initialised, in plain PyTorch.

    Args:
        config: the name and the sizes.
        bins: frequency bins of the spectrograms that it will hear.
        face_size: height and width of the face crops that it will see.
        classes: number of emotions.

    Returns:
        A module called as `model(audio, audio_lengths, video, video_lengths)` that returns an
        `Output`. Its operators run on the reference backend until `avemo.models.backend.use_backend`.

    Raises:
        ValueError: no model or part has that name, or a size does not fit.
    """
    return _class(config)(config, bins=bins, face_size=face_size, classes=classes)


def check_packages(config: ModelConfig) -> None:
    """Checks that what a model takes from packages that not everybody has can be imported.

    Raises:
        ValueError: a package is not there, or not for this PyTorch; it says which, and what of the model needs it.
    """
    getattr(_class(config), "check_packages", lambda: None)()
    for network in of_others(config.video):
        library_of(network)


def needed_streams(model: nn.Module | ModelConfig) -> tuple[str, ...]:
    """The streams that a model, or one of that configuration, attends to: "audio", "video" or both.

    Raises:
        ValueError: no model has that name.
    """
    known = _class(model) if isinstance(model, ModelConfig) else model
    if known is Ensemble and isinstance(model, ModelConfig):
        return ensemble_streams(model)
    streams: tuple[str, ...] = getattr(known, "streams", BOTH)
    return streams


def _class(config: ModelConfig) -> Callable[..., nn.Module]:
    if config.name not in MODELS:
        raise ValueError(f"model.name must be one of {', '.join(MODELS)}; got {config.name!r}")
    return MODELS[config.name]


def required_streams(model: nn.Module | ModelConfig, modality_dropout: float) -> tuple[str, ...]:
    """The streams without which a clip is nothing for a model: those that it attends to, or either one
    if it attends to both and has learned to do with one.

    Args:
        model: of this package, or its configuration.
        modality_dropout: share of the clips that lost a stream in its training.

    Raises:
        ValueError: no model has that name.
    """
    needed = needed_streams(model)
    return () if modality_dropout > 0 and len(needed) > 1 else needed


__all__ = [
    "AMFBP",
    "MODELS",
    "ModelConfig",
    "Output",
    "build_model",
    "needed_streams",
    "required_streams",
]
