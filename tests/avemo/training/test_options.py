"""Every option of a run does what it says, and a run that has them resumes to the bit."""

import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avemo.data.augment import AugmentConfig
from avemo.data.batch import Batch
from avemo.data.datamodule import ClipDataModule
from avemo.models import build_model
from avemo.training import module as training_module
from avemo.training.config import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from avemo.training.module import EmotionModule
from avemo.training.optimizer import build_optimizer, build_schedule
from avemo.training.train import TrainResult, train
from tests.avemo.models.tiny_model import BINS, CLASSES, FACE_SIZE, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache

EPOCHS, STEPS = 2, 4  # 18 clips in batches of 5


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def run(
    cache: Path, out: Path, *, dropout: float = 0.3, resume: bool = False, **changes: Any
) -> TrainResult:
    """A short run; `changes` are of any part of the configuration."""

    def part(kind: type, **values: Any) -> Any:
        return kind(**values | {k: v for k, v in changes.items() if k in kind.__annotations__})

    return train(
        data=part(DataConfig, cache=cache, batch_size=5, augment=AugmentConfig(flip=0.5)),
        model=tiny_config(dropout=dropout),
        optimizer=part(OptimizerConfig, learning_rate=0.01),
        trainer=part(TrainerConfig, epochs=EPOCHS, accelerator="cpu"),
        seed=3,
        out=out,
        backend="reference",
        resume=resume,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {
            "schedule": "cosine",
            "ema": 0.7,
            "class_weights": True,
            "balanced": True,
            "precision": "bf16-mixed",
        },
        {"schedule": "step", "accumulate": 2, "precision": "16-mixed"},
    ],
    ids=["averaged", "accumulated"],
)
def test_a_run_with_options_resumes_to_the_bit(
    changes: dict[str, Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to end in the first batch of the second epoch: that is saved after the step that it is part of."""
    unbroken = run(cache, tmp_path / "unbroken", **changes)
    original, before = EmotionModule.training_step, signal.getsignal(signal.SIGUSR1)

    def step(self: EmotionModule, batch: Batch, index: int) -> Tensor:
        if (self.current_epoch, index) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(EmotionModule, "training_step", step)
        with pytest.raises(SystemExit):
            run(cache, tmp_path / "resumed", **changes)
    assert signal.getsignal(signal.SIGUSR1) == before
    saved = torch.load(tmp_path / "resumed" / "resume.ckpt", weights_only=True)
    of_one_step = changes.get("accumulate", 1)
    assert saved["global_step"] == STEPS // of_one_step + 1
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == of_one_step  # fmt: skip
    resumed = run(cache, tmp_path / "resumed", **changes, resume=True)
    assert resumed.last.read_bytes() == unbroken.last.read_bytes()
    assert resumed.best.read_bytes() == unbroken.best.read_bytes()


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "constant": lambda x: 1.0,
    "step": lambda x: 1.0,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_rises_in_a_line_and_then_follows_its_schedule(name: str) -> None:
    config = OptimizerConfig(
        0.5, warmup=0.2, schedule=name, milestones=(0.4, 0.75), decay=0.25  # type: ignore[arg-type]
    )  # fmt: skip
    optimizer = build_optimizer(tiny_model(), config)
    schedule = build_schedule(optimizer, config, 40)
    rates = []
    for _ in range(40):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert all(len(set(rate)) == 1 for rate in rates)
    rate = np.array(rates)[:, 0]
    assert rate[:8] == pytest.approx(0.5 * np.arange(1, 9) / 9)
    after = 0.5 * np.array([SCHEDULES[name](step / 32) for step in range(32)])
    if name == "step":
        after[16 - 8 :] *= 0.25
        after[30 - 8 :] *= 0.25
    assert rate[8:] == pytest.approx(after)


def test_one_cycle_whose_rise_has_no_length() -> None:
    """A fifth of five steps: PyTorch's own divides by zero."""
    optimizer = build_optimizer(tiny_model(), OptimizerConfig())
    build_schedule(optimizer, OptimizerConfig(), 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_gradients_of_several_batches_make_one_step(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches in threes: a step of three and one of what is left, each with the mean gradient over three."""
    steps: list[Tensor] = []
    numbers: list[int] = []
    original, seed = torch.optim.AdamW.step, training_module.seed_step

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        loss = closure()
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        steps.append(torch.cat([g.flatten() for g in grads if g is not None]))
        original(self)
        return loss

    def seed_step(of_run: int, number: int, device: torch.device) -> None:
        numbers.append(number)
        seed(of_run, number, device)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        patch.setattr(training_module, "seed_step", seed_step)
        run(cache, tmp_path / "out", dropout=0.0, accumulate=3, epochs=2, gradient_clip=0.0)
    assert len(steps) == 2 * 2
    assert len(set(numbers)) == 2 * STEPS  # no two batches draw the same masks
    torch.manual_seed(3)
    model = build_model(tiny_config(), bins=BINS, face_size=FACE_SIZE, classes=CLASSES)
    training = EmotionModule(model, CLASSES, OptimizerConfig(), 3).train()
    clips = ClipDataModule(cache, batch_size=5, augment=AugmentConfig(flip=0.5), seed=3)
    for batch in list(clips.train_dataloader())[:3]:
        (training.loss(batch) / 3).backward()
    groups = build_optimizer(model, OptimizerConfig()).param_groups
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    torch.testing.assert_close(steps[0], torch.cat([g.flatten() for g in grads]))


def test_a_run_ends_early_and_stays_ended(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = (0.5, 0.6, 0.4, 0.6, 0.9)
    epochs = []

    def scored(self: EmotionModule) -> None:
        epochs.append(self.current_epoch)
        self.val_confusion.reset()
        self.log("val/ua", accuracies[self.current_epoch])

    monkeypatch.setattr(EmotionModule, "on_validation_epoch_end", scored)
    # A loss that falls would make the fourth epoch the best of those with 0.6.
    options: dict[str, Any] = {"learning_rate": 1e-12, "warmup": 0.5, "epochs": 5}
    monkeypatch.setattr(EmotionModule, "validation_step", _loss_rises)
    ended = run(cache, tmp_path / "out", patience=2, **options)
    assert epochs == [0, 1, 2, 3]
    assert ended.best_epoch == 1
    assert run(cache, tmp_path / "out", patience=2, **options, resume=True) == ended
    assert epochs == [0, 1, 2, 3]
    more = run(cache, tmp_path / "out", patience=4, **options, resume=True)
    assert epochs == [0, 1, 2, 3, 4]
    assert more.best_epoch == 4


def _loss_rises(self: EmotionModule, batch: Batch, index: int) -> None:
    self.log("val/loss", 1.0 + self.current_epoch, on_epoch=True, batch_size=len(batch.labels))


def test_averaged_weights_are_validated_and_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against an average in float64 of the weights after every step."""
    average: dict[str, Tensor] = {}
    scored: list[dict[str, Tensor]] = []
    validate = EmotionModule.validation_step

    def stepped(self: EmotionModule, *_: Any) -> None:
        for name, weight in self.model.state_dict().items():
            now = weight.double().clone()
            average[name] = 0.7 * average[name] + 0.3 * now if name in average else now

    def validated(self: EmotionModule, batch: Batch, index: int) -> None:
        scored.append({name: x.clone() for name, x in self.model.state_dict().items()})
        validate(self, batch, index)

    monkeypatch.setattr(EmotionModule, "on_train_batch_end", stepped)
    monkeypatch.setattr(EmotionModule, "validation_step", validated)
    result = run(cache, tmp_path / "out", ema=0.7)
    kept = load_file(result.last)
    state = torch.load(tmp_path / "out" / "resume.ckpt", weights_only=True)
    trained = state["current_model_state"]["model.classifier.weight"]
    assert (trained - kept["classifier.weight"]).abs().max() > 1e-3
    for name, weight in kept.items():
        assert torch.equal(weight, scored[-1][name]), name
        if weight.is_floating_point():
            torch.testing.assert_close(weight.double(), average[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 23 training clips: 11 of the first class, 7 of the second, 5 of the third."""
    folder = write_cache(tmp_path_factory.mktemp("uneven"), {"train": 23, "val": 4})
    index = folder / "index.json"
    lines = index.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if '"label"' in line]
    for row, label in zip(rows, ["angry"] * 11 + ["happy"] * 7 + ["sad"] * 5, strict=False):
        lines[row] = f'   "label": "{label}",'
    index.write_text("\n".join(lines))
    return folder


def test_weights_of_classes(uneven: Path) -> None:
    """Each class has the same weight in all; the loss is the mean of the weighted losses over clips."""
    clips = ClipDataModule(uneven)
    assert clips.classes == ("angry", "happy", "neutral", "sad")
    weights = clips.class_weights()
    assert weights == pytest.approx([23 / 33, 23 / 21, 0, 23 / 15])
    config = OptimizerConfig(class_weights=True)
    module = EmotionModule(tiny_model(), 4, config, 0, torch.from_numpy(weights))
    assert not any("class_weights" in name for name in module.state_dict())
    logits, labels = torch.randn(7, 4), torch.tensor([0, 0, 1, 3, 3, 3, 1])
    logs = logits.double().log_softmax(1)
    smooth = 0.9 * logs[torch.arange(7), labels] + 0.1 * logs.mean(1)
    expected = -(torch.from_numpy(weights).double()[labels] * smooth).mean()
    assert module.criterion(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_weights_of_classes_reach_a_run(uneven: Path, tmp_path: Path) -> None:
    plain = run(uneven, tmp_path / "plain", epochs=1)
    weighted = run(uneven, tmp_path / "weighted", epochs=1, class_weights=True)
    assert not torch.equal(*(load_file(r.last)["fusion.p"] for r in (plain, weighted)))


def test_balanced_epochs_have_every_class_equally_often(uneven: Path) -> None:
    clips = ClipDataModule(uneven, batch_size=4, balanced=True, augment=AugmentConfig(gain_db=9.0))
    loader = clips.train_dataloader()
    seen: Counter[str] = Counter()
    for epoch in range(30):
        loader.set_epoch(epoch)
        batches = list(loader)
        names = [name for batch in batches for name in batch.names]
        labels = torch.cat([batch.labels for batch in batches])
        assert len(names) == 23
        assert sorted(labels.bincount(minlength=4).tolist()) == [0, 7, 8, 8]
        of_rare = Counter(n for n, label in zip(names, labels, strict=True) if label == 3)
        assert set(of_rare.values()) <= {1, 2}
        assert len(of_rare) == 5
        seen.update(names)
        sounds = {
            (name, batch.audio[row, 0, 0].item())
            for batch in batches
            for row, name in enumerate(batch.names)
        }
        assert len(sounds) == 23  # a clip that comes twice is changed anew
    assert len(seen) == 23
    assert max(seen.values()) < 4 * min(seen.values())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_precision_is_that_of_the_network(
    precision: str,
    dtype: torch.dtype,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dtypes, original = set(), EmotionModule.criterion

    def criterion(self: EmotionModule, logits: Tensor, labels: Tensor) -> Tensor:
        dtypes.add(logits.dtype)
        return original(self, logits, labels)

    monkeypatch.setattr(EmotionModule, "criterion", criterion)
    result = run(cache, tmp_path, epochs=1, precision=precision)
    assert dtypes == {dtype}
    assert all(x.dtype != dtype for x in load_file(result.last).values())
    state = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert ("scale" in state.get("MixedPrecision", {})) == (precision == "16-mixed")


@pytest.mark.slow
def test_compiled_networks_are_trained_and_saved_as_others(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the compiler's front, without the code generator, which takes a minute."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(model: Any, *, mode: str) -> Any:
        assert mode == "default"
        return original(model, backend=backend)

    original = torch.compile
    one_shape = write_cache(tmp_path / "cache", {"train": 10, "val": 5}, frames=(5, 6))
    plain = run(one_shape, tmp_path / "plain", epochs=1, dropout=0.0)
    monkeypatch.setattr(torch, "compile", compiled)
    result = run(one_shape, tmp_path / "compiled", epochs=1, dropout=0.0, compile="default")
    assert graphs
    weights, expected = load_file(result.last), load_file(plain.last)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_is_refused_without_one(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.compile is cuda_graphs, which needs a GPU"):
        run(cache, tmp_path / "out", compile="cuda_graphs")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(OptimizerConfig, ema=1.0), r"optimizer\.ema must lie in \[0, 1\), got 1.0"),
        (partial(OptimizerConfig, milestones=(0.5, 1.0)), r"optimizer\.milestones must lie"),
        (partial(OptimizerConfig, gradient_clip=-1.0), r"optimizer\.gradient_clip must not"),
        (
            partial(OptimizerConfig, weight_decay=-0.1),
            r"optimizer\.weight_decay must not be negative",
        ),
        (partial(OptimizerConfig, learning_rate=0.0), r"optimizer\.learning_rate must be positive"),
        (partial(OptimizerConfig, warmup=1.5), r"optimizer\.warmup must lie in \[0, 1\], got 1.5"),
        (partial(OptimizerConfig, label_smoothing=-0.1), r"optimizer\.label_smoothing must lie"),
        (partial(OptimizerConfig, decay=2.0), r"optimizer\.decay must lie in \[0, 1\], got 2.0"),
        (partial(TrainerConfig, accumulate=0), r"trainer\.accumulate must be at least 1, got 0"),
        (partial(TrainerConfig, patience=0), r"trainer\.patience must be at least 1, got 0"),
        (
            partial(TrainConfig, DataConfig(Path("c")), seed=2**32),
            r"seed must lie in 0\.\.4294967295",
        ),
        (partial(TrainConfig, DataConfig(Path("c")), seed=-1), r"seed must lie in 0\.\.4294967295"),
    ],
)
def test_options_out_of_range_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
