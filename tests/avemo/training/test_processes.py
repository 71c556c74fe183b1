"""Several processes train as one does, and go on with what another number of them began."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_map_only

from avemo.data.batch import no_clips
from avemo.data.datamodule import EpochSampler, Share, SharedBatches
from avemo.data.shards import shards
from avemo.models import MODELS
from avemo.training.config import (
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
    save_config,
)
from avemo.training.module import EmotionModule
from tests.avemo.models.tiny_model import BINS, CLASSES, FACE_SIZE, tiny_config, tiny_model
from tests.avemo.tiny_cache import write_cache
from tests.avemo.training import together
from tests.avemo.training.together import CLIPS, EPOCHS, OPTIONS, STEPS

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "OMP_NUM_THREADS": "1",
}


class Alone:
    """Runs of one process, and of two in the folder beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_cache(folder / "cache", CLIPS)
        with together.watched() as self.seen:
            self.unbroken = together.run(folder / "cache", folder / "alone")
        with together.watched((1, 1)), pytest.raises(SystemExit):
            together.run(folder / "cache", folder / "begun")
        with together.watched() as self.seen_options:
            self.options = together.run(folder / "cache", folder / "alone-options", **OPTIONS)
        shards(folder / "cache", out=str(folder / "shards"), shard_mb=0.02)
        options = together.streamed(folder)
        with together.watched() as self.seen_streamed:
            self.streamed = together.run(
                folder / "kept-alone", folder / "alone-streamed", **options
            )
        for strategy in ("ddp", "fsdp"):
            shutil.copytree(folder / "begun", folder / f"{strategy}-resumed")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", str(Path(together.__file__)), str(folder)),
        ]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        self.of_two = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("runs"))


def same(a: Path, b: Path) -> None:
    """To rounding, which grows from step to step: 5e-6 was seen after twelve."""
    weights, expected = load_file(a), load_file(b)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.shape == expected[name].shape
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(strategy: str, runs: Alone) -> None:
    first, second = (of[strategy] for of in runs.of_two)
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == EPOCHS * STEPS
    assert first["losses"] == pytest.approx(runs.seen["losses"], rel=2e-5)
    same(runs.folder / strategy / "last.safetensors", runs.unbroken.last)
    for epoch, names in runs.seen["names"].items():
        both = first["names"][epoch] + second["names"][epoch]
        assert sorted(both) == sorted(names)
        assert len(names) == len(set(names)) == CLIPS["train"]
        assert len(first["names"][epoch]) == 10  # of the last batch's one clip the second has none
    assert sorted(first["validated"] + second["validated"]) == sorted(runs.seen["validated"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(strategy: str, runs: Alone) -> None:
    """Within an epoch. Of the two processes only the second had been told to end."""
    same(runs.folder / f"{strategy}-resumed" / "last.safetensors", runs.unbroken.last)
    assert [of[strategy]["status"] for of in runs.of_two] == [128 + signal.SIGTERM, 0]
    begun = runs.folder / f"{strategy}-begun"
    ours, theirs = (
        torch.load(f / "resume.ckpt", weights_only=True) for f in (runs.folder / "begun", begun)
    )
    assert theirs["global_step"] == STEPS + 2
    assert _outline(theirs["state_dict"]) == _outline(ours["state_dict"])
    assert _outline(theirs["optimizer_states"]) == _outline(ours["optimizer_states"])
    assert theirs["loops"] == ours["loops"]
    resumed = together.run(runs.folder / "cache", begun, resume=True)
    same(resumed.last, runs.unbroken.last)
    assert resumed.best_epoch == runs.unbroken.best_epoch


@pytest.mark.slow
def test_options_are_the_same_for_many(runs: Alone) -> None:
    """Averaged weights, weights of classes, balanced batches, several batches to a step."""
    first, second = (of["options"] for of in runs.of_two)
    assert first["losses"] == second["losses"] == pytest.approx(runs.seen_options["losses"], rel=2e-5)  # fmt: skip
    same(runs.folder / "options" / "last.safetensors", runs.options.last)


@pytest.mark.slow
def test_shards_are_read_by_two_processes_as_by_one(runs: Alone) -> None:
    """Every clip once an epoch, in the batches of one process; copies are shared."""
    first, second = (of["streamed"] for of in runs.of_two)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(runs.seen_streamed["losses"], rel=2e-5)
    same(runs.folder / "streamed" / "last.safetensors", runs.streamed.last)
    for epoch, names in runs.seen_streamed["names"].items():
        assert names != runs.seen["names"][epoch]
        assert sorted(first["names"][epoch] + second["names"][epoch]) == sorted(names)
        assert len(names) == len(set(names)) == CLIPS["train"]
    copies = sorted(file.name for file in (runs.folder / "kept").glob("*.tar"))
    assert len(copies) >= 4
    assert not [*(runs.folder / "kept").glob("*.part")]


def _outline(state: Any) -> Any:
    """A state with kinds and shapes in place of tensors."""
    kind = lambda x: (type(x), tuple(x.shape), x.dtype)  # noqa: E731
    return tree_map_only(torch.Tensor, kind, state)


@pytest.mark.slow
def test_statistics_of_each_process_are_others(runs: Alone) -> None:
    """But what is logged, and what comes of it, is the same for both."""
    first, second = (of["apart"]["losses"] for of in runs.of_two)
    assert first == second
    assert len(first) == STEPS
    assert first[0] != pytest.approx(runs.seen["losses"][0], rel=1e-3)
    assert all(map(math.isfinite, first))


@pytest.mark.slow
def test_a_command_starts_its_processes_and_ends_them(tmp_path: Path) -> None:
    """Asked to end, the first process and the one that it has started save together, and no message comes twice."""
    cache, out = write_cache(tmp_path / "cache", CLIPS), tmp_path / "out"
    save_config(
        TrainConfig(DataConfig(cache, 5), tiny_config(), trainer=TrainerConfig(1000, "cpu")),
        tmp_path / "config.yaml",
    )
    options = {"config": tmp_path / "config.yaml", "out": out, "trainer.devices": 2}
    words = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "avemo", "train", *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 300
    while not (out / "resume.ckpt").exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert said.count("processes: 2, 7 batch norms with the statistics of all") == 1
    assert errors.count("stopped by SIGTERM, and saved; go on by: avemo train --config") == 1
    assert "Traceback" not in errors
    assert torch.load(out / "resume.ckpt", weights_only=True)["global_step"] >= STEPS
    assert not list(out.glob("*.lock"))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("clips", [1, 7, 15, 16])
def test_every_clip_comes_once_whatever_the_remainder(
    clips: int, processes: int, batch_size: int
) -> None:
    order = EpochSampler(np.arange(clips), seed=1)
    shares = [
        SharedBatches(order, batch_size, False, Share(process, processes))
        for process in range(processes)
    ]
    (whole,) = [list(SharedBatches(order, batch_size, False, Share()))]
    of_all = [list(share) for share in shares]
    assert {len(batches) for batches in of_all} == {len(whole)} == {len(shares[0])}
    for batch, *parts in zip(whole, *of_all, strict=True):
        assert sorted(batch) == sorted(key for part in parts for key in part)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(index for batch in whole for _, index, _ in batch) == list(range(clips))
    for share, batches in zip(shares, of_all, strict=True):
        share.skip = 1
        assert list(share) == batches[1:]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lbp_top_svm"])
def test_a_process_without_clips_takes_part_in_every_exchange(name: str) -> None:
    """Every weight has a gradient, of zero, or those that wait for it would wait for ever."""
    module = EmotionModule(tiny_model(name).train(), CLASSES, OptimizerConfig(), 0)
    loss = module.loss(no_clips(BINS, FACE_SIZE))
    loss.backward()
    assert loss == 0
    for weight, parameter in module.named_parameters():
        assert parameter.grad is not None, weight
        assert not parameter.grad.any(), weight


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision 16-mixed does not go with .* fsdp"):
        TrainerConfig(strategy="fsdp", precision="16-mixed")
    with pytest.raises(ValueError, match=r"compile default does not go with .* fsdp"):
        TrainerConfig(strategy="fsdp", compile="default")
    with pytest.raises(ValueError, match=r"optimizer\.ema does not go with .* fsdp"):
        TrainConfig(
            DataConfig(Path()),
            optimizer=OptimizerConfig(ema=0.9),
            trainer=TrainerConfig(strategy="fsdp"),
        )
    with pytest.raises(ValueError, match=r"trainer\.devices must be at least 1, got 0"):
        TrainerConfig(devices=0)
