"""Trained models on disk: one .safetensors file that holds all that using the model needs.

The weights are tensors and nothing else; the configuration, the classes and the features that the
model was trained on are JSON in the file's metadata. Nothing in the file is executed when it is
read, so that a checkpoint from a stranger can do no harm. The same as a folder, in the layout of the
Hugging Face hub, is what a model's `save_pretrained` writes; both are read by the same functions.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from avemo.data.features import FeatureConfig
from avemo.models import build_model, required_streams
from avemo.models.pretrained import Pretrained
from avemo.storage import write
from avemo.training.config import TrainConfig, from_dict, to_dict
from avemo.training.description import (
    CONFIG,
    KEY,
    VERSION,
    WEIGHTS,
    CheckpointError,
    read,
    undescribed,
    weights_file,
)


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
    weights = _weights(model)
    description = _description(weights, config, classes, features)
    # One key, since the order of several would differ from run to run.
    metadata = {KEY: json.dumps(description)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, serialize(weights, metadata))


def save_folder(
    folder: Path | str,
    model: nn.Module | Mapping[str, Tensor],
    config: TrainConfig,
    classes: tuple[str, ...],
    features: FeatureConfig,
) -> None:
    """Writes the same as a folder of model.safetensors and config.json, as the Hugging Face hub has models.

    Args:
        folder: made if needed. The rest is as in `save`; of the path of the training cache, the name alone is kept.
    """
    folder = Path(folder)
    weights = _weights(model)
    description = _description(weights, config, classes, features)
    data = description["config"]["data"]
    data["cache"] = Path(data["cache"]).name
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / WEIGHTS, serialize(weights, {"format": "pt"}))
    write(folder / CONFIG, json.dumps(description, indent=2) + "\n")


def load(path: Path | str) -> Checkpoint:
    """Reads a checkpoint and builds its model.

    Args:
        path: a .safetensors file that `save` wrote, or a folder of `save_folder`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint that this version can read.
    """
    path = Path(path)
    file = weights_file(path)
    description = read(path)
    try:
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    try:
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
        raise undescribed(path, error) from error
    trained = Checkpoint(model.eval(), config, classes, features)
    if isinstance(model, Pretrained):
        model.trained = trained
    return trained


def _weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: x.detach().cpu().contiguous() for name, x in state.items()}


def _description(
    weights: dict[str, Tensor],
    config: TrainConfig,
    classes: tuple[str, ...],
    features: FeatureConfig,
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "config": to_dict(config),
        "classes": classes,
        "features": features.to_dict(),
        "needs": required_streams(config.model, config.data.augment.modality_dropout),
        "checksum": _checksum(weights),
    }


def _checksum(weights: dict[str, Tensor]) -> str:
    """SHA-256 of all names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        x = weights[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
