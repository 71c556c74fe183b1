"""What training writes to disk and shows on the console."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from tqdm import tqdm

from avemo.data.features import FeatureConfig
from avemo.models.attention import set_scales
from avemo.training import checkpoint
from avemo.training.config import TrainConfig
from avemo.training.sharded import whole


class ModelCheckpoints(pl.Callback):
    """Writes `last.safetensors` after every epoch and `best.safetensors` after every best one.

    Best is the epoch of the highest unweighted accuracy on the validation split; of equals, the
    one with the lower validation loss. The weights are those that were scored, which are others than those
    in training where these are averaged. After too many epochs without a best one it ends the run.

    Args:
        folder: where they go.
        config: of the run, stored with the weights; its `trainer.patience` is how many are too many.
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
        self.scored: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_early(trainer, trainer.current_epoch - 1)  # a run that had ended goes no further

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module.model, nn.Module)
        weights = whole(pl_module.model.state_dict())
        if trainer.is_global_zero:
            self.scored = {name: x.detach().cpu().clone() for name, x in weights.items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reached = trainer.callback_metrics
        score = (reached["val/ua"].item(), -reached["val/loss"].item())
        names = ["last"]
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, trainer.current_epoch
            names.append("best")
        if trainer.is_global_zero:
            for name in names:
                self._save(name)
        self._end_early(trainer, trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"] and tuple(state_dict["best"])
        self.best_epoch = state_dict["best_epoch"]

    def _save(self, name: str) -> None:
        path = self.folder / f"{name}.safetensors"
        checkpoint.save(path, self.scored, self.config, self.classes, self.features)

    def _end_early(self, trainer: pl.Trainer, epoch: int) -> None:
        patience = self.config.trainer.patience
        if patience is not None and self.best_epoch is not None:
            trainer.should_stop = epoch - self.best_epoch >= patience


def averaging(decay: float) -> pl.callbacks.WeightAveraging:
    """Keeps a running average of all weights and statistics, and puts it in their place while they are validated.

    Args:
        decay: what a step leaves of the average: it moves by 1 - decay towards the weights.
    """
    return pl.callbacks.EMAWeightAveraging(decay=decay)


class Scales(pl.Callback):
    """Attentions have one lambda in training steps, and may have another one in what is validated and saved."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        set_scales(pl_module, training=True)

    def on_validation_epoch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:  # at this moment, averaged weights have just taken the others' place
        set_scales(pl_module, training=False)


class StepProgress(pl.callbacks.ProgressBar):
    """One bar over all steps of all epochs, with the latest losses and validation accuracy."""

    def __init__(self) -> None:
        super().__init__()
        self.disabled = False

    def disable(self) -> None:
        """Shows nothing: Lightning asks all processes but the first for that."""
        self.disabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=self.disabled,
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
