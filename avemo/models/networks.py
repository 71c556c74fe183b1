"""Networks of pictures as encoders of faces: one of torchvision or timm by name, ours, or several side by side.

Several at once, their features concatenated and read by a bidirectional LSTM, is what Li et al. (2019), "Bi-modality
Fusion for Emotion Recognition in the Wild", do with four convolutional networks. Which ones, and on what they were
trained, their abstract does not say.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.models.config import NetworkConfig, VideoEncoderConfig
from avemo.models.ragged import BLSTM, inside
from avemo.models.video import VideoEncoder

_COLOURS = 3
_LIBRARIES = ("torchvision", "timm")
OUR_NETWORK = "frames"
"""The name of the one that needs no library."""


class Networks(nn.Module):
    """Encodes each face by one network or several, and where `config.blstm` is set all faces by an LSTM after them.

    Args:
        face_size: height and width of the face crops.
        config: the networks, and the width of the LSTM.

    Raises:
        ValueError: there are none, a library is not there, or it has no such network.
    """

    def __init__(self, face_size: int, config: VideoEncoderConfig) -> None:
        super().__init__()
        if not config.networks:
            raise ValueError("model.video.networks must name at least one network")
        self.networks = nn.ModuleList(
            VideoEncoder(face_size, config) if each.name == OUR_NETWORK else Pictures(each)
            for each in config.networks
        )
        widths: Any = [network.out_features for network in self.networks]
        features = sum(widths)
        self.blstm = BLSTM(features, config.blstm) if config.blstm else None
        self.out_features = self.blstm.out_features if self.blstm else features

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Encodes (B, T, S, S) of `lengths` int64 (B,) as (B, T, D), zero past each clip's end."""
        encoded = torch.cat([network(faces, lengths) for network in self.networks], dim=2)
        return self.blstm(encoded, lengths) if self.blstm else encoded


class Pictures(nn.Module):
    """A network of another library without its last layer, on each face.

    Args:
        config: its name, and the size that faces are scaled to.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.size = config.size
        self.network, self.out_features = _without_classifier(config.name)

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """As `Networks`; faces are shown as grey in three colours."""
        own = inside(lengths, faces.shape[1])
        encoded = faces.new_zeros(*faces.shape[:2], self.out_features)
        pictures = faces[own][:, None]
        if self.size:
            size = (self.size, self.size)
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        encoded[own] = self.network(pictures.expand(-1, _COLOURS, -1, -1)).to(encoded.dtype)
        return encoded

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Takes weights by their names; or, where these are others, in their order.

        Raises:
            ValueError: they do not fit.
        """
        ours = self.network.state_dict()
        if not set(ours) <= set(state):
            theirs = list(state.values())
            shapes = [x.shape for x in ours.values()]
            if [x.shape for x in theirs[: len(shapes)]] != shapes:
                raise ValueError(
                    "neither the names nor the shapes in their order are those of the network"
                )
            state = dict(zip(ours, theirs, strict=False))
        try:
            self.network.load_state_dict({name: state[name] for name in ours})
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())[:300]) from error


def library_of(name: str) -> Any:
    """The module that has a network, named as torchvision:NAME or timm:NAME.

    Raises:
        ValueError: the name is of another form, or the library cannot be imported.
    """
    library, _, known_as = name.partition(":")
    if library not in _LIBRARIES or not known_as:
        raise ValueError(
            f"a network must be 'frames', 'torchvision:NAME' or 'timm:NAME'; got {name!r}"
        )
    try:
        return importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (
        ImportError,
        RuntimeError,
    ) as error:  # a torch of another build than theirs is a RuntimeError
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} needs {library}, which cannot be imported here: {reason}"
        ) from error


def _without_classifier(name: str) -> tuple[nn.Module, int]:
    """A network with random weights, named as torchvision:NAME or timm:NAME, and the width of its features."""
    found = library_of(name)
    library, _, known_as = name.partition(":")
    try:
        if library == "timm":
            network = found.create_model(known_as, pretrained=False, num_classes=0)
            return network, int(network.num_features)
        network = found.get_model(known_as, weights=None)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{library} has no network {known_as!r}: {error}") from error
    *_, (path, last) = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear))
    network.set_submodule(path, nn.Identity())
    return network, int(last.in_features)
