"""One training step of the whole model: plain PyTorch, accelerated, compiled."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
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
from avemo.training.memory import keep_freed_memory
from avemo.training.step import TrainingStep

from . import memory, verify
from .names import ACCELERATED
from .plan import Outcome, Settings, ratios
from .records import Case, Measurement, Spread, case_name
from .timing import Note, interleave

LEAST_TURNS = 5
_CLASSES = 7
_TOTAL = 10_000  # steps that the schedule spans, more than are ever taken


@dataclass(frozen=True)
class StepShape:
    """Sizes of a training step.

    Attributes:
        name: shapes of one name compute the same.
        model: the network.
        batch: arguments of `random_batch`.
        keep_memory: let the process keep what is freed, as training does. It stays so, for all that comes after.
    """

    name: str
    model: ModelConfig
    batch: dict[str, int]
    keep_memory: bool = False

    def noise(self, device: str) -> Batch:
        """The batch of every step."""
        batch = random_batch(**self.batch, classes=_CLASSES)
        return batch.map(lambda t: t.to(device))

    def network(self, device: str) -> nn.Module:
        """The model with reference operators, the same weights every time."""
        torch.manual_seed(0)
        sizes = {"bins": self.batch["bins"], "face_size": self.batch["face_size"]}
        return build_model(self.model, **sizes, classes=_CLASSES).to(device)


# The paper's scale: clips of 3 s, 10 ms and 80 ms from frame to frame.
_FULL = StepShape(
    "full",
    ModelConfig(),
    {"size": 16, "bins": 200, "audio_frames": 301, "face_size": 64, "video_frames": 38},
)

STEPS = {
    "full": _FULL,
    "full-kept": replace(_FULL, keep_memory=True),
    "tiny": StepShape(
        "tiny",
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
        return case_name("training_step", self.label, "float32", self.mode)

    @property
    def family(self) -> tuple[str, str, str]:
        return ("training_step", "", self.mode)

    @property
    def contenders(self) -> list[str]:
        return [ACCELERATED, "eager", "channels-last", "compile"]

    def measure(self, names: list[str], settings: Settings) -> Outcome:
        if STEPS[self.label].keep_memory and (reason := keep_freed_memory()):
            return Outcome(self._case({}, dict.fromkeys(names, reason)), {}, {})
        note = settings.note
        sides = {name: self._side(name) for name in names}
        wrong = self._wrong(sides, note)
        left_out = {name: f"wrong: {why}" for name, why in wrong.items()}
        runs = {n: _bound(side, self._batch) for n, side in sides.items() if n not in wrong}
        samples = (
            interleave(runs, settings.seconds, settings.clock, LEAST_TURNS, note) if runs else {}
        )
        measured = {}
        for name, run in runs.items():
            note(name, "looked at for its memory")
            measured[name] = self._measurement(name, sides[name], run, samples)
        return Outcome(self._case(measured, left_out), samples, wrong)

    def _case(self, measured: dict[str, Measurement], left_out: dict[str, str]) -> Case:
        flops, moved = self._arithmetic()
        return Case(
            "training_step", self.label, "", dict(STEPS[self.label].batch), "float32", self.mode,
            flops, moved, 0.0, measured, left_out,
        )  # fmt: skip

    @cached_property
    def _batch(self) -> Batch:
        return STEPS[self.label].noise(self.device)

    def _side(self, name: str) -> TrainingStep:
        model = STEPS[self.label].network(self.device)
        if name == ACCELERATED:
            fbp_kernels.accelerate(model, channels_last=True)
        if name == "channels-last":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # With PyTorch's own generator, so that dropout can be compared; its masks here are small.
        called = model
        if name == "compile":
            called = cast(nn.Module, torch.compile(model, options={"fallback_random": True}))
        return stepping(called)

    def _wrong(self, sides: dict[str, TrainingStep], note: Note) -> dict[str, str]:
        """Sides whose gradient in the first step is off by more than the rule allows.

        Errors are of all gradients together, in the Euclidean norm, since the worst of millions says more of luck
        than of code.
        """
        note("", "computed by the reference")
        truth, plain = _truth_of_step(STEPS[self.label].name, self.device)
        scale, eps = truth.norm().item(), torch.finfo(torch.float32).eps
        wrong = {}
        for name, side in sides.items():
            note(name, "compared with float64")
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


def stepping(model: nn.Module) -> TrainingStep:
    """Takes steps of a model, as training does."""
    return TrainingStep(model, _CLASSES, OptimizerConfig(), seed=0, total=_TOTAL)


@lru_cache
def _truth_of_step(name: str, device: str) -> tuple[Tensor, float]:
    """The gradient of the first step in float64, and the error of the reference in float32.

    That is the larger of its errors in the two memory formats of convolutions: they sum in different orders, and in
    a network with ReLUs and max-pooling a last digit may send a gradient another way.
    """
    shape = STEPS[name]
    doubles = shape.noise(device).map(lambda t: t.double() if t.is_floating_point() else t)
    truth = _gradient(stepping(shape.network(device).double()), doubles)
    plain = max(
        _distance(_gradient(stepping(model), shape.noise(device)), truth)
        for memory_format in (torch.contiguous_format, torch.channels_last)
        for model in [shape.network(device).to(memory_format=memory_format)]  # type: ignore[call-overload]
    )
    return truth, plain


def _bound(side: TrainingStep, batch: Batch) -> Callable[[], Tensor]:
    return lambda: side(batch)


def _gradient(side: TrainingStep, batch: Batch) -> Tensor:
    """All gradients of the next step, in one float64 vector; the weights stay."""
    side.backward(side.forward(batch))
    gradients = [p.grad for p in side.module.parameters() if p.grad is not None]
    return torch.cat([g.double().flatten() for g in gradients])


def _distance(gradient: Tensor, truth: Tensor) -> float:
    return (gradient - truth).norm().item()
