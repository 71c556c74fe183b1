"""Encoders of the `transformers` library: speech models on the waveform, and models of pictures on face frames.

Which one it is, `model.audio.encoder` or `model.video.encoder` says by a local folder or by a name of the hub, such as
`microsoft/wavlm-base-plus`. What it is built of is kept in the configuration (`architecture`), so that
a checkpoint of ours needs neither folder nor hub.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.imports import all_of_pytorch, needs
from avemo.models.config import AudioEncoderConfig, ModelConfig, VideoEncoderConfig
from avemo.models.ragged import inside

_SHORTEST = 1600  # samples that a speech model is given at least: some take 25 ms for one frame
_COLOURS = 3
_STACKS = ("layers", "layer")  # what the library calls the list of a transformer's layers
# Its own masking of frames draws from NumPy, which a training of ours does not seed.
_UNMASKED = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}


class _Pretrained(nn.Module):
    """A model of `transformers`, of which all, the last layers or nothing is trained.

    Attributes:
        out_features: C.
        rate: share of the learning rate that its weights get.
    """

    def __init__(self, config: AudioEncoderConfig | VideoEncoderConfig) -> None:
        super().__init__()
        if config.architecture is None:
            raise ValueError(
                f"the architecture of {config.encoder} is not known before it was resolved"
            )
        transformers = _library()
        settings = dict(config.architecture)
        try:
            built = transformers.AutoConfig.for_model(settings.pop("model_type", ""), **settings)
            self.model: Any = transformers.AutoModel.from_config(built, attn_implementation="eager")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"transformers cannot build {config.encoder}: {error}") from error
        self.settings = built
        self.out_features = int(built.hidden_size)
        self.rate = config.rate
        self.frozen = config.trained_layers == 0
        if config.trained_layers is not None:
            self.model.requires_grad_(False)
            for layer in _last_layers(self.model, built.num_hidden_layers, config.trained_layers):
                layer.requires_grad_(True)

    def train(self, mode: bool = True) -> "_Pretrained":
        """As every module's, but what is frozen drops nothing."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self


class SpeechTransformer(_Pretrained):
    """A speech model of `transformers` (wav2vec 2.0, HuBERT, WavLM, data2vec-audio) on the waveform.

    Clips go through it one by one: its normalisation over time and its relative positions would make of a padded clip
    another one.

    Args:
        samples: of one frame of the cache; the waveform comes cut into such frames.
        config: its architecture, and what of it is trained.

    Raises:
        ValueError: `transformers` is not there or cannot build it, or more layers are to be trained than it has.
    """

    positions = 1

    def __init__(self, samples: int, config: AudioEncoderConfig) -> None:
        super().__init__(config)

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes (B, samples, T) of `lengths` int64 (B,) as (B, T', C), zero past each end, and its frames."""
        if not len(sound):
            return self._encode(sound.new_zeros(1, 1))[None, :1][:0], lengths
        encoded = [
            self._encode(clip[:, :n].T.reshape(1, -1))
            for clip, n in zip(sound, lengths.tolist(), strict=True)
        ]
        frames = torch.tensor([len(x) for x in encoded], device=sound.device)
        return nn.utils.rnn.pad_sequence(encoded, batch_first=True), frames

    def _encode(self, waveform: Tensor) -> Tensor:
        """(1, N), as loud as all the others, to (T', C)."""
        waveform = F.layer_norm(waveform, waveform.shape[1:])
        waveform = F.pad(waveform, (0, max(0, _SHORTEST - waveform.shape[1])))
        encoded: Tensor = self.model(waveform).last_hidden_state[0]
        return encoded


class FrameTransformer(_Pretrained):
    """A model of pictures of `transformers`, such as ViT, on each face; or one of moving pictures, such as VideoMAE.

    Faces are scaled to the size that it knows, and shown as grey in its three colours. A face is encoded as the mean
    over its patches. A model of moving pictures is shown as many frames at a time as it knows, the last
    one again and again where a clip has not as many.

    Args:
        face_size: height and width of the face crops.
        config: its architecture, and what of it is trained.

    Raises:
        ValueError: `transformers` is not there or cannot build it, or more layers are to be trained than it has.
    """

    def __init__(self, face_size: int, config: VideoEncoderConfig) -> None:
        super().__init__(config)
        self.size = int(self.settings.image_size)
        self.window = int(getattr(self.settings, "num_frames", 0))

    def forward(self, faces: Tensor, lengths: Tensor) -> Tensor:
        """Encodes (B, T, S, S) of `lengths` int64 (B,) as (B, T, D), zero past each clip's end."""
        own = inside(lengths, faces.shape[1])
        if not self.window:
            encoded = faces.new_zeros(*faces.shape[:2], self.out_features)
            encoded[own] = self._pictures(faces[own])
            return encoded
        if not len(faces):
            return self._clip(faces.new_zeros(1, *faces.shape[2:]))[None][:0]
        clips = [self._clip(clip[:n]) for clip, n in zip(faces, lengths.tolist(), strict=True)]
        return nn.utils.rnn.pad_sequence(clips, batch_first=True)

    def _pictures(self, faces: Tensor) -> Tensor:
        """(N, S, S) to (N, D)."""
        return self.model(self._colours(faces)).last_hidden_state.mean(1)

    def _clip(self, faces: Tensor) -> Tensor:
        """One clip, (T, S, S) to (T, D)."""
        count = len(faces)
        again = faces[-1:].expand(-count % self.window, -1, -1)
        windows = self._colours(torch.cat([faces, again])).unflatten(0, (-1, self.window))
        encoded = self.model(windows).last_hidden_state  # (windows, patches of all its times, D)
        times = self.window // int(self.settings.tubelet_size)
        encoded = encoded.unflatten(1, (times, -1)).mean(2).flatten(0, 1)
        return encoded.repeat_interleave(int(self.settings.tubelet_size), dim=0)[:count]

    def _colours(self, faces: Tensor) -> Tensor:
        size = (self.size, self.size)
        scaled = F.interpolate(faces[:, None], size, mode="bilinear", antialias=True)
        return scaled.expand(-1, _COLOURS, -1, -1)


def resolved(config: ModelConfig) -> ModelConfig:
    """The configuration with the architectures of the models that it names, from their folders or the hub.

    Raises:
        ValueError: `transformers` is not installed, or there is no such model.
    """
    for stream in ("audio", "video"):
        part = getattr(config, stream)
        if is_pretrained(part.encoder) and part.architecture is None:
            transformers = _library()
            try:
                found = transformers.AutoConfig.from_pretrained(part.encoder)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"model.{stream}.encoder: transformers finds no model {part.encoder!r}: "
                    f"{str(error).splitlines()[0]}"
                ) from error
            architecture = found.to_diff_dict() | {"model_type": found.model_type} | _UNMASKED
            config = replace(config, **{stream: replace(part, architecture=architecture)})
    return config


def load_pretrained(encoder: nn.Module, name: str) -> None:
    """Gives an encoder the weights of the model of that name, which it was resolved from."""
    assert isinstance(encoder, _Pretrained)
    found = _library().AutoModel.from_pretrained(name, config=encoder.settings)
    encoder.model.load_state_dict(found.state_dict())


def is_pretrained(encoder: str) -> bool:
    """Whether an encoder is named like a model of `transformers`: by a folder's path, or as owner/name."""
    return "/" in encoder


def _library() -> Any:
    needs("an encoder of another library", "transformers", extra="transformers")
    all_of_pytorch()
    import transformers

    return transformers


def _last_layers(model: nn.Module, there: int, count: int) -> list[nn.Module]:
    """The last so many of a transformer's layers."""
    if not 0 <= count <= there:
        raise ValueError(
            f"trained_layers must be 0 to {there}, which is how many layers the encoder has; got {count}"
        )
    *_, layers = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _STACKS
    )
    return list(layers)[there - count :]
