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
from tqdm import tqdm

from avemo.data.batch import Batch
from avemo.data.datamodule import ClipDataModule, EpochSampler
from avemo.models import build_model
from avemo.models.backend import BackendName, use_backend
from avemo.training.config import TrainConfig
from avemo.training.module import EmotionModule, build_optimizer, seed_step

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
        loss_difference: the largest difference of the two losses over all steps.
        first_loss: of the reference, in the first step.
        last_loss: of the reference, in the last step.
    """

    steps: int
    backends: str
    reference_ms: Quartiles
    accelerated_ms: Quartiles
    speedup: Quartiles
    loss_difference: float
    first_loss: float
    last_loss: float


class _Side:
    """One of two models that train in turn."""

    def __init__(self, model: nn.Module, classes: int, config: TrainConfig) -> None:
        self.config = config
        self.device = next(model.parameters()).device
        self.module = EmotionModule(model, classes, config.optimizer, config.seed).train()
        self.optimizer = build_optimizer(model, config.optimizer)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: Batch) -> None:
        """Takes one training step with the random numbers of that step's place in the run."""
        seed_step(self.config.seed, len(self.losses))
        self._synchronize()
        start = time.perf_counter()
        loss = self.module.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        clip = self.config.optimizer.gradient_clip
        nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        self.optimizer.step()
        self._synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def compare_steps(
    config: TrainConfig, *, steps: int = 200, backend: BackendName | None = None
) -> StepComparison:
    """Trains the same model twice, step by step in turn: reference first, then accelerated first.

    Both sides start from the same weights and see the same batches and the same dropout masks, at
    a constant learning rate. Taking turns, in alternating order, keeps whatever else the machine does
    from favouring one side.

    Args:
        config: the model, its data and its optimiser.
        steps: training steps of each side, more than five: those warm up and are not timed.
        backend: of the accelerated side; by default the best for each operator.
    """
    if steps <= _WARM_UP:
        raise ValueError(f"steps must be more than {_WARM_UP}, got {steps}")
    clips = ClipDataModule(**vars(config.data), seed=config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    reference = build_model(
        config.model,
        bins=clips.features.bins,
        face_size=clips.features.face_size,
        classes=len(clips.classes),
    ).to(device)
    accelerated = copy.deepcopy(reference)
    use_backend(reference, "reference")
    backends = use_backend(accelerated, backend)
    sides = [_Side(model, len(clips.classes), config) for model in (reference, accelerated)]
    batches = _batches(clips, steps, device)
    for number, batch in enumerate(tqdm(batches, "comparing", steps, unit="step")):
        for side in sides if number % 2 == 0 else reversed(sides):
            side.step(batch)
    times = [1e3 * np.array(side.seconds[_WARM_UP:]) for side in sides]
    losses = [np.array(side.losses) for side in sides]
    return StepComparison(
        steps=steps,
        backends=backends,
        reference_ms=Quartiles.of(times[0]),
        accelerated_ms=Quartiles.of(times[1]),
        speedup=Quartiles.of(times[0] / times[1]),
        loss_difference=float(np.abs(losses[0] - losses[1]).max()),
        first_loss=float(losses[0][0]),
        last_loss=float(losses[0][-1]),
    )


def _batches(clips: ClipDataModule, steps: int, device: str) -> Iterator[Batch]:
    """The training batches of as many epochs as it takes."""
    loader = clips.train_dataloader()
    order = loader.sampler
    assert isinstance(order, EpochSampler)

    def epoch(number: int) -> Iterable[Batch]:
        order.set_epoch(number)
        return loader

    endless = chain.from_iterable(map(epoch, count()))
    for batch in islice(endless, steps):
        audio, audio_lengths, video, video_lengths, labels = (x.to(device) for x in batch[:5])
        yield Batch(audio, audio_lengths, video, video_lengths, labels, batch.names)
