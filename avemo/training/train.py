"""Trains a model on a cache of prepared clips."""

import json
import logging
import os
import shlex
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from avemo.imports import without_collection
from avemo.models.backend import BackendName, use_backend
from avemo.models.config import ModelConfig
from avemo.storage import one_writer, write
from avemo.training.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
    save_config,
    to_dict,
)
from avemo.training.ensemble import train_members

if TYPE_CHECKING:
    import torch

    from avemo.data.datamodule import ClipDataModule

_CONFIG, _STARTS = "config.yaml", "run.json"
_COMPILE_MODES = {"default": "default", "cuda_graphs": "reduce-overhead"}  # of torch.compile


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

    An ensemble's members are trained one after the other, each into a folder of its own within `out`,
    with seeds that count from `seed`, and then put together.

    The folder `out` receives best.safetensors (the best unweighted accuracy on the validation
    split, then the lowest loss), last.safetensors, config.yaml, TensorBoard logs, run.json (command,
    versions, commit and machine of every start), and what it takes to go on after a kill:
    resume.ckpt and the one before it. They are written after every epoch and every
    `trainer.checkpoint_minutes` within one; SIGTERM, Ctrl-C and SIGUSR1 (what Slurm sends for
    `--signal=USR1@90`) save too, and name the command that goes on. On one machine a resumed run ends
    with the same weights, bit by bit, as one that was never killed. With more epochs than before,
    it goes on at its place in the longer schedule.

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
        FolderInUseError: another process is writing into `out`.
        ValueError: the backend asked for, or what `trainer` asks for, cannot run here; or `resume` is
            set, but the run in `out` is another one or cannot be read.
        CacheError: a clip cannot be read.
        WriteError: the disk is full, or cannot be written to.
        TrainingDivergedError: the loss is no longer a finite number.
        SystemExit: a signal has stopped the run; the status is 128 and the signal's number.
    """
    config = TrainConfig(data, model, optimizer, trainer, seed)
    quieten()
    own = _own_place(trainer)
    if model.name == "ensemble" and own.processes > 1:
        raise ValueError(
            f"an ensemble is trained by one process, not by {own.processes}; train its members one by one, and put "
            "them together by `avemo ensemble`"
        )
    with one_writer(out, "avemo train") if own.first else nullcontext():
        if model.name == "ensemble":
            again: Any = {"backend": backend, "resume": resume}
            return train_members(config, out, lambda c, to: train(**vars(c), out=to, **again))
        return _train(config, out, backend, resume, own)


class _Place(NamedTuple):
    """Where a process stands among those of its run.

    Attributes:
        first: whether it is the one that writes.
        processes: how many there are.
        device: where its network goes; its operators are chosen for that device.
    """

    first: bool
    processes: int
    device: "torch.device"


def _train(
    config: TrainConfig, out: Path, backend: BackendName | None, resume: bool, own: _Place
) -> TrainResult:
    import lightning.pytorch as pl
    import torch

    from avemo.data.datamodule import ClipDataModule
    from avemo.models import build_model, required_streams
    from avemo.models.transformer import resolved
    from avemo.models.weights import start_weights
    from avemo.training.callbacks import ModelCheckpoints, Scales, StepProgress, averaging
    from avemo.training.fitting import FitOnValidation, learn
    from avemo.training.memory import keep_freed_memory
    from avemo.training.module import EmotionModule
    from avemo.training.resume import ResumeFiles, RunKeeper, StoppedError, StopRequest
    from avemo.training.synchronize import synchronize

    config = replace(config, model=resolved(config.model))
    trainer, seed = config.trainer, config.seed
    if trainer.compile == "cuda_graphs" and own.device.type != "cuda":
        raise ValueError("trainer.compile is cuda_graphs, which needs a GPU, and this run has none")
    needs = required_streams(config.model, config.data.augment.modality_dropout)
    clips = ClipDataModule(**vars(config.data), seed=seed, needs=needs)
    if not len(clips.train_dataloader()):
        raise ValueError("data.drop_last leaves no training batch: data.batch_size is too large")
    clips.val_dataloader()  # a split without clips is told before anything is written
    files = ResumeFiles(out, _identity(config, clips), own.first)
    if files.exist() and not resume:
        raise FileExistsError(
            f"{out} holds a training run; go on with it by --resume, or choose another --out"
        )
    start = files.find()
    _check_sound(config.model, clips.features.sound)
    pl.seed_everything(seed, verbose=False)
    network = build_model(
        config.model,
        bins=clips.features.audio_features,
        face_size=clips.features.face_size,
        classes=len(clips.classes),
    )
    if start is None:
        start_weights(network, config.model)
    network.to(own.device)
    parameters = sum(p.numel() for p in network.parameters())
    if hasattr(network, "learn"):
        if own.first:
            save_config(config, out / _CONFIG)
            _note_start(out)
        return learn(network, clips, config, out)
    operators, memory = use_backend(network, backend), keep_freed_memory()
    together = synchronize(network) if own.processes > 1 and trainer.sync_batch_norm else []
    if trainer.compile != "no":
        network.compile(mode=_COMPILE_MODES[trainer.compile])
    if own.first:
        for said in filter(None, map(clips.left_out, ("train", "val"))):
            print(said)
        print(f"model {config.model.name}: {parameters:,} parameters, {len(clips.classes)} classes")
        print(f"operators by backend: {operators}")
        print(f"freed memory: {memory or 'kept for the next step'}")
        if own.processes > 1:
            norms = (
                f"{len(together)} batch norms with the statistics of all"
                if together
                else "each by itself"
            )
            print(f"processes: {own.processes}, {norms}")
        save_config(config, out / _CONFIG)
        _note_start(out)
    checkpoints = ModelCheckpoints(out, config, clips.classes, clips.features)
    stop = StopRequest()
    ema = config.optimizer.ema
    precision = _precision(trainer, own.device.type)
    weights = torch.from_numpy(clips.class_weights()) if config.optimizer.class_weights else None
    loop = pl.Trainer(
        max_epochs=trainer.epochs,
        **_processes(trainer),
        use_distributed_sampler=False,  # the loader gives each process its share
        precision=None if precision else trainer.precision,
        gradient_clip_val=config.optimizer.gradient_clip,
        accumulate_grad_batches=trainer.accumulate,
        callbacks=[
            checkpoints,
            *([averaging(ema)] if ema is not None else []),
            FitOnValidation(),
            RunKeeper(files, trainer.checkpoint_minutes, stop),
            Scales(),
            StepProgress(),
            pl.callbacks.LearningRateMonitor("step"),
        ],
        plugins=[files, *precision],
        logger=pl.loggers.TensorBoardLogger(out, name=None, version="tensorboard"),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    with stop.heard():
        try:
            loop.fit(
                EmotionModule(network, len(clips.classes), config.optimizer, seed, weights),
                clips,
                ckpt_path=start,
                weights_only=True,
            )
        except StoppedError as stopped:
            if not own.first:  # Lightning kills a run of which a process has failed
                raise SystemExit(0) from None
            print(
                f"stopped by {stopped}, and saved; go on by: {_go_on(out, backend)}",
                file=sys.stderr,
            )
            raise SystemExit(128 + stopped.signal) from None
    assert checkpoints.best is not None
    assert checkpoints.best_epoch is not None
    result = TrainResult(
        best=out / "best.safetensors",
        last=out / "last.safetensors",
        best_epoch=checkpoints.best_epoch,
        unweighted_accuracy=checkpoints.best[0],
    )
    if own.first:
        print(
            f"best of {loop.current_epoch} epochs: {result.best_epoch}, unweighted accuracy on the validation "
            f"split {result.unweighted_accuracy:.1%}; saved as {result.best}"
        )
    return result


def _check_sound(model: ModelConfig, kept: str) -> None:
    """Whether a cache keeps of the sound what a model hears.

    Raises:
        ValueError: it does not.
    """
    from avemo.models import needed_streams
    from avemo.models.transformer import is_pretrained

    heard = "waveform" if is_pretrained(model.audio.encoder) else "spectrogram"
    if "audio" in needed_streams(model) and heard != kept:
        raise ValueError(
            f"model.audio.encoder {model.audio.encoder} hears a {heard}, and the cache keeps a {kept}: "
            f"prepare it with --sound {heard}"
        )


def _identity(config: TrainConfig, clips: "ClipDataModule") -> dict[str, Any]:
    """All that decides the result of a run."""
    return {
        "config": to_dict(config),
        "classes": list(clips.classes),
        "features": clips.features.to_dict(),
        "clips": clips.cache.digest,
    }


def _note_start(out: Path) -> None:
    """Adds this start to those in the run's folder."""
    from avemo.training.provenance import provenance

    file = out / _STARTS
    try:
        before = list(json.loads(file.read_bytes())["starts"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        before = []
    starts = [*before, provenance(sys.argv)]
    write(file, json.dumps({"starts": starts}, indent=1) + "\n")


def _go_on(out: Path, backend: BackendName | None) -> str:
    """The command that goes on with a run."""
    words = ["avemo", "train", "--config", str(out / _CONFIG), "--out", str(out), "--resume"]
    return shlex.join([*words, *(["--backend", backend] if backend else [])])


def _precision(config: TrainerConfig, device: str) -> list[Any]:
    """What computes in half precision where Lightning would take another: it has no float16 on CPUs."""
    from lightning.pytorch.plugins import MixedPrecision

    own = config.precision == "16-mixed" and device == "cpu"
    return [MixedPrecision("16-mixed", "cpu")] if own else []


def _processes(config: TrainerConfig) -> dict[str, Any]:
    """Which processes train, in Lightning's words; `torchrun` has started them, and says how many."""
    devices, nodes = config.devices, config.num_nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy: Any = config.strategy
    if strategy == "fsdp":
        from avemo.training.sharded import ShardedStrategy

        strategy = ShardedStrategy()
    return {
        "accelerator": config.accelerator,
        "devices": devices,
        "num_nodes": nodes,
        "strategy": strategy,
    }


def _own_place(config: TrainerConfig) -> _Place:
    """What Lightning finds in the environment."""
    import lightning.pytorch as pl

    loop = pl.Trainer(**_processes(config), logger=False, enable_checkpointing=False)
    return _Place(loop.is_global_zero, loop.world_size, loop.strategy.root_device)


def quieten() -> None:
    """Keeps what Lightning says about itself, and what does not concern our users, off the console."""
    with without_collection():  # a fifth of what its import takes
        import lightning.pytorch  # noqa: F401, it sets the level of what it says when it is imported

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*sync_dist=True. when logging on epoch level.*",  # what is logged is the same in all processes
        ".*lr_scheduler.step.. before .optimizer.step.*",  # where a step in float16 had no finite gradient
        ".*padding='same' with even kernel lengths.*",  # the copy that it speaks of is what is wanted
    ):
        warnings.filterwarnings("ignore", message)
