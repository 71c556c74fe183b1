"""Profiles training steps of a model: `python -m profiling.step --help`."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn

from avemo.data.batch import Batch, random_batch
from avemo.models import build_model
from avemo.models.backend import use_backend
from avemo.training.config import DataConfig, TrainConfig, from_dict
from avemo.training.step import TrainingStep
from bench import ceilings, machine
from bench.records import Spread
from bench.step import STEPS
from bench.timing import clock, interleave
from fbp_kernels.backends import BACKENDS
from profiling import commands, ncu
from profiling.memory import state_tensors, storage_bytes
from profiling.ranges import ModuleRanges, Range, cost_seconds, nvtx_status
from profiling.record import one_step, record
from profiling.report import TRACE, About, Profile, text, write
from profiling.trace import BACKWARD, DATA, FORWARD, LOSS, OPTIMIZER

_TOTAL = 100_000  # steps that the learning rate's schedule spans, more than are ever taken
_DTYPES = {"32-true": "float32", "bf16-mixed": "bfloat16"}  # of the products, by precision
_TIMED = 5  # steps that nothing watches


# Sizes of noise, by the arguments of `random_batch`.
_CLASSES = {"classes": 7}
NOISE = {name: shape.batch | _CLASSES for name, shape in STEPS.items()}
NOISE["small"] = NOISE["full"] | {"bins": 100, "face_size": 48}


@dataclass(frozen=True)
class Setting:
    """What is trained on what.

    Attributes:
        config: of model, optimizer and trainer.
        bins: of the spectrograms.
        face_size: of the faces.
        classes: number of emotions.
        batch: clips in one.
        batches: an endless supply.
        source: where the clips come from, for people.
    """

    config: TrainConfig
    bins: int
    face_size: int
    classes: int
    batch: int
    batches: Iterator[Batch]
    source: str


class Steps:
    """Takes the training steps of a model, with a range around every part.

    Args:
        train: the step, phase by phase.
        batches: an endless supply.
        device: where the model is.
        autocast: what the forward runs in.
    """

    def __init__(
        self,
        train: TrainingStep,
        batches: Iterator[Batch],
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.train, self.batches, self.device, self.autocast = train, batches, device, autocast

    def __call__(self) -> None:
        """One step."""
        with Range(DATA):
            batch = moved(next(self.batches), self.device)
        with Range(FORWARD), self.autocast():
            loss = self.train.forward(batch)
        with Range(BACKWARD):
            self.train.backward(loss)
        with Range(OPTIMIZER):
            self.train.update()


@contextmanager
def loss_range(train: TrainingStep) -> Iterator[None]:
    """A context in which the loss is a range."""
    criterion = train.module.criterion

    def ranged(*arguments: Any) -> torch.Tensor:
        with Range(LOSS):
            return criterion(*arguments)

    vars(train.module)["criterion"] = ranged  # hides the class's own
    try:
        yield
    finally:
        del vars(train.module)["criterion"]


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return batch.map(lambda tensor: tensor.to(device))


def setting(name: str, cache: Path | None, batch: int | None, noise: dict[str, int]) -> Setting:
    """What a command line asks for.

    Args:
        name: of `bench.step.STEPS`, a configuration of avemo, or a YAML file of `avemo train`.
        cache: of real clips, or None for noise.
        batch: clips in one, or None for the configuration's.
        noise: sizes of the noise that differ from the configuration's, as in `NOISE`.

    Raises:
        ValueError, OSError: what is asked for is not there or does not fit.
    """
    if cache is not None and noise:
        raise ValueError(f"the clips' sizes are the cache's; got {', '.join(noise)} and --cache")
    config = configuration(name)
    if config.trainer.precision not in _DTYPES:  # 16-mixed, whose loss scaling is the trainer's
        raise ValueError(
            f"trainer.precision of {name} is {config.trainer.precision!r}; "
            f"expected {' or '.join(map(repr, _DTYPES))}"
        )
    size = batch or config.data.batch_size
    if cache is not None:
        return _cached(config, cache, size)
    sizes = NOISE.get(name, NOISE["full"]) | noise | {"size": size}
    batches = repeat(random_batch(**sizes))
    return Setting(
        config, sizes["bins"], sizes["face_size"], sizes["classes"], size, batches, "noise"
    )


def configuration(name: str) -> TrainConfig:
    """A configuration by name or file; those of `bench.step.STEPS` need nothing that parses.

    Raises:
        ValueError, OSError: there is none, or the file holds something else.
    """
    if name in STEPS:
        shape = STEPS[name]
        return TrainConfig(DataConfig(Path(), shape.batch["size"]), shape.model)
    import yaml

    from avemo.cli import find_config

    path = Path(find_config(name))
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a configuration")
    data = {"cache": "."} | (values.get("data") or {})  # --cache tells which
    return from_dict(TrainConfig, values | {"data": data})


def _cached(config: TrainConfig, cache: Path, size: int) -> Setting:
    from avemo.data.datamodule import ClipDataModule

    data = replace(config.data, cache=cache, batch_size=size)
    clips = ClipDataModule(**vars(data), seed=config.seed)
    features, classes = clips.features, len(clips.classes)
    batches = chain.from_iterable(repeat(clips.train_dataloader()))
    source = "clips of a cache"
    return Setting(
        config, features.audio_features, features.face_size, classes, size, batches, source
    )


def profile_step(
    wanted: Setting,
    *,
    backend: str | None,
    device: torch.device,
    steps: int,
    compiled: bool,
    shapes: bool,
    title: str,
    command: str,
    out: Path,
) -> Profile:
    """Profiles training steps and writes everything into a folder.

    Args:
        wanted: what is trained on what.
        backend: of the operators, None for the best there is.
        device: where.
        steps: how many are traced.
        compiled: train `torch.compile` of the model; its inside has no ranges then.
        shapes: tell operations apart by the shapes of their inputs.
        title: of the tables and the picture.
        command: that repeats it.
        out: the folder.

    Raises:
        ValueError: the backend cannot be used.
    """
    taken, model, backends = _prepare(wanted, backend, device, compiled)
    run = interleave({"step": lambda: one_step(taken, device)}, 0.0, clock(device.type), _TIMED)
    with ExitStack() as contexts:
        contexts.enter_context(loss_range(taken.train))
        ranges = ModuleRanges(model)
        if not compiled:
            contexts.enter_context(ranges)
        one_step(taken, device)
        taken.train.optimizer.zero_grad()  # freeing them would be in no trace
        held = _held_bytes(taken, device)
        trace = record(taken, steps=steps, device=device, path=out / TRACE)
    settings = {
        "batch": wanted.batch,
        "input": wanted.source,
        "precision": wanted.config.trainer.precision,
        "operators": backends,
        "NVTX": nvtx_status(),
    }
    if compiled:
        settings["torch.compile"] = "yes, so the model is one range"
    about = About(
        title, command, machine.describe(device.type), settings,
        Spread.of(run["step"]), cost_seconds(), held,
        ceilings.measure(device.type, [_DTYPES[wanted.config.trainer.precision]]),
    )  # fmt: skip
    return write(trace, about, out, ranges.kinds, shapes=shapes)


def _prepare(
    wanted: Setting, backend: str | None, device: torch.device, compiled: bool
) -> tuple[Steps, nn.Module, str]:
    torch.manual_seed(0)
    config = wanted.config
    model = build_model(
        config.model, bins=wanted.bins, face_size=wanted.face_size, classes=wanted.classes
    ).to(device)
    backends = use_backend(model, backend)  # type: ignore[arg-type]
    trained = torch.compile(model) if compiled else model
    train = TrainingStep(trained, wanted.classes, config.optimizer, seed=0, total=_TOTAL)  # type: ignore[arg-type]

    def autocast() -> AbstractContextManager[Any]:
        half = config.trainer.precision == "bf16-mixed"
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    return Steps(train, wanted.batches, device, autocast), model, backends


def _held_bytes(steps: Steps, device: torch.device) -> int:
    """Weights, buffers, the optimizer's state, and a batch that stays."""
    module, optimizer = steps.train.module, steps.train.optimizer
    tensors = [*module.parameters(), *module.buffers(), *state_tensors(optimizer)]
    if isinstance(steps.batches, repeat):
        tensors += [x for x in next(steps.batches) if isinstance(x, torch.Tensor)]
    return storage_bytes(tensors, device)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        _run(options, given)
    except (OSError, ValueError) as error:
        return commands.fail(_PROGRAM, error)
    return 0


_PROGRAM = "profiling.step"
_NOISE = tuple(size for size in NOISE["full"] if size != "size")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        description="Profiles training steps: time by range, kind of module and operation, memory, a trace.",
    )
    parser.add_argument(
        "--config",
        default="full",
        help="full (the default), small, tiny, or a file of `avemo train`",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="of the operators; default: the best for each"
    )
    parser.add_argument("--cache", type=Path, help="of `avemo prepare`; default: clips of noise")
    parser.add_argument("--batch", type=commands.positive, help="clips in a batch")
    for name in _NOISE:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=commands.positive, help="of the noise")
    parser.add_argument("--compile", action="store_true", help="train torch.compile of the model")
    commands.add_common(parser, steps=3)
    return parser


def _run(options: argparse.Namespace, given: list[str]) -> None:
    device = commands.device_of(options)
    noise = {size: value for size in _NOISE if (value := getattr(options, size)) is not None}
    wanted = setting(options.config, options.cache, options.batch, noise)
    if options.external:
        _watch(wanted, options, device)
        return
    name = f"step-{Path(options.config).stem}-{options.backend or 'best'}"
    out = commands.folder(options, name)
    profile = profile_step(
        wanted,
        backend=options.backend,
        device=device,
        steps=options.steps,
        compiled=options.compile,
        shapes=options.shapes,
        title=_title(options),
        command=commands.command(_PROGRAM, given),
        out=out,
    )
    print(text(profile))
    print(f"\nWritten to {out}; {TRACE} opens in https://ui.perfetto.dev")
    if device.type == "cuda":
        print(f"Nsight Systems: {commands.nsys(_PROGRAM, given)}")
        print(f"Nsight Compute: {ncu.step_command(given)}")


def _title(options: argparse.Namespace) -> str:
    parts = [
        "Training step",
        f"{Path(options.config).stem} model",
        options.backend or "accelerated",
    ]
    return ", ".join([*parts, "compiled"] if options.compile else parts)


def _watch(wanted: Setting, options: argparse.Namespace, device: torch.device) -> None:
    taken, model, _ = _prepare(wanted, options.backend, device, options.compile)
    with loss_range(taken.train), nullcontext() if options.compile else ModuleRanges(model):
        commands.watch(lambda: one_step(taken, device), options.steps, device)


if __name__ == "__main__":
    sys.exit(main())
