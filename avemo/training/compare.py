"""Training with reference and with accelerated operators, side by side in one process."""

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

from avemo.data.batch import Batch
from avemo.data.datamodule import ClipDataModule
from avemo.models import build_model, required_streams
from avemo.models.backend import BackendName, use_backend
from avemo.training.config import TrainConfig
from avemo.training.module import seed_step
from avemo.training.step import TrainingStep

_WARM_UP = 5  # steps that count for the losses, but not for the times


@dataclass(frozen=True)
class Quartiles:
    """The middle of a sample and its spread."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> "Quartiles":
        """The quartiles of a sample."""
        lower, median, upper = np.percentile(values, [25, 50, 75])
        return cls(float(lower), float(median), float(upper))


@dataclass(frozen=True)
class StepComparison:
    """What two backends make of the same training steps.

    Attributes:
        steps: how many were taken.
        backends: which operators the accelerated side ran where.
        reference_ms: time of a step with reference operators.
        accelerated_ms: time of a step with accelerated operators.
        speedup: of each step, reference over accelerated time.
        loss_difference: the largest difference of the two losses over all steps, each side having
            gone its own way from the same start.
        rounding_difference: the same between the reference and a second run of it whose initial
            weights are off by at most one unit in the last place: what rounding alone does.
        operator_difference: the largest difference of the two losses where both sides are given the
            weights of the reference in every step: what the operators do, without what
            training then makes of it.
        first_loss: of the reference, in the first step.
        last_loss: of the reference, in the last step.
    """

    steps: int
    backends: str
    reference_ms: Quartiles
    accelerated_ms: Quartiles
    speedup: Quartiles
    loss_difference: float
    rounding_difference: float
    operator_difference: float
    first_loss: float
    last_loss: float


class _Side:
    """One of two models that train in turn."""

    def __init__(self, model: nn.Module, classes: int, config: TrainConfig, steps: int) -> None:
        self.device = next(model.parameters()).device
        self.train = TrainingStep(model, classes, config.optimizer, seed=config.seed, total=steps)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: Batch) -> None:
        """Takes one training step with the random numbers of that step's place in the run."""
        self._synchronize()
        start = time.perf_counter()
        loss = self.train(batch)
        self._synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    @torch.no_grad()
    def loss_with_weights_of(self, other: "_Side", batch: Batch) -> float:
        """The loss that this side's operators give in the other side's next step."""
        seed_step(self.train.seed, self.train.taken, self.device)
        theirs = other.train.module.model.state_dict()
        tensors = {name: x.clone() for name, x in theirs.items()}
        module = self.train.module
        output = functional_call(module.model, tensors, batch[:4])
        return module.objective(output, batch.labels).item()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def compare_steps(
    config: TrainConfig, *, steps: int = 200, backend: BackendName | None = None
) -> StepComparison:
    """Trains the same model twice, step by step in turn: reference first, then accelerated first.

    Both sides start from the same weights, see the same batches and the same dropout masks, and follow
    the schedule of the whole training. Taking turns, in alternating order, keeps whatever else the
    machine does from favouring one side.

    Training is chaotic: a rounding error of the first step grows tenfold every few steps, whatever
    makes it. So the losses of two runs part after some dozen steps; two more figures tell how much
    of that is rounding, and how far the operators differ on equal weights.

    Args:
        config: the model, its data and its optimiser.
        steps: training steps of each side, more than five: those warm up and are not timed.
        backend: of the accelerated side; by default the best for each operator.
    """
    if steps <= _WARM_UP:
        raise ValueError(f"steps must be more than {_WARM_UP}, got {steps}")
    needs = required_streams(config.model, config.data.augment.modality_dropout)
    clips = ClipDataModule(**vars(config.data), seed=config.seed, needs=needs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    reference = build_model(
        config.model,
        bins=clips.features.audio_features,
        face_size=clips.features.face_size,
        classes=len(clips.classes),
    ).to(device)
    accelerated = copy.deepcopy(reference)
    use_backend(reference, "reference")
    backends = use_backend(accelerated, backend)
    total = config.trainer.epochs * len(clips.train_dataloader())
    *sides, disturbed = (
        _Side(model, len(clips.classes), config, max(total, steps))
        for model in (reference, accelerated, _disturbed(reference))
    )
    gaps = []
    batches = _batches(clips, steps, device)
    for number, batch in enumerate(tqdm(batches, "comparing", steps, unit="step")):
        elsewhere = sides[1].loss_with_weights_of(sides[0], batch)
        for side in sides if number % 2 == 0 else reversed(sides):
            side.step(batch)
        disturbed.step(batch)
        gaps.append(abs(elsewhere - sides[0].losses[-1]))
    times = [1e3 * np.array(side.seconds[_WARM_UP:]) for side in sides]
    losses = [np.array(side.losses) for side in (*sides, disturbed)]
    return StepComparison(
        steps=steps,
        backends=backends,
        reference_ms=Quartiles.of(times[0]),
        accelerated_ms=Quartiles.of(times[1]),
        speedup=Quartiles.of(times[0] / times[1]),
        loss_difference=float(np.abs(losses[0] - losses[1]).max()),
        rounding_difference=float(np.abs(losses[0] - losses[2]).max()),
        operator_difference=max(gaps),
        first_loss=float(losses[0][0]),
        last_loss=float(losses[0][-1]),
    )


def _disturbed(model: nn.Module) -> nn.Module:
    """A copy whose weights are off by one unit in the last place, up or down or not at all."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            way = torch.randint(-1, 2, weight.shape, device=weight.device)
            towards = torch.where(way < 0, -torch.inf, torch.inf)
            weight.copy_(torch.where(way == 0, weight, weight.nextafter(towards)))
    return copied


def _batches(clips: ClipDataModule, steps: int, device: str) -> Iterator[Batch]:
    """The training batches of as many epochs as it takes."""
    loader = clips.train_dataloader()

    def epoch(number: int) -> Iterable[Batch]:
        loader.set_epoch(number)
        return loader

    endless = chain.from_iterable(map(epoch, count()))
    for batch in islice(endless, steps):
        yield batch.map(lambda tensor: tensor.to(device))
