"""Networks of pictures as encoders of faces: one of torchvision or timm by name, one of ours, or several side by side.

Several at once, their features concatenated and read by a bidirectional LSTM, is what Li et al. (2019), "Bi-modality
Fusion for Emotion Recognition in the Wild", do with four convolutional networks. Which ones, and on what they were
trained, their abstract does not say. Liu et al. (2018) have four as well, and an LSTM (`avemo.models.landmarks`).
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.imports import all_of_pytorch
from avemo.models.config import NetworkConfig, VideoEncoderConfig
from avemo.models.landmarks import LandmarkDistances
from avemo.models.ragged import BLSTM, LSTM
from avemo.models.video import VideoEncoder, seen_frames

_COLOURS = 3
_LIBRARIES = ("torchvision", "timm")
OURS: dict[str, Callable[[int, VideoEncoderConfig, NetworkConfig], nn.Module]] = {
    "frames": lambda face_size, config, _: VideoEncoder(face_size, config),
    "landmarks": LandmarkDistances,
}
"""Those that need no library, by name."""


class Networks(nn.Module):
    """Encodes each face by one network or several, and where it is wanted all faces by an LSTM after them.

    Args:
        face_size: height and width of the face crops.
        config: the networks, and the width of the LSTM.

    Raises:
        ValueError: there are none, a library is not there, or it has no such network; or two LSTMs are wanted.
    """

    def __init__(self, face_size: int, config: VideoEncoderConfig) -> None:
        super().__init__()
        if not config.networks:
            raise ValueError("model.video.networks must name at least one network")
        if config.lstm and config.blstm:
            raise ValueError(
                "model.video must have an LSTM of one direction or of two; "
                f"got lstm {config.lstm} and blstm {config.blstm}"
            )
        self.networks = nn.ModuleList(
            OURS[each.name](face_size, config, each) if each.name in OURS else Pictures(each)
            for each in config.networks
        )
        widths: Any = [network.out_features for network in self.networks]
        features = sum(widths)
        self.blstm = BLSTM(features, config.blstm) if config.blstm else None
        self.lstm = LSTM(features, config.lstm) if config.lstm else None
        last = self.blstm or self.lstm
        self.directions = last.directions if last else 0
        self.out_features = last.out_features if last else features

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Encodes (B, T, S, S) of `lengths` int64 (B,) as (B, T, D), zero past each clip's end."""
        encoded = torch.cat([network(faces, lengths) for network in self.networks], dim=2)
        last = self.blstm or self.lstm
        return last(encoded, lengths) if last else encoded


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
        """As `Networks`, zero where there is no face; faces are shown as grey in three colours."""
        seen = seen_frames(faces, lengths)
        encoded = faces.new_zeros(*faces.shape[:2], self.out_features)
        pictures = faces[seen][:, None]
        if self.size:
            size = (self.size, self.size)
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        encoded[seen] = self.network(pictures.expand(-1, _COLOURS, -1, -1)).to(encoded.dtype)
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


def of_others(config: VideoEncoderConfig) -> list[str]:
    """The networks of other libraries that an encoder has."""
    return [network.name for network in config.networks if network.name not in OURS]


def library_of(name: str) -> Any:
    """The module that has a network, named as torchvision:NAME or timm:NAME.

    Raises:
        ValueError: the name is of another form, or the library cannot be imported.
    """
    library, _, known_as = name.partition(":")
    if library not in _LIBRARIES or not known_as:
        raise ValueError(
            f"a network must be {', '.join(map(repr, OURS))}, 'torchvision:NAME' or 'timm:NAME'; got {name!r}"
        )
    all_of_pytorch()
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
