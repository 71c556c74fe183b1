"""What a checkpoint says of itself, read without PyTorch: enough to look at a file for it, or to refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from avemo.data.features import FeatureConfig

KEY = "avemo"
"""Of the metadata of a checkpoint's file."""

VERSION = 3
CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Of a folder that `save_pretrained` has written, the layout of the Hugging Face hub."""


class CheckpointError(ValueError):
    """A file is no checkpoint of ours, is damaged, or was written by another version."""


class Wanted(NamedTuple):
    """What a model wants of a media file.

    Attributes:
        classes: the emotions that it names.
        features: what its inputs must be extracted with.
        seconds: of the longest clips that it was trained with; None where they were not cropped.
        needs: the streams without which a file is nothing for it, of "audio" and "video".
    """

    classes: tuple[str, ...]
    features: FeatureConfig
    seconds: float | None
    needs: tuple[str, ...]


def weights_file(path: Path) -> Path:
    """The file with the weights of a checkpoint: itself, or the one in its folder.

    Raises:
        FileNotFoundError: there is none.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        best = path / "best.safetensors"
        more = f"; that of the run is {best}" if best.is_file() else ""
        raise FileNotFoundError(f"no checkpoint at {file}{more}")
    return file


def read(path: Path) -> dict[str, Any]:
    """The description of a checkpoint: `version`, `config`, `classes`, `features`, `needs`, `checksum`.

    Args:
        path: a file of `avemo train`, or a folder of `save_pretrained`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, or one of another version.
    """
    file = weights_file(path)
    text = _of_folder(path) if path.is_dir() else _of_file(file)
    try:
        description = json.loads(text)
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']}, expected {VERSION}")
    except (KeyError, ValueError, TypeError) as error:
        raise undescribed(path, error) from error
    return dict(description)


def wanted(path: Path) -> Wanted:
    """What a checkpoint's model wants of a media file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, or one of another version.
    """
    description = read(path)
    try:
        needs = description["needs"] if "needs" in description else _parts(weights_file(path))
        return Wanted(
            classes=tuple(description["classes"]),
            features=FeatureConfig.from_dict(description["features"]),
            seconds=description["config"]["data"]["max_seconds"],
            needs=tuple(needs),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise undescribed(path, error) from error


def _parts(file: Path) -> list[str]:
    """The streams that there are weights for: older files do not say which ones the model needs."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        parts = {part for name in opened.keys() for part in name.split(".")}  # noqa: SIM118
    return [name for name in ("audio", "video") if name in parts]


def undescribed(path: Path, error: Exception) -> CheckpointError:
    """The error of a description that cannot be followed, in one line."""
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError):
        reason = f"{reason} is missing"
    return CheckpointError(f"{path} does not describe a model: {reason}")


def _of_file(file: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    if KEY not in metadata:
        raise CheckpointError(f"{file} holds tensors, but is not a checkpoint of a trained model")
    return str(metadata[KEY])


def _of_folder(folder: Path) -> str:
    try:
        return (folder / CONFIG).read_text("utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has {WEIGHTS}, but no {CONFIG}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / CONFIG} is no JSON file: {error}") from error
