"""Batch normalisation over padded clips."""

import torch
from torch import Tensor, nn


class FrameBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics see each clip's own frames, not the padding after them.

    So how far a batch is padded changes nothing, in training as little as in evaluation.
    """

    def forward(self, input: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Normalises every channel.

        Args:
            input: (B, C, F, T).
            lengths: int64 (B,), frames of each clip, 1 to T.

        Returns:
            Like input; what lies past a clip's end means nothing.
        """
        if not self.training:
            return super().forward(input)
        inside = torch.arange(input.shape[3], device=input.device) < lengths[:, None]
        inside = inside[:, None, None, :]
        count = lengths.sum() * input.shape[2]
        mean = input.where(inside, 0.0).sum((0, 2, 3), keepdim=True) / count
        centred = (input - mean).where(inside, 0.0)
        variance = centred.square().sum((0, 2, 3), keepdim=True) / count
        self._track(mean, variance * count / (count - 1))
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return centred * scale + self.bias[:, None, None]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics by `momentum` towards those of a batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.flatten(), self.momentum)
        self.running_var.lerp_(variance.flatten(), self.momentum)
        self.num_batches_tracked += 1
