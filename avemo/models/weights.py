"""The weights that a training starts from: files, and models of other libraries."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from avemo.models.audio import AudioEncoder
from avemo.models.config import ModelConfig, NetworkConfig
from avemo.models.networks import Networks, Pictures
from avemo.models.transformer import is_pretrained, load_pretrained


def start_weights(model: nn.Module, config: ModelConfig) -> None:
    """Gives the encoders the weights that the configuration names, in place.

    Args:
        model: of that configuration.
        config: `weights` of its encoders are files; an encoder of another library brings its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file holds more than tensors, or they do not fit.
    """
    for stream in ("audio", "video"):
        part = getattr(config, stream)
        if not hasattr(model, stream):
            continue
        encoder = getattr(getattr(model, stream), "encoder", getattr(model, stream))
        if isinstance(encoder, Networks):
            _load_networks(encoder, part.networks)
        elif part.weights is not None:
            _load(encoder, Path(part.weights))
        elif is_pretrained(part.encoder):
            load_pretrained(encoder, part.encoder)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of one that `torch.save` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors.
    """
    import pickle
    import zipfile

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"there are no weights at {file}")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
    ) as error:
        raise ValueError(f"{file} holds no weights that can be read: {_line(error)}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{file} must hold a state dict, tensors by name")
    return found


def _load_networks(encoder: Networks, configs: Sequence[NetworkConfig]) -> None:
    for network, config in zip(encoder.networks, configs, strict=True):
        if config.weights is None:
            continue
        if isinstance(network, Pictures):
            try:
                network.start_from(read_state_dict(config.weights))
            except ValueError as error:
                raise ValueError(f"the weights of {config.weights} do not fit: {error}") from error
        else:
            _load(network, config.weights)


def _load(encoder: nn.Module, file: Path) -> None:
    state = read_state_dict(file)
    kernels = [state[name] for name in sorted(state, key=_in_order) if state[name].ndim == 4]
    if (
        isinstance(encoder, AudioEncoder)
        and "collapse.weight" not in state
        and "norms.0.weight" not in state
    ):
        _load_alexnet(encoder, kernels, file)
        return
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights of {file} do not fit: {_line(error)}") from error


@torch.no_grad()
def _load_alexnet(encoder: AudioEncoder, kernels: list[Tensor], file: Path) -> None:
    """Takes the kernels of an AlexNet's five convolutions, in their order, whatever they are called.

    Its first one sees three colours: a spectrogram is shown to it as a grey picture, so their kernels add up. Biases
    are left out, for the batch normalisations behind ours would take them away again.
    """
    ours = [getattr(encoder, f"conv{i}").weight for i in range(1, 6)]
    theirs = [k if i else k.sum(1, keepdim=True) for i, k in enumerate(kernels)]
    if [k.shape for k in theirs] != [k.shape for k in ours]:
        raise ValueError(
            f"the kernels of {file} must be those of an AlexNet of the channels {[len(k) for k in ours]}; "
            f"got {[tuple(k.shape) for k in kernels]}: set model.audio.channels to what it has"
        )
    for our, their in zip(ours, theirs, strict=True):
        our.copy_(their)


def _in_order(name: str) -> list[str | int]:
    """`features.3` before `features.10`, which files of safetensors do not keep to."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
