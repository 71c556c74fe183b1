"""Training as a user runs it: it learns, it resumes to the bit, and it fails with a clear word."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fbp_kernels
from avemo.cli import main
from avemo.data.augment import AugmentConfig
from avemo.data.batch import Batch
from avemo.models.backend import BackendName, use_backend
from avemo.models.config import FusionConfig
from avemo.storage import FolderInUseError, WriteError
from avemo.training import checkpoint
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.module import EmotionModule, TrainingDivergedError, seed_step
from avemo.training.optimizer import build_optimizer, build_schedule
from avemo.training.resume import ResumeError
from avemo.training.train import TrainResult, train
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_config, tiny_model, whole_batch
from tests.avemo.tiny_cache import CLASSES, write_cache
from tests.avemo.writers import one_writer_elsewhere

EPOCHS = 4
AUGMENT = AugmentConfig(flip=0.5, gain_db=3.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"))


def run(cache: Path, out: Path, *, epochs: int = EPOCHS, **changes: object) -> TrainResult:
    """A short run with dropout everywhere, so that random numbers matter."""
    fusion = FusionConfig(6, 3, 5, 2, trunks=3, dropout=0.2)
    options: dict[str, object] = {
        "data": DataConfig(cache, batch_size=5, augment=AUGMENT),
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
        "run.json",
        "resume.ckpt",
        "resume.previous.ckpt",
        "tensorboard",
    }
    assert any((folder / "tensorboard").iterdir())
    assert checkpoint.load(unbroken.last).classes == CLASSES


def test_a_run_tells_how_it_was_made_and_its_configuration_repeats_it(
    unbroken: TrainResult, tmp_path: Path
) -> None:
    folder = unbroken.last.parent
    start = json.loads((folder / "run.json").read_text())["starts"][0]
    assert start["command"] == sys.argv
    assert start["versions"]["torch"] == torch.__version__
    assert start["machine"]["threads"] == torch.get_num_threads()
    head = ["git", "rev-parse", "HEAD"]
    root = Path(__file__).parents[3]
    commit = subprocess.run(head, cwd=root, capture_output=True, text=True).stdout.strip()
    assert (start["commit"] or "").removesuffix("-dirty") == commit
    words = ["train", "--config", str(folder / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main([*words, "--backend", "reference"]) == 0
    assert (tmp_path / "again" / "last.safetensors").read_bytes() == unbroken.last.read_bytes()


def test_the_same_run_twice_is_the_same_to_the_bit(
    unbroken: TrainResult, cache: Path, tmp_path: Path
) -> None:
    again = run(cache, tmp_path / "again")
    assert again.best_epoch == unbroken.best_epoch
    assert again.last.read_bytes() == unbroken.last.read_bytes()
    other = run(cache, tmp_path / "other", seed=4)
    assert other.last.read_bytes() != unbroken.last.read_bytes()


def _script(cache: Path, out: Path, at: tuple[int, int], does: str, **options: object) -> str:
    """A run that does something in a step of an epoch."""
    return textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from avemo.training.config import TrainerConfig
        from avemo.training.module import EmotionModule
        from tests.avemo.training.test_train import run
        original = EmotionModule.training_step
        def step(self, batch, index):
            if (self.current_epoch, index) == {at}:
                {does}
            return original(self, batch, index)
        EmotionModule.training_step = step
        trainer = TrainerConfig(**{ {"epochs": EPOCHS, "accelerator": "cpu"} | options })
        run(Path({str(cache)!r}), Path({str(out)!r}), trainer=trainer)
    """)


def _elsewhere(script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )


def _same(resumed: TrainResult, unbroken: TrainResult) -> None:
    weights, expected = load_file(resumed.last), load_file(unbroken.last)
    assert weights.keys() == expected.keys()
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name
    assert resumed.best_epoch == unbroken.best_epoch
    assert load_file(resumed.best).keys() == load_file(unbroken.best).keys()
    for name, weight in load_file(unbroken.best).items():
        assert torch.equal(load_file(resumed.best)[name], weight), name


def _resume(cache: Path, out: Path) -> TrainResult:
    return run(cache, out, resume=True)


def test_a_step_is_seeded_as_torch_seeds_and_only_the_devices_in_use_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`torch.manual_seed` formats the call stack for each kind of device that is not in use: milliseconds a step."""
    seeded: list[int] = []
    torch.manual_seed((3 << 32) + 7)
    expected = torch.rand(5)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", None)
        patch.setattr(traceback, "format_stack", None)
        patch.setattr(torch.cuda, "manual_seed_all", seeded.append)
        patch.setattr(torch.mps, "manual_seed", seeded.append)
        for device in ("cpu", "cuda:1", "mps"):
            torch.rand(1)
            seed_step(3, 7, torch.device(device))
            assert torch.equal(torch.rand(5), expected)
    assert seeded == [(3 << 32) + 7] * 2


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [10.0, 0.0])  # saved after every epoch; after every step
def test_a_killed_run_resumes_to_the_same_weights(
    minutes: float, unbroken: TrainResult, cache: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of an epoch, so that nothing can be saved on the way out."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    out = tmp_path / "out"
    killed = _elsewhere(_script(cache, out, (2, 2), kill, checkpoint_minutes=minutes))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = torch.load(out / "resume.ckpt", weights_only=True)["global_step"]
    steps = 4  # an epoch has
    assert saved == (2 * steps if minutes else 2 * steps + 2)
    _same(_resume(cache, out), unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at"), [("SIGTERM", (2, 3)), ("SIGINT", (1, 1)), ("SIGUSR1", (0, 2))]
)
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    name: str, at: tuple[int, int], unbroken: TrainResult, cache: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch, and in its last step."""
    out = tmp_path / "out"
    stopped = _elsewhere(_script(cache, out, at, f"os.kill(os.getpid(), signal.{name})"))
    assert stopped.returncode == 128 + getattr(signal, name), stopped.stderr
    shown, last = stopped.stderr.strip().rsplit("\n", 1)
    assert all(line.startswith("training: ") for line in shown.split("\r")), "no word of Lightning"
    said, command = last.split("; go on by: ")
    assert said == f"stopped by {name}, and saved"
    assert (
        torch.load(out / "resume.ckpt", weights_only=True)["global_step"] == 4 * at[0] + at[1] + 1
    )
    words = shlex.split(command)
    assert words[0] == "avemo"
    assert main(words[1:]) == 0
    result = _resume(cache, out)
    _same(result, unbroken)
    assert len(json.loads((out / "run.json").read_text())["starts"]) == 3


@pytest.fixture
def copied(unbroken: TrainResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken.last.parent, tmp_path / "copied"))


def test_a_damaged_resume_file_is_named_and_the_one_before_goes_on(
    copied: Path, unbroken: TrainResult, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = copied / "resume.ckpt", copied / "resume.previous.ckpt"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for content in (whole[: len(whole) // 3], b"", bytes(changed)):
        file.write_bytes(content)
        _same(_resume(cache, copied), unbroken)
        assert f"warning: {file} is damaged (" in capsys.readouterr().err
        assert before.read_bytes() != content
    file.write_bytes(b"")
    before.write_bytes(whole[:-100])
    with pytest.raises(ResumeError, match=r"resume.ckpt is damaged \(.* choose another --out"):
        _resume(cache, copied)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    copied: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copied / "resume.ckpt").read_bytes()

    def full(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.startswith("resume.ckpt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    longer = TrainerConfig(epochs=EPOCHS + 1, accelerator="cpu")
    with pytest.raises(WriteError, match=r"cannot write .*resume.ckpt: No space left on device"):
        run(cache, copied, resume=True, trainer=longer)
    assert (copied / "resume.ckpt").read_bytes() == before
    assert not list(copied.glob("*.part"))


def test_a_run_goes_on_for_more_epochs(
    copied: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its place in the schedule of the longer run; the first step still has the rate with which the run ended."""
    rates = []
    original = EmotionModule.training_step

    def step(self: EmotionModule, batch: Batch, index: int) -> torch.Tensor:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return original(self, batch, index)

    monkeypatch.setattr(EmotionModule, "training_step", step)
    longer = TrainerConfig(epochs=EPOCHS + 2, accelerator="cpu")
    run(cache, copied, resume=True, trainer=longer)
    config = OptimizerConfig(learning_rate=0.01)
    optimizer = build_optimizer(tiny_model(), config)
    schedule = build_schedule(optimizer, config, 4 * (EPOCHS + 2))
    whole = []
    for _ in range(4 * (EPOCHS + 2)):
        whole.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert len(rates) == 4 * 2
    assert rates[1:] == pytest.approx(whole[4 * EPOCHS + 1 :])
    assert max(rates[1:]) > 1e-3
    with pytest.raises(ResumeError, match=r"trainer\.epochs was 6, now 4"):
        run(cache, copied, resume=True)


def test_a_file_of_another_run_is_refused(copied: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"model\.name was am_fbp, now audio"):
        run(cache, copied, resume=True, model=tiny_config("audio"))
    other = write_cache(tmp_path / "cache", {"train": 17, "val": 6})
    with pytest.raises(ResumeError, match=r"resume.ckpt, it is of another run: clips was"):
        run(other, copied, resume=True)
    moved = Path(shutil.copytree(cache, tmp_path / "moved"))
    run(moved, copied, resume=True, data=DataConfig(moved, 5, augment=AUGMENT))
    torch.save({"state_dict": {}}, copied / "resume.ckpt")
    with pytest.raises(ResumeError, match="no resume file of `avemo train`"):
        run(cache, copied, resume=True)


def test_two_runs_into_one_folder_are_one_too_many(copied: Path, cache: Path) -> None:
    with one_writer_elsewhere(copied), pytest.raises(FolderInUseError, match="being written by"):
        _resume(cache, copied)


def test_a_start_that_failed_is_in_nobodys_way(cache: Path, tmp_path: Path) -> None:
    """Without clips to validate on nothing is written; what diverged in its first epoch is no run either."""
    out = tmp_path / "out"
    bad = write_cache(tmp_path / "bad", {"train": 4})
    with pytest.raises(ValueError, match="no clips of the split 'val'"):
        run(bad, out, data=DataConfig(bad))
    assert not out.exists()
    with pytest.raises(TrainingDivergedError):
        run(cache, out, optimizer=OptimizerConfig(learning_rate=1e30), epochs=1)
    assert run(cache, out, epochs=1).best_epoch == 0


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
    from tests.avemo.training.test_checkpoint import Trap

    run(cache, tmp_path / "out", epochs=1)
    torch.save({"state_dict": Trap(tmp_path / "trapped")}, tmp_path / "out" / "resume.ckpt")
    with pytest.raises(ResumeError, match="more than numbers and tensors"):
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
        trainer = SimpleNamespace(
            callback_metrics=reached, current_epoch=epoch, is_global_zero=True
        )
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
    return whole_batch(audio, audio_lengths, video, video_lengths, labels)


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
        seed_step(0, step, torch.device("cpu"))
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
    rounding = max((loss_curve("reference", jitter=i) - reference).abs().max() for i in range(6))
    native = loss_curve("native")
    assert reference[-20:].mean() < 0.8 * reference[:20].mean()  # it trains, so errors could grow
    assert 0 < (native - reference).abs().max() <= 2 * rounding
    assert rounding < 1e-3
