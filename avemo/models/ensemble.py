"""Several models as one: the mean of their posteriors, as the ensembles of Zhou, Du et al. (2021), Table V."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from avemo.models.config import ModelConfig
from avemo.models.output import BOTH, Output
from avemo.models.pretrained import Pretrained


class Ensemble(Pretrained):
    """Models that are asked the same, and answer by the mean of their probabilities.

    Args:
        config: its members.
        bins: frequency bins of the spectrograms.
        face_size: height and width of the face crops.
        classes: number of emotions.

    Attributes:
        streams: those that any member attends to.

    Raises:
        ValueError: there are no members, or one of them cannot be.
    """

    def __init__(self, config: ModelConfig, *, bins: int, face_size: int, classes: int) -> None:
        from avemo.models import build_model  # which builds this one, too

        super().__init__()
        sizes = {"bins": bins, "face_size": face_size, "classes": classes}
        self.streams = ensemble_streams(config)
        self.members = nn.ModuleList(build_model(c, **sizes) for c in member_configs(config))

    def forward(
        self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
    ) -> Output:
        """Classifies a batch as `AudioVisual`; the logits are logarithms of probabilities.

        The attention is the mean of that of the members which have one, where they see the same frames.
        """
        outputs = [m(audio, audio_lengths, video, video_lengths) for m in self.members]
        logits = torch.stack([output.logits.log_softmax(1) for output in outputs])
        return Output(
            logits.logsumexp(0) - torch.tensor(float(len(outputs))).log(),
            _mean([output.audio_attention for output in outputs]),
            _mean([output.video_attention for output in outputs]),
            trained=tuple(x for output in outputs for x in output.trained or (output.logits,)),
        )


def member_configs(config: ModelConfig) -> list[ModelConfig]:
    """The members of an ensemble: each its configuration, but for what is said of the member.

    Raises:
        ValueError: there are none, or what is said of one is not a configuration.
    """
    from avemo.training.config import from_dict

    if not config.members:
        raise ValueError(
            "model.members must name at least one model where model.name is 'ensemble'"
        )
    shared = asdict(replace(config, members=()))
    return [from_dict(ModelConfig, _merged(shared, member)) for member in config.members]


def ensemble_streams(config: ModelConfig) -> tuple[str, ...]:
    """The streams that any member attends to."""
    from avemo.models import needed_streams

    attended = {s for member in member_configs(config) for s in needed_streams(member)}
    return tuple(s for s in BOTH if s in attended)


def _merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; the second has the last word."""
    result = dict(first)
    for key, value in then.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if nested else value
    return result


def _mean(attentions: list[Tensor | None]) -> Tensor | None:
    there = [weights for weights in attentions if weights is not None]
    if not there or len({weights.shape for weights in there}) > 1:
        return None
    return torch.stack(there).mean(0)
