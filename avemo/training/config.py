"""The configuration of a training run, typed and with all its defaults."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from avemo.data.augment import AugmentConfig
from avemo.models.config import ModelConfig
from avemo.storage import write

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Where the clips come from and how they are served (`avemo.data.datamodule.ClipDataModule`).

    Attributes:
        cache: folder that `avemo prepare` wrote.
        batch_size: clips per step.
        max_seconds: longer clips are cropped; null keeps them whole.
        augment: random changes to training clips.
        drop_last: leave out the last batch of a training epoch if it is not full.
        num_workers: processes that read ahead; 0 reads in the training process.
    """

    cache: Path
    batch_size: int = 16
    max_seconds: float | None = 10.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    drop_last: bool = False
    num_workers: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a one-cycle schedule (warm-up, then cosine decay to nearly zero).

    Attributes:
        learning_rate: the highest of the cycle.
        weight_decay: for weights; biases and normalisations are not decayed.
        warmup: share of all steps in which the rate rises.
        gradient_clip: largest norm of all gradients together.
        label_smoothing: share of the target probability that is spread over all classes.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.2
    gradient_clip: float = 1.0
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class TrainerConfig:
    """The loop.

    Attributes:
        epochs: passes over the training split.
        accelerator: where to train; "auto" takes a GPU if there is one.
        precision: arithmetic of the network.
        checkpoint_minutes: what a kill may cost at most: within longer epochs the run is saved as well.
    """

    epochs: int = 40
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"trainer.epochs must be at least 1, got {self.epochs}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"trainer.checkpoint_minutes must not be negative, got {self.checkpoint_minutes}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """All that decides the result of a training run.

    Attributes:
        data: the clips.
        model: the network.
        optimizer: the optimiser and its schedule.
        trainer: the loop.
        seed: of the initial weights, the order of clips, augmentation and dropout.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    seed: int = 0


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Builds a dataclass, nested ones included, from what `dataclasses.asdict` gave.

    Raises:
        ValueError: a field is unknown, is missing or has the wrong type; the message names it.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=cls)
    try:
        return parser.instantiate(parser.parse_object({"value": values})).value
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes a configuration as YAML that `avemo train --config` takes."""
    import yaml

    write(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON and YAML can hold it; `from_dict` takes it back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return values
