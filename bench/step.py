"""One training step of the whole model: plain PyTorch, accelerated, compiled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fbp_kernels
from avemo.data.batch import Batch, random_batch
from avemo.models import build_model
from avemo.models.config import (
    AttentionConfig,
    AudioEncoderConfig,
    FusionConfig,
    ModelConfig,
    VideoEncoderConfig,
)
from avemo.training.config import OptimizerConfig
from avemo.training.step import TrainingStep

from . import memory, verify
from .names import ACCELERATED
from .plan import Outcome, Settings, ratios
from .records import Case, Measurement, Spread
from .timing import interleave

LEAST_TURNS = 7
_CLASSES = 7
_TOTAL = 10_000  # steps that the schedule spans, more than are ever taken


@dataclass(frozen=True)
class StepShape:
    """Sizes of a training step.

    Attributes:
        model: the network.
        batch: arguments of `random_batch`.
    """

    model: ModelConfig
    batch: dict[str, int]


STEPS = {
    # The paper's scale: clips of 3 s, 10 ms and 80 ms from frame to frame.
    "full": StepShape(
        ModelConfig(),
        {"size": 16, "bins": 200, "audio_frames": 301, "face_size": 64, "video_frames": 38},
    ),
    "tiny": StepShape(
        ModelConfig(
            audio=AudioEncoderConfig((4, 6, 6, 6, 5), out_features=5),
            video=VideoEncoderConfig((4, 6), out_features=6),
            audio_attention=AttentionConfig(4),
            video_attention=AttentionConfig(4),
            fusion=FusionConfig(4, 3, 3, 2, 2),
        ),
        {"size": 3, "bins": 50, "audio_frames": 40, "face_size": 16, "video_frames": 5},
    ),
}


@dataclass(frozen=True)
class StepPlan:
    """A training step: loss, gradients, clipping and optimiser.

    Attributes:
        label: of `STEPS`.
        device: "cpu" or "cuda".
    """

    label: str
    device: str
    mode: str = "training"

    @property
    def name(self) -> str:
        return f"training_step {self.label} float32 training"

    @property
    def family(self) -> tuple[str, str, str]:
        return ("training_step", "", self.mode)

    @property
    def contenders(self) -> list[str]:
        return [ACCELERATED, "eager", "compile"]

    def measure(self, names: list[str], settings: Settings) -> Outcome:
        sides = {name: self._side(name) for name in names}
        wrong = self._wrong(sides)
        left_out = {name: f"wrong: {why}" for name, why in wrong.items()}
        runs = {n: _bound(side, self._batch) for n, side in sides.items() if n not in wrong}
        samples = interleave(runs, settings.seconds, settings.clock, LEAST_TURNS)
        measured = {n: self._measurement(n, sides[n], runs[n], samples) for n in runs}
        sizes = dict(STEPS[self.label].batch)
        flops, moved = self._arithmetic()
        case = Case(
            "training_step", self.label, "", sizes, "float32", self.mode,
            flops, moved, 0.0, measured, left_out,
        )  # fmt: skip
        return Outcome(case, samples, wrong)

    @cached_property
    def _batch(self) -> Batch:
        batch = random_batch(**STEPS[self.label].batch, classes=_CLASSES)
        return _converted(batch, lambda t: t.to(self.device))

    def _model(self) -> nn.Module:
        sizes = STEPS[self.label].batch
        torch.manual_seed(0)
        return build_model(
            STEPS[self.label].model,
            bins=sizes["bins"],
            face_size=sizes["face_size"],
            classes=_CLASSES,
        ).to(self.device)

    def _side(self, name: str) -> TrainingStep:
        model = self._model()
        if name == ACCELERATED:
            fbp_kernels.accelerate(model)
        # With PyTorch's own generator, so that dropout can be compared; its masks here are small.
        called = model
        if name == "compile":
            called = cast(nn.Module, torch.compile(model, options={"fallback_random": True}))
        return TrainingStep(called, _CLASSES, OptimizerConfig(), seed=0, total=_TOTAL)

    def _wrong(self, sides: dict[str, TrainingStep]) -> dict[str, str]:
        """Sides whose gradient in the first step is off by more than the rule allows, all in all.

        Truth is the same step in float64; errors are of all gradients together, in the Euclidean norm, since
        the worst of millions says more of luck than of code.
        """
        model = self._model().double()
        batch = _converted(self._batch, lambda t: t.double() if t.is_floating_point() else t)
        truth = _gradient(TrainingStep(model, _CLASSES, OptimizerConfig(), seed=0, total=1), batch)
        plain = _distance(_gradient(self._side("eager"), self._batch), truth)
        scale, eps = truth.norm().item(), torch.finfo(torch.float32).eps
        wrong = {}
        for name, side in sides.items():
            rule = verify.correct if name == ACCELERATED else verify.alike
            error = _distance(_gradient(side, self._batch), truth)
            allowed = rule(plain, scale, eps)
            if not error <= allowed:
                wrong[name] = f"gradient is off by {error:.3e}, allowed are {allowed:.3e}"
        return wrong

    def _measurement(
        self,
        name: str,
        side: TrainingStep,
        run: Callable[[], Tensor],
        samples: dict[str, list[float]],
    ) -> Measurement:
        given = (*side.module.parameters(), *self._batch[:5])
        return Measurement(
            Spread.of(samples[name]),
            len(samples[name]),
            ratios(name, samples),
            memory.peak_bytes(run, self.device),
            memory.kept_bytes(lambda: side.forward(self._batch), given),
            memory.launches(run) if self.device == "cuda" else None,
        )

    def _arithmetic(self) -> tuple[float, float]:
        """Operations of products and convolutions; weights, their gradients and the batch moved once."""
        side = self._side("eager")
        with FlopCounterMode(display=False) as counter:
            side.backward(side.forward(self._batch))
        weights = sum(p.nbytes for p in side.module.parameters())
        given = sum(t.nbytes for t in self._batch[:5])
        return float(counter.get_total_flops()), 2.0 * weights + given


def _bound(side: TrainingStep, batch: Batch) -> Callable[[], Tensor]:
    return lambda: side(batch)


def _converted(batch: Batch, convert: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(
        convert(batch.audio),
        convert(batch.audio_lengths),
        convert(batch.video),
        convert(batch.video_lengths),
        convert(batch.labels),
        batch.names,
    )


def _gradient(side: TrainingStep, batch: Batch) -> Tensor:
    """All gradients of the next step, in one float64 vector; the weights stay."""
    side.backward(side.forward(batch))
    gradients = [p.grad for p in side.module.parameters() if p.grad is not None]
    return torch.cat([g.double().flatten() for g in gradients])


def _distance(gradient: Tensor, truth: Tensor) -> float:
    return (gradient - truth).norm().item()
