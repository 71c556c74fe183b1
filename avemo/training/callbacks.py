"""What training writes to disk and shows on the console."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import nn
from tqdm import tqdm

from avemo.data.features import FeatureConfig
from avemo.training import checkpoint
from avemo.training.config import TrainConfig


class ModelCheckpoints(pl.Callback):
    """Writes `last.safetensors` after every epoch and `best.safetensors` after every best one.

    Best is the epoch of the highest unweighted accuracy on the validation split; of equals, the
    one with the lower validation loss.

    Args:
        folder: where they go.
        config: of the run, stored with the weights.
        classes: the emotions, in the order of the logits.
        features: what the clips were extracted with.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        classes: tuple[str, ...],
        features: FeatureConfig,
    ) -> None:
        self.folder = folder
        self.config = config
        self.classes = classes
        self.features = features
        self.best: tuple[float, float] | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = trainer.callback_metrics
        score = (reached["val/ua"].item(), -reached["val/loss"].item())
        self._save("last", pl_module)
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, trainer.current_epoch
            self._save("best", pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"] and tuple(state_dict["best"])
        self.best_epoch = state_dict["best_epoch"]

    def _save(self, name: str, module: pl.LightningModule) -> None:
        path = self.folder / f"{name}.safetensors"
        assert isinstance(module.model, nn.Module)
        checkpoint.save(path, module.model, self.config, self.classes, self.features)


class StepProgress(pl.callbacks.ProgressBar):
    """One bar over all steps of all epochs, with the latest losses and validation accuracy."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = trainer.callback_metrics
        self.bar.set_postfix(
            epoch=trainer.current_epoch,
            loss=f"{reached['train/loss'].item():.3f}",
            val_loss=f"{reached['val/loss'].item():.3f}",
            val_ua=f"{reached['val/ua'].item():.1%}",
            refresh=False,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if hasattr(self, "bar"):  # it may have failed before the first step
            self.bar.close()
