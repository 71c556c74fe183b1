"""The configuration of a training run, typed and with all its defaults."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from avemo.data.augment import AugmentConfig
from avemo.data.folds import FoldConfig
from avemo.models.config import ModelConfig
from avemo.storage import write
from avemo.typed import build

T = TypeVar("T")

_SEEDS = 2**32  # that NumPy's first generator takes


@dataclass(frozen=True)
class DataConfig:
    """Where the clips come from and how they are served (`avemo.data.datamodule.ClipDataModule`).

    Attributes:
        cache: folder that `avemo prepare` wrote, or of shards; with `shards`, a folder for copies of them.
        batch_size: clips per step, of all processes together.
        max_seconds: longer clips are cropped; null keeps them whole.
        augment: random changes to training clips.
        drop_last: leave out the last batch of a training epoch if it is not full.
        num_workers: processes that read ahead; 0 reads in the training process.
        balanced: draw every class equally often: of each epoch's clips as many as before, rare classes repeated.
        fold: train, validate and test on other splits than the corpus's: those of a fold.
        shared_speakers: train although a speaker is in two splits.
        shards: where `avemo shards` wrote to, a folder or a URL; they are fetched while training runs.
        shards_mixed: of how many shards the clips of training are mixed; more mix better, and are more to keep.
        shards_gb: GB that the copies may take; those that were not used for longest go.
    """

    cache: Path
    batch_size: int = 16
    max_seconds: float | None = 10.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    drop_last: bool = False
    num_workers: int = 0
    balanced: bool = False
    fold: FoldConfig = field(default_factory=FoldConfig)
    shared_speakers: bool = False
    shards: str | None = None
    shards_mixed: int = 16
    shards_gb: float = 20.0


@dataclass(frozen=True)
class OptimizerConfig:
    """The loss, AdamW, and its learning rate over time (`avemo.training.optimizer`).

    Attributes:
        learning_rate: the highest.
        weight_decay: for weights; biases and normalisations are not decayed.
        warmup: share of all steps in which the rate rises.
        gradient_clip: largest norm of all gradients together; 0 leaves them as they are.
        label_smoothing: share of the target probability that is spread over all classes.
        schedule: of the rate after it has risen. one_cycle: rises from a 25th of it and falls to nearly zero, each like
            a cosine. cosine: rises in a line from zero, falls to zero like a cosine. step: rises in a line, and is
            multiplied by `decay` at each of the `milestones`. constant: rises in a line, and stays.
        milestones: of the schedule `step`, as shares of all steps.
        decay: of the schedule `step`.
        class_weights: weigh clips in the loss by the inverse of how many of their class there are, 1 on average.
        ema: decay per step of a running average of the weights, which then is what is validated and kept; null keeps
            the weights themselves.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.2
    gradient_clip: float = 1.0
    label_smoothing: float = 0.1
    schedule: Literal["one_cycle", "cosine", "step", "constant"] = "one_cycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    class_weights: bool = False
    ema: float | None = None

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.milestones):
            raise ValueError(
                f"optimizer.milestones must lie between 0 and 1, got {self.milestones}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "gradient_clip"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"optimizer.{name} must not be negative, got {getattr(self, name)}"
                )
        for name in ("warmup", "label_smoothing", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optimizer.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"optimizer.ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class TrainerConfig:
    """The loop.

    Attributes:
        epochs: passes over the training split.
        accelerator: where to train; "auto" takes a GPU if there is one.
        precision: arithmetic of the network; 16-mixed scales the loss.
        checkpoint_minutes: what a kill may cost at most: within longer epochs the run is saved as well.
        accumulate: batches whose gradients make one step; an epoch's last step takes what is left.
        patience: end early after so many epochs without a best one; null goes through all.
        devices: processes on this machine, each with a GPU or a share of the CPU's cores; `torchrun` says it itself.
        num_nodes: machines.
        strategy: how processes share the work. ddp: each has all weights. fsdp: weights, gradients and the optimiser's
            state are shared out, and a step gathers the weights.
        sync_batch_norm: normalise with the statistics of all processes' clips, so that the result does not depend on
            how many there are; false takes each process's own, which needs no exchange within the network.
        compile: run the network through `torch.compile`; cuda_graphs also records its launches, for each shape of a
            batch, and plays them back.
    """

    epochs: int = 40
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint_minutes: float = 10.0
    accumulate: int = 1
    patience: int | None = None
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    sync_batch_norm: bool = True
    compile: Literal["no", "default", "cuda_graphs"] = "no"

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "patience", "devices", "num_nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {value}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"trainer.checkpoint_minutes must not be negative, got {self.checkpoint_minutes}"
            )
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError(
                "trainer.precision 16-mixed does not go with trainer.strategy fsdp: each process would scale the loss "
                "of its own share; take bf16-mixed, or ddp"
            )
        if self.strategy == "fsdp" and self.compile != "no":
            raise ValueError(
                f"trainer.compile {self.compile} does not go with trainer.strategy fsdp; take ddp"
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

    def __post_init__(self) -> None:
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"seed must lie in 0..{_SEEDS - 1}, got {self.seed}")
        if self.optimizer.ema is not None and self.trainer.strategy == "fsdp":
            raise ValueError(
                "optimizer.ema does not go with trainer.strategy fsdp: an average is of whole weights; take ddp"
            )


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Builds a dataclass, nested ones included, from what `dataclasses.asdict` gave.

    Raises:
        ValueError: a field is unknown, is missing or has the wrong type; the message names it.
    """
    return build(cls, values)


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes a configuration as YAML that `avemo train --config` takes."""
    import yaml

    write(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON and YAML can hold it; `from_dict` takes it back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return values
