"""One training and one validation step."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.data.batch import Batch
from avemo.evaluation import metrics
from avemo.models.output import Output
from avemo.training.config import OptimizerConfig
from avemo.training.optimizer import build_optimizer, build_schedule


class TrainingDivergedError(FloatingPointError):
    """The loss is no longer a finite number."""


class EmotionModule(pl.LightningModule):
    """Trains a model of `avemo.models` to name the emotion of a clip.

    Args:
        model: called as `model(audio, audio_lengths, video, video_lengths)`.
        classes: number of emotions.
        config: the optimiser.
        seed: dropout in a step follows from `seed` and the step's number alone, so that a resumed
            run draws the same masks as an unbroken one.
        class_weights: float32 (classes,), what the clips of each class count in the loss of
            training; None counts all alike.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        config: OptimizerConfig,
        seed: int,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.val_confusion = metrics.confusion_matrix(classes)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        # Batches count, not steps: several may make one. Each, in each process, draws masks of its own.
        of_one_step, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        number = self.global_step * of_one_step + index % of_one_step
        own = number * processes + self.trainer.global_rank
        seed_step(self.seed, own, batch.labels.device)
        loss, mean = self._of_all(batch)
        if not torch.isfinite(mean):
            raise TrainingDivergedError(
                f"the loss became {mean.item()} in step {self.global_step} of epoch "
                f"{self.current_epoch}; try a lower --optimizer.learning_rate"
            )
        self.log("train/loss", mean, batch_size=len(batch.labels))
        return loss

    def _of_all(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What this process minimises, and the mean loss over the clips of all processes.

        The gradient's mean over processes is that of the mean loss, whatever each one's share.
        """
        if self.trainer.world_size == 1:
            loss = self.loss(batch)
            return loss, loss
        loss, clips = self.loss(batch), len(batch.labels)
        sums = torch.stack([loss.detach() * clips, loss.new_tensor(float(clips))])
        total, of_all = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return loss * (clips * self.trainer.world_size / of_all), total / of_all

    def on_validation_start(self) -> None:
        """Gives all processes the running statistics of the first one, which are those that are kept."""
        if self.trainer.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, index: int) -> None:
        logits = self.model(*batch[:4]).logits
        clips = len(batch.labels)
        loss = F.cross_entropy(logits, batch.labels) if clips else logits.sum()  # zero
        self.val_confusion.update(logits.argmax(1), batch.labels)
        self.log("val/loss", loss, on_epoch=True, batch_size=clips, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        confusion = self.val_confusion.compute()
        self.val_confusion.reset()
        self.log("val/accuracy", metrics.accuracy(confusion).float())
        self.log("val/ua", metrics.unweighted_accuracy(confusion).float())

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch with smoothed labels, a scalar."""
        return self.objective(self.model(*batch[:4]), batch.labels)

    def objective(self, output: Output, labels: Tensor) -> Tensor:
        """What training minimises: the mean criterion of all that is trained, a scalar."""
        first, *others = (self.criterion(x, labels) for x in output.trained or (output.logits,))
        return sum(others, first) / (1 + len(others)) if others else first

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What scores cost: logits (B, classes) and labels int64 (B,) to a scalar."""
        if not len(labels):
            return (
                logits.sum()
            )  # zero, by which a process without clips takes part in what all exchange
        smoothing = self.config.label_smoothing
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # The mean over clips: PyTorch's own weights would make it one over weights, which moves with the batch.
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (self.class_weights[labels] * losses).mean()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        scaled = self.trainer.precision == "16-mixed"
        optimizer = build_optimizer(self.model, self.config, scaled=scaled)
        # Not `estimated_stepping_batches`: to count, that opens the loader before a checkpoint has been read, and then
        # Lightning gives it no place to go on from (`findings/lightning_forgets_the_loaders_place.sh`).
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        steps = math.ceil(batches / self.trainer.accumulate_grad_batches)
        steps *= int(self.trainer.max_epochs or 0)
        schedule = build_schedule(optimizer, self.config, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the schedule's place from a checkpoint; its length is that of the run, which may have grown since."""
        place = {"last_epoch", "_step_count", "_last_lr", "lr_lambdas"}
        checkpoint["lr_schedulers"] = [
            {name: value for name, value in state.items() if name in place}
            for state in checkpoint["lr_schedulers"]
        ]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of all gradients together.

        As Lightning does, which however refuses to in mixed precision where the optimiser is a fused one, in bfloat16
        too, where nothing is scaled.
        """
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seeds PyTorch's generators of a device, others of its kind and the CPU for one training step.

    As `torch.manual_seed` would, which also writes down the whole call stack for each kind of device that is not in use
    (`findings/torch_manual_seed_writes_the_stack.sh`).
    """
    number = (seed << 32) + step
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        kind = torch.get_device_module(device)
        getattr(kind, "manual_seed_all", kind.manual_seed)(number)  # of MPS there is one device
