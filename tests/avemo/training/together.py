"""One of two processes, started by torchrun, that train together; called with a folder that has a cache in it."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fbp_kernels
from avemo.data.augment import AugmentConfig
from avemo.data.batch import Batch
from avemo.training.config import DataConfig, OptimizerConfig, TrainerConfig
from avemo.training.module import EmotionModule
from avemo.training.synchronize import SynchronizedBatchNorm, synchronize
from avemo.training.train import TrainResult, train
from tests.avemo.models.tiny_model import tiny_config

CLIPS = {
    "train": 16,
    "val": 6,
}  # in batches of 5: for the last clip of each the second process has no part
EPOCHS, STEPS = 3, 4


OPTIONS: dict[str, Any] = {
    "data": {"balanced": True},
    "optimizer": {"schedule": "cosine", "class_weights": True, "ema": 0.7},
    "accumulate": 2,
}


def streamed(folder: Path) -> dict[str, Any]:
    """Options of a run that reads shards, which come two at a time."""
    return {"data": {"shards": str(folder / "shards"), "shards_mixed": 2}}


def run(
    cache: Path,
    out: Path,
    *,
    resume: bool = False,
    data: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainResult:
    """A run whose masks are none, since each process draws its own."""
    options: dict[str, Any] = {"epochs": EPOCHS, "accelerator": "cpu"}
    return train(
        data=DataConfig(cache, batch_size=5, augment=AugmentConfig(flip=0.5), **data or {}),
        model=tiny_config(),
        optimizer=OptimizerConfig(learning_rate=0.01, **optimizer or {}),
        trainer=TrainerConfig(**options | changes),
        seed=3,
        out=out,
        resume=resume,
    )


@contextmanager
def watched(stop: tuple[int, int] | None = None) -> Iterator[dict[str, Any]]:
    """What runs within see: losses, learning rates and the names of clips. Asks to end in a batch of an epoch."""
    seen: dict[str, Any] = {"losses": [], "names": {}, "validated": []}
    log, step, validate = EmotionModule.log, EmotionModule.training_step, EmotionModule.validation_step  # fmt: skip

    def logged(self: EmotionModule, name: str, value: Any, *args: Any, **options: Any) -> None:
        if name == "train/loss":
            seen["losses"].append(value.item())
        log(self, name, value, *args, **options)

    def stepped(self: EmotionModule, batch: Batch, index: int) -> Tensor:
        seen["names"].setdefault(str(self.current_epoch), []).extend(batch.names)
        if (self.current_epoch, index) == stop and self.global_rank == self.trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)  # one process is told, and all end
        return step(self, batch, index)

    def validated(self: EmotionModule, batch: Batch, index: int) -> None:
        seen["validated"].extend(batch.names)
        validate(self, batch, index)

    EmotionModule.log, EmotionModule.training_step, EmotionModule.validation_step = (  # type: ignore[method-assign]
        logged, stepped, validated,
    )  # fmt: skip
    try:
        yield seen
    finally:
        EmotionModule.log, EmotionModule.training_step, EmotionModule.validation_step = (  # type: ignore[method-assign]
            log, step, validate,
        )  # fmt: skip


def normalizations(rank: int) -> None:
    """Halves of a batch give what the whole one gives: values, statistics and gradients, float64."""
    for share in (slice(0, 3), slice(0, 5), slice(0, 0)):  # of the first process
        for padded in (False, True):
            torch.manual_seed(0)
            x, gradient = torch.randn(2, 5, 3, 2, 7, dtype=torch.float64)
            x = (x + 4) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
            lengths = torch.tensor([7, 0, 3, 1, 6]) if padded else None
            own = share if rank == 0 else slice(share.stop, 5)
            whole = fbp_kernels.BatchNorm(3, backend="reference", dtype=torch.float64)
            nn.init.uniform_(whole.weight)
            nn.init.uniform_(whole.bias)
            shared = fbp_kernels.BatchNorm(3, dtype=torch.float64)
            shared.load_state_dict(whole.state_dict())
            twice = nn.ModuleList([shared, nn.Sequential(shared)])
            assert synchronize(twice) == ["0"]
            assert type(twice[1][0]) is SynchronizedBatchNorm  # type: ignore[index]
            a, b = x.clone().requires_grad_(), x[own].clone().requires_grad_()
            expected = whole(a, lengths, relu=True)
            got = shared(b, lengths[own] if lengths is not None else None, relu=True)
            torch.testing.assert_close(got, expected[own])
            expected.backward(gradient)
            got.backward(gradient[own])
            torch.testing.assert_close(b.grad, a.grad[own])
            for name, buffer in whole.named_buffers():
                torch.testing.assert_close(dict(shared.named_buffers())[name], buffer)
            for name, weight in whole.named_parameters():
                of_all = dict(shared.named_parameters())[name].grad
                dist.all_reduce(of_all)
                torch.testing.assert_close(of_all, weight.grad)


def main() -> None:
    folder = Path(sys.argv[1])
    cache, rank = folder / "cache", int(os.environ["RANK"])
    dist.init_process_group("gloo")  # one for all runs
    normalizations(rank)
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp"):
        with watched() as found[strategy]:
            run(cache, folder / strategy, strategy=strategy)
        with watched((1, 1)):
            try:
                run(cache, folder / f"{strategy}-begun", strategy=strategy)
            except SystemExit as ended:
                found[strategy]["status"] = ended.code
        run(cache, folder / f"{strategy}-resumed", strategy=strategy, resume=True)
    with watched() as found["options"]:
        run(cache, folder / "options", **OPTIONS)
    with watched() as found["streamed"]:
        run(folder / "kept", folder / "streamed", **streamed(folder))
    with watched() as found["apart"]:
        run(cache, folder / "apart", sync_batch_norm=False, epochs=1)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
