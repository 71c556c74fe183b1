"""Trained models on disk: one .safetensors file that holds all that using the model needs.

The weights are tensors and nothing else; the configuration, the classes and the features that the
model was trained on are JSON in the file's metadata. Nothing in the file is executed when it is
read, so that a checkpoint from a stranger can do no harm.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from avemo.data.features import FeatureConfig
from avemo.models import build_model
from avemo.storage import write
from avemo.training.config import TrainConfig, from_dict, to_dict

_KEY = "avemo"  # of the metadata
_VERSION = 2


class CheckpointError(ValueError):
    """A file is no checkpoint of ours, is damaged, or was written by another version."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what it was trained on.

    Attributes:
        model: in evaluation mode, on the CPU, its operators on the reference backend.
        config: how it was trained.
        classes: the emotions, in the order of the logits.
        features: what its inputs must be extracted with.
    """

    model: nn.Module
    config: TrainConfig
    classes: tuple[str, ...]
    features: FeatureConfig


def save(
    path: Path | str,
    model: nn.Module | Mapping[str, Tensor],
    config: TrainConfig,
    classes: tuple[str, ...],
    features: FeatureConfig,
) -> None:
    """Writes a checkpoint; a reader sees the old file or the new one, never a part of it.

    Args:
        path: the .safetensors file.
        model: its state dict is written, from whatever device and backend; or that itself.
        config: how it was trained.
        classes: the emotions, in the order of the logits.
        features: what its inputs were extracted with.
    """
    path = Path(path)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    weights = {name: x.detach().cpu().contiguous() for name, x in state.items()}
    description = {
        "version": _VERSION,
        "config": to_dict(config),
        "classes": classes,
        "features": features.to_dict(),
        "checksum": _checksum(weights),
    }
    # One key, since the order of several would differ from run to run.
    metadata = {_KEY: json.dumps(description)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, serialize(weights, metadata))


def _checksum(weights: dict[str, Tensor]) -> str:
    """SHA-256 of all names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        x = weights[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint and builds its model.

    Args:
        path: a .safetensors file that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint that this version can read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} holds tensors, but is not a checkpoint of a trained model")
    try:
        description = json.loads(metadata[_KEY])
        if description["version"] != _VERSION:
            raise ValueError(f"version {description['version']}, expected {_VERSION}")
        config = from_dict(TrainConfig, description["config"])
        features = FeatureConfig.from_dict(description["features"])
        classes = tuple(description["classes"])
        model = build_model(
            config.model,
            bins=features.audio_features,
            face_size=features.face_size,
            classes=len(classes),
        )
        model.load_state_dict(weights)
        if description["checksum"] != _checksum(weights):
            raise ValueError("the checksum of its weights is not that of their bytes")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not describe a model: {reason}") from error
    return Checkpoint(model.eval(), config, classes, features)
