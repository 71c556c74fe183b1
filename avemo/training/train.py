"""Trains a model on a cache of prepared clips."""

import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avemo.models.backend import BackendName, use_backend
from avemo.models.config import ModelConfig
from avemo.training.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
    load_config,
    save_config,
)

_RESUME, _CONFIG = "resume.ckpt", "config.yaml"


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        best: checkpoint of the best epoch.
        last: checkpoint of the last epoch.
        best_epoch: counted from 0.
        unweighted_accuracy: of the best epoch, on the validation split.
    """

    best: Path
    last: Path
    best_epoch: int
    unweighted_accuracy: float


def train(
    *,
    data: DataConfig,
    model: ModelConfig = ModelConfig(),  # noqa: B008, it is frozen
    optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    trainer: TrainerConfig = TrainerConfig(),  # noqa: B008
    seed: int = 0,
    out: Path = Path("runs/train"),
    backend: BackendName | None = None,
    resume: bool = False,
) -> TrainResult:
    """Trains a model on the train split of a cache and validates it after every epoch.

    The folder `out` receives best.safetensors (the best unweighted accuracy on the validation
    split, then the lowest loss), last.safetensors, config.yaml, TensorBoard logs, and resume.ckpt:
    what it takes to go on after a kill. That is written after every epoch, so a killed run
    loses the epoch that it was in; on one machine the resumed run ends with the same weights, bit
    by bit, as one that was never killed.

    Args:
        data: the clips and how they are served.
        model: the network.
        optimizer: the optimiser and its schedule.
        trainer: the loop.
        seed: of the initial weights, the order of clips, augmentation and dropout.
        out: folder for all that the run writes.
        backend: kernels that run the model's operators; by default the best for each.
        resume: go on with the run in `out` where it was killed.

    Raises:
        FileExistsError: `out` holds a run and `resume` is not set.
        ValueError: the backend asked for cannot run here; or `resume` is set, but the run in
            `out` has another configuration.
        TrainingDivergedError: the loss is no longer a finite number.
    """
    config = TrainConfig(data, model, optimizer, trainer, seed)
    resume_file = _resume_file(out, config, resume)

    import lightning.pytorch as pl

    from avemo.data.datamodule import ClipDataModule
    from avemo.models import build_model
    from avemo.training.callbacks import ModelCheckpoints, StepProgress
    from avemo.training.memory import keep_freed_memory
    from avemo.training.module import EmotionModule

    _quieten()
    clips = ClipDataModule(**vars(data), seed=seed)
    if not len(clips.train_dataloader()):
        raise ValueError("data.drop_last leaves no training batch: data.batch_size is too large")
    pl.seed_everything(seed, verbose=False)
    network = build_model(
        model,
        bins=clips.features.bins,
        face_size=clips.features.face_size,
        classes=len(clips.classes),
    ).to(_device(trainer))
    parameters = sum(p.numel() for p in network.parameters())
    print(f"model {model.name}: {parameters:,} parameters, {len(clips.classes)} classes")
    print(f"operators by backend: {use_backend(network, backend)}")
    print(f"freed memory: {keep_freed_memory() or 'kept for the next step'}")
    out.mkdir(parents=True, exist_ok=True)
    save_config(config, out / _CONFIG)
    checkpoints = ModelCheckpoints(out, config, clips.classes, clips.features)
    pl.Trainer(
        max_epochs=trainer.epochs,
        accelerator=trainer.accelerator,
        devices=1,
        precision=trainer.precision,
        gradient_clip_val=optimizer.gradient_clip,
        callbacks=[
            checkpoints,
            pl.callbacks.ModelCheckpoint(
                out,
                Path(_RESUME).stem,
                every_n_epochs=1,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            StepProgress(),
            pl.callbacks.LearningRateMonitor("step"),
        ],
        logger=pl.loggers.TensorBoardLogger(out, name=None, version="tensorboard"),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    ).fit(
        EmotionModule(network, len(clips.classes), optimizer, seed),
        clips,
        ckpt_path=resume_file,
        weights_only=True,
    )
    assert checkpoints.best is not None
    assert checkpoints.best_epoch is not None
    result = TrainResult(
        best=out / "best.safetensors",
        last=out / "last.safetensors",
        best_epoch=checkpoints.best_epoch,
        unweighted_accuracy=checkpoints.best[0],
    )
    print(
        f"best of {trainer.epochs} epochs: {result.best_epoch}, unweighted accuracy on the validation "
        f"split {result.unweighted_accuracy:.1%}; saved as {result.best}"
    )
    return result


def _resume_file(out: Path, config: TrainConfig, resume: bool) -> Path | None:
    """The file to resume from; a run that was killed in its first epoch has none and starts anew."""
    if not resume:
        if (out / _CONFIG).exists():
            raise FileExistsError(
                f"{out} holds a training run; go on with it by --resume, or choose another --out"
            )
        return None
    file = out / _RESUME
    if not file.is_file():
        return None
    changed = _differences(load_config(out / _CONFIG), config)
    if changed:
        raise ValueError(
            f"cannot resume the run in {out} with another configuration: {'; '.join(changed)}"
        )
    return file


def _differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Settings that decide the result and are not the same, such as "seed was 0, now 1"."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in values.items():
            name = prefix + key
            leaves |= flat(value, name + ".") if isinstance(value, dict) else {name: value}
        return leaves

    was, now = flat(asdict(old)), flat(asdict(new))
    return [
        f"{name} was {was[name]}, now {now[name]}"
        for name in now
        if was[name] != now[name] and name not in ("data.cache", "data.num_workers")
    ]


def _device(config: TrainerConfig) -> str:
    """Where Lightning will put the network; its operators are chosen for that device."""
    import torch

    return "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def _quieten() -> None:
    """Keeps what Lightning says about itself, and what does not concern our users, off the console."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)
