"""What a model fits and does not train by gradients: all of it, or such as the weights of a fusion of decisions."""

from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import nn

from avemo.data.datamodule import ClipDataModule
from avemo.evaluation import metrics
from avemo.training import checkpoint
from avemo.training.config import TrainConfig

if TYPE_CHECKING:
    from avemo.training.train import TrainResult


class FitOnValidation(pl.Callback):
    """Before each validation lets a model that has a `fit` fit on the validation split."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fit = getattr(pl_module.model, "fit", None)
        if fit:
            batches = trainer.val_dataloaders
            assert batches is not None
            fit(pl_module.transfer_batch_to_device(b, pl_module.device, 0) for b in batches)


def learn(model: nn.Module, clips: ClipDataModule, config: TrainConfig, out: Path) -> "TrainResult":
    """Lets a model that has a `learn` learn the training split, clips unchanged, in one step and on the CPU.

    Args:
        model: saved as the best and the last of one epoch.
        clips: its splits.
        config: of the run.
        out: its folder.

    Returns:
        As `train`; the accuracy is that on the validation split.
    """
    from avemo.training.train import TrainResult

    model.cpu().eval()
    model.learn(clips.evaluation_dataloader("train"))  # type: ignore[operator]
    confusion = metrics.confusion_matrix(len(clips.classes))
    with torch.inference_mode():
        for batch in clips.val_dataloader():
            confusion.update(model(*batch[:4]).logits.argmax(1), batch.labels)
    accuracy = metrics.unweighted_accuracy(confusion.compute()).item()
    best, last = (out / f"{name}.safetensors" for name in ("best", "last"))
    for file in (best, last):
        checkpoint.save(file, model, config, clips.classes, clips.features)
    print(f"unweighted accuracy on the validation split {accuracy:.1%}; saved as {best}")
    return TrainResult(best, last, 0, accuracy)
