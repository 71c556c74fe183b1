"""One training and one validation step of the network that finds landmarks."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from avemo.data.batch import Batch
from avemo.data.features import FACE_MEAN, FACE_STD
from avemo.data.landmarks import ShapePredictor
from avemo.models.landmarks import LandmarkDistances
from avemo.models.video import seen_frames
from avemo.storage import write
from avemo.training.config import OptimizerConfig
from avemo.training.module import TrainingDivergedError
from avemo.training.optimizer import build_optimizer, build_schedule

_OUTER_CORNERS = (36, 45)  # of the eyes


class LandmarkModule(pl.LightningModule):
    """Trains a network to place landmarks where another predictor places them.

    Args:
        network: that learns.
        teacher: that knows.
        config: the optimiser.
        file: which the network's weights are written to after each epoch that is the best so far.

    Attributes:
        least_error: normalised mean error of the best epoch: the mean distance from the teacher's landmarks, as a share
            of that between the outer corners of the eyes (Sagonas et al. 2013).
    """

    def __init__(
        self,
        network: LandmarkDistances,
        teacher: ShapePredictor,
        config: OptimizerConfig,
        file: Path,
    ) -> None:
        super().__init__()
        self.network, self.teacher, self.config, self.file = network, teacher, config, file
        self.error = MeanMetric()
        self.least_error = float("inf")

    def training_step(self, batch: Batch, index: int) -> Tensor:
        found, known = self._both(batch)
        loss = F.l1_loss(found, known) if len(found) else found.sum()
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss became {loss.item()} in step {self.global_step}; "
                "try a lower --optimizer.learning_rate"
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self.error.update(normalised_error(*self._both(batch)))

    def on_validation_epoch_end(self) -> None:
        error = self.error.compute().item()
        self.error.reset()
        self.log("val/nme", error, prog_bar=True)
        if error < self.least_error:
            self.least_error = error
            state = self.network.state_dict().items()
            plain = torch.contiguous_format
            write(self.file, save({n: x.cpu().clone(memory_format=plain) for n, x in state}))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.network, self.config)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.config, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _both(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The landmarks of all faces of a batch, (N, 68, 2), as the network and as the teacher has them."""
        seen = seen_frames(batch.video, batch.video_lengths)
        grey = (batch.video[seen] * FACE_STD + FACE_MEAN).round().clamp(0, 255)
        known = self.teacher(grey.cpu().numpy().astype(np.uint8))
        found = self.network.points(batch.video, batch.video_lengths)[seen].float()
        return found, torch.from_numpy(known).to(found.device).view_as(found)


def normalised_error(found: Tensor, known: Tensor) -> Tensor:
    """The normalised mean error of each face: landmarks (N, 68, 2) to (N,)."""
    one, other = (known[:, corner] for corner in _OUTER_CORNERS)
    between = torch.linalg.vector_norm(one - other, dim=-1)
    return torch.linalg.vector_norm(found - known, dim=-1).mean(1) / between
