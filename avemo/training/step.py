"""One training step outside of a trainer, for measurements: the same loss, clipping, optimiser and schedule."""

from torch import Tensor, nn

from avemo.data.batch import Batch
from avemo.training.config import OptimizerConfig
from avemo.training.module import EmotionModule, seed_step
from avemo.training.optimizer import build_optimizer, build_schedule


class TrainingStep:
    """Takes the training steps of a model, each as a whole or phase by phase.

    Args:
        model: called as `model(audio, audio_lengths, video, video_lengths)`; put in training mode.
        classes: number of emotions.
        config: the optimiser and its schedule.
        seed: of the random numbers; those of a step follow from `seed` and the step's number alone.
        total: steps of the whole training, which the schedule spans.
    """

    def __init__(
        self, model: nn.Module, classes: int, config: OptimizerConfig, *, seed: int, total: int
    ) -> None:
        self.config, self.seed = config, seed
        self.taken = 0
        self.module = EmotionModule(model, classes, config, seed).train()
        self.optimizer = build_optimizer(model, config)
        self.schedule = build_schedule(self.optimizer, config, total)

    def __call__(self, batch: Batch) -> Tensor:
        """Takes one step and gives its loss, a scalar on the model's device."""
        loss = self.forward(batch)
        self.backward(loss)
        self.update()
        return loss.detach()

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch, with the random numbers of this step's place in the run."""
        seed_step(self.seed, self.taken, batch.labels.device)
        return self.module.loss(batch)

    def backward(self, loss: Tensor) -> None:
        """The gradients of the loss, in place of those of the last step."""
        self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        """Clips the gradients, moves the weights and the schedule."""
        nn.utils.clip_grad_norm_(self.module.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        self.taken += 1
