"""One training and one validation step, the optimiser and its schedule."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from avemo.data.batch import Batch
from avemo.evaluation import metrics
from avemo.training.config import OptimizerConfig


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
    """

    def __init__(self, model: nn.Module, classes: int, config: OptimizerConfig, seed: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.val_confusion = metrics.confusion_matrix(classes)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        seed_step(self.seed, self.global_step)
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss became {loss.item()} in step {self.global_step} of epoch "
                f"{self.current_epoch}; try a lower --optimizer.learning_rate"
            )
        self.log("train/loss", loss, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        logits = self.model(*batch[:4]).logits
        loss = F.cross_entropy(logits, batch.labels)
        self.val_confusion.update(logits.argmax(1), batch.labels)
        self.log("val/loss", loss, on_epoch=True, batch_size=len(batch.labels))

    def on_validation_epoch_end(self) -> None:
        confusion = self.val_confusion.compute()
        self.val_confusion.reset()
        self.log("val/accuracy", metrics.accuracy(confusion))
        self.log("val/ua", metrics.unweighted_accuracy(confusion))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of a batch with smoothed labels, a scalar."""
        return self.criterion(self.model(*batch[:4]).logits, batch.labels)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises: logits (B, classes) and labels int64 (B,) to a scalar."""
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        scaled = self.trainer.precision == "16-mixed"
        optimizer = build_optimizer(self.model, self.config, scaled=scaled)
        # Not `estimated_stepping_batches`: to count, that opens the loader before a checkpoint has been read, and then
        # Lightning gives it no place to go on from (`findings/lightning_forgets_the_loaders_place.sh`).
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        steps = batches * int(self.trainer.max_epochs or 0)
        schedule = build_schedule(optimizer, self.config, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the schedule's place from a checkpoint; its length is that of the run, which may have grown since."""
        place = ("last_epoch", "_step_count", "_last_lr")
        checkpoint["lr_schedulers"] = [
            {name: state[name] for name in place} for state in checkpoint["lr_schedulers"]
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


def seed_step(seed: int, step: int) -> None:
    """Seeds PyTorch on all devices for one training step."""
    torch.manual_seed((seed << 32) + step)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, scaled: bool = False
) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, but neither biases nor normalisations.

    On a GPU it is the fused one, which takes all weights in a few launches. On a CPU that copies whatever is not
    contiguous, weights of convolutions first of all, and takes ten times as long as the plain loop.

    Args:
        model: on the device that it will run on.
        config: its settings.
        scaled: whether a loss scaler works on the gradients, as in float16. A fused optimiser takes the scale out in
            its step alone, and so after they are clipped: then it is none.
    """
    fused = not scaled and all(p.device.type == "cuda" for p in model.parameters())
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=fused or None,  # None: as PyTorch likes
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """The one-cycle schedule of a run of `steps` steps."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=steps,
        pct_start=config.warmup,
        cycle_momentum=False,
    )
