"""Training as a user runs it: it learns, it resumes to the bit, and it fails with a clear word."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fbp_kernels
from avemo.data.augment import AugmentConfig
from avemo.data.batch import Batch
from avemo.models.backend import BackendName, use_backend
from avemo.models.config import FusionConfig
from avemo.training import checkpoint
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.module import (
    EmotionModule,
    TrainingDivergedError,
    build_optimizer,
    seed_step,
)
from avemo.training.train import TrainResult, train
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache

EPOCHS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def run(cache: Path, out: Path, *, epochs: int = EPOCHS, **changes: object) -> TrainResult:
    """A short run with dropout everywhere, so that random numbers matter."""
    fusion = FusionConfig(6, 3, 5, 2, trunks=3, dropout=0.2)
    options: dict[str, object] = {
        "data": DataConfig(cache, batch_size=5, augment=AugmentConfig(flip=0.5, gain_db=3.0)),
        "model": tiny_config(fusion=fusion, dropout=0.3),
        "optimizer": OptimizerConfig(learning_rate=0.01),
        "trainer": TrainerConfig(epochs=epochs, accelerator="cpu"),
        "seed": 3,
        "out": out,
        "backend": "reference",
    }
    return train(**(options | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def unbroken(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(cache, tmp_path_factory.mktemp("unbroken"))


def test_a_run_leaves_what_it_promises(unbroken: TrainResult) -> None:
    folder = unbroken.last.parent
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "best.safetensors",
        "last.safetensors",
        "config.yaml",
        "resume.ckpt",
        "tensorboard",
    }
    assert any((folder / "tensorboard").iterdir())
    assert checkpoint.load(unbroken.last).classes == CLASSES


def test_the_same_run_twice_is_the_same_to_the_bit(
    unbroken: TrainResult, cache: Path, tmp_path: Path
) -> None:
    again = run(cache, tmp_path / "again")
    assert again.best_epoch == unbroken.best_epoch
    assert again.last.read_bytes() == unbroken.last.read_bytes()
    other = run(cache, tmp_path / "other", seed=4)
    assert other.last.read_bytes() != unbroken.last.read_bytes()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(
    unbroken: TrainResult, cache: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of an epoch, so that nothing can be saved on the way out."""
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from avemo.training.module import EmotionModule
        from tests.avemo.training.test_train import run
        original = EmotionModule.training_step
        def dying(self, batch, index):
            if self.current_epoch == 2 and index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, batch, index)
        EmotionModule.training_step = dying
        run(Path({str(cache)!r}), Path({str(tmp_path / "out")!r}))
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "out" / "resume.ckpt").exists()
    resumed = run(cache, tmp_path / "out", resume=True)
    weights, expected = load_file(resumed.last), load_file(unbroken.last)
    assert weights.keys() == expected.keys()
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name
    assert resumed.best_epoch == unbroken.best_epoch
    assert resumed.best.read_bytes() == unbroken.best.read_bytes()


def test_resuming_a_finished_run_changes_nothing(unbroken: TrainResult, cache: Path) -> None:
    before = unbroken.last.read_bytes()
    assert run(cache, unbroken.last.parent, resume=True) == unbroken
    assert unbroken.last.read_bytes() == before


def test_a_run_is_not_overwritten(unbroken: TrainResult, cache: Path) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        run(cache, unbroken.last.parent)


def test_resuming_with_other_settings_is_refused(unbroken: TrainResult, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"seed was 3, now 5"):
        run(cache, unbroken.last.parent, resume=True, seed=5)


def test_a_run_that_could_not_start_leaves_no_folder(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.name"):
        run(cache, tmp_path / "out", model=tiny_config("nope"))
    with pytest.raises(FileNotFoundError, match="no finished cache"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match=r"data\.batch_size is too large"):
        run(cache, tmp_path / "out", data=DataConfig(cache, batch_size=99, drop_last=True))
    assert not (tmp_path / "out").exists()


def test_code_in_a_resume_file_is_not_run(cache: Path, tmp_path: Path) -> None:
    import pickle

    from tests.avemo.training.test_checkpoint import Trap

    run(cache, tmp_path / "out", epochs=1)
    torch.save({"state_dict": Trap(tmp_path / "trapped")}, tmp_path / "out" / "resume.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        run(cache, tmp_path / "out", epochs=1, resume=True)
    assert not (tmp_path / "trapped").exists()


def test_a_loss_that_is_no_number_stops_the_run(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="the loss became nan in step"):
        run(cache, tmp_path / "out", optimizer=OptimizerConfig(learning_rate=1e30))


def test_best_is_by_unweighted_accuracy_then_by_loss(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from avemo.data.features import FeatureConfig
    from avemo.training.callbacks import ModelCheckpoints
    from avemo.training.config import TrainConfig

    keeper = ModelCheckpoints(
        tmp_path, TrainConfig(DataConfig(Path("c"))), CLASSES, FeatureConfig()
    )
    module = SimpleNamespace(model=torch.nn.Linear(1, 1))
    kept = []
    for epoch, (ua, loss) in enumerate([(0.5, 1.0), (0.4, 0.1), (0.5, 0.9), (0.5, 0.95), (0.6, 2)]):
        reached = {"val/ua": torch.tensor(ua), "val/loss": torch.tensor(loss)}
        trainer = SimpleNamespace(callback_metrics=reached, current_epoch=epoch)
        keeper.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
        kept.append(keeper.best_epoch)
    assert kept == [0, 0, 2, 2, 4]
    other = ModelCheckpoints(tmp_path, TrainConfig(DataConfig(Path("c"))), CLASSES, FeatureConfig())
    other.load_state_dict(keeper.state_dict())
    assert (other.best, other.best_epoch) == (keeper.best, keeper.best_epoch)


def test_biases_and_normalisations_are_not_decayed() -> None:
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.5))
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decay.keys() == {name for name, _ in model.named_parameters()}
    assert decay["fusion.p"] == decay["audio.encoder.conv1.weight"] == 0.5
    assert decay["norms.0.weight"] == decay["classifier.bias"] == 0.0


def test_the_optimizer_is_fused_on_a_gpu_alone() -> None:
    def fused(device: str, *, scaled: bool = False) -> bool:
        model = nn.ParameterList(torch.empty(shape, device=device) for shape in ((3, 2), (3,)))
        optimizer = build_optimizer(model, OptimizerConfig(), scaled=scaled)
        return bool(optimizer.defaults["fused"])

    with FakeTensorMode():
        assert fused("cuda")
        assert not fused("cuda", scaled=True)
        assert not fused("cpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_for_a_fused_optimizer_too(
    cache: Path, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is on a GPU; PyTorch has one for CPUs."""
    norms: list[float] = []

    class Fused(torch.optim.AdamW):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"fused": True})

        def step(self, closure: Any = None) -> Any:
            loss = closure()
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm().item())
            super().step()
            return loss

    monkeypatch.setattr(torch.optim, "AdamW", Fused)
    trainer = TrainerConfig(epochs=1, accelerator="cpu", precision=precision)  # type: ignore[arg-type]
    run(cache, tmp_path, optimizer=OptimizerConfig(gradient_clip=0.01), trainer=trainer)
    assert norms
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


STEPS = 200


def _marked_batch(seed: int) -> Batch:
    """Random clips of different lengths in which every class leaves its mark in both streams."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(12) % 4
    audio = torch.randn(12, BINS, 33, generator=generator)
    video = torch.randn(12, 4, FACE_SIZE, FACE_SIZE, generator=generator)
    for row, label in enumerate(labels):
        audio[row, 5 * label : 5 * label + 5, 10:] += 1
        video[row, 2:, 4 * label : 4 * label + 4] += 1
    audio_lengths = torch.randint(20, 34, (12,), generator=generator)
    video_lengths = torch.randint(3, 5, (12,), generator=generator)
    for row in range(12):
        audio[row, :, audio_lengths[row] :] = 0
        video[row, video_lengths[row] :] = 0
    return Batch(audio, audio_lengths, video, video_lengths, labels, [])


def loss_curve(backend: BackendName, *, jitter: int | None = None) -> torch.Tensor:
    """The losses of 200 steps with dropout on the same batches, float64 (200,).

    `jitter` seeds a change of every weight by at most one unit in the last place after every step:
    what a different order of summation may do, and no more.
    """
    fusion = FusionConfig(6, 3, 5, 2, trunks=3, dropout=0.1)
    model = tiny_model(fusion=fusion).train()
    use_backend(model, backend)
    module = EmotionModule(model, 4, OptimizerConfig(), seed=0)
    optimizer = build_optimizer(model, OptimizerConfig())
    curve = []
    for step in range(STEPS):
        seed_step(0, step)
        loss = module.loss(_marked_batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
        if jitter is not None:
            generator = torch.Generator().manual_seed(1000 * jitter + step)
            with torch.no_grad():
                for weight in model.parameters():
                    up = torch.randint(-1, 2, weight.shape, generator=generator)
                    towards = torch.where(up < 0, -torch.inf, torch.inf)
                    weight.copy_(torch.where(up == 0, weight, weight.nextafter(towards)))
    return torch.tensor(curve, dtype=torch.float64)


@pytest.mark.slow
def test_accelerated_training_has_the_loss_curve_of_the_reference() -> None:
    """Over 200 steps the losses differ by no more than twice what float32 rounding alone does."""
    missing = [
        f"{s.operator}: {s.reason}"
        for s in fbp_kernels.available_backends("cpu")
        if s.backend == "native" and s.operator == "am_fbp" and not s.available
    ]
    if missing:
        pytest.skip(f"the native backend cannot run: {missing[0]}")
    reference = loss_curve("reference")
    rounding = max((loss_curve("reference", jitter=i) - reference).abs().max() for i in range(2))
    native = loss_curve("native")
    assert reference[-20:].mean() < 0.8 * reference[:20].mean()  # it trains, so errors could grow
    assert 0 < (native - reference).abs().max() <= 2 * rounding
    assert rounding < 1e-3
