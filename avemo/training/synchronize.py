"""Batch normalisation with the statistics of the batch of all processes together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import fbp_kernels


def synchronize(model: nn.Module) -> list[str]:
    """Makes all batch norms of a model use the statistics of all processes, in place.

    Parameters, buffers, state dicts, hooks and optimisers stay as they are, for it is the same
    objects that go on: one that a model has at two places is synchronised at both.
    `torch.nn.SyncBatchNorm` does not serve here: it wants a GPU, knows nothing of padded clips, and
    its conversion parts what stands at two places (`findings/torch_sync_batchnorm_one_name.sh`).

    Returns:
        The names of the modules.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            backend = getattr(module, "backend", None)  # PyTorch's own has none
            module.__class__ = SynchronizedBatchNorm
            assert isinstance(module, SynchronizedBatchNorm)
            module.backend = backend
            names.append(name)
    return names


class SynchronizedBatchNorm(fbp_kernels.BatchNorm):
    """`fbp_kernels.BatchNorm` over the values of all processes, of which one may have none.

    In training every process takes part in two sums over all: of values, and of squares of what
    they differ from the mean by. Both are of float64 numbers, so that the statistics are those of
    one process to the rounding of its own. The gradient flows through them to all processes. In
    evaluation it is as before.

    In plain PyTorch: the fused kernels know no sums of others. Each of the two passes reads the input.
    """

    def forward(self, input: Tensor, lengths: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalises x (N, C, H, W), of which the first `lengths` (N,) of W count; the rest becomes 0."""
        if not self.training or self.running_mean is None:
            return super().forward(input, lengths, relu)
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        x, dropped = input.to(wide), None
        count = x.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3], dtype=torch.float64)
        if lengths is not None:
            count = (lengths.sum() * x.shape[2]).to(torch.float64).view(1)
            dropped = torch.arange(x.shape[3], device=x.device) >= lengths[:, None, None, None]
            x = x.masked_fill(dropped, 0.0)
        sums = _sum_of_all(torch.cat([_sum(x), count]))
        count = sums[-1:].detach()
        mean = sums[:-1] / count
        x = x - mean.to(wide)[:, None, None]
        if dropped is not None:
            x = x.masked_fill(dropped, 0.0)
        var = _sum_of_all(_sum(x * x)) / count
        self._track(mean.detach(), var.detach(), count)
        scale = (var + self.eps).rsqrt().to(wide)
        if self.weight is not None:
            scale = scale * self.weight
        y = x * scale[:, None, None]
        if self.bias is not None:
            y = y + self.bias[:, None, None]
            if dropped is not None:
                y = y.masked_fill(dropped, 0.0)
        return (y.relu() if relu else y).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Moves the running statistics towards those of `count` values, the variance without its bias."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / int(self.num_batches_tracked)
        unbiased = var * count / (count - 1).clamp(min=1)
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running += (batch.to(running.dtype) - running) * momentum


def _sum(x: Tensor) -> Tensor:
    """Over all but the channels, float64."""
    return x.sum((0, 2, 3), dtype=torch.float64)


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes; each of which has a part in the loss of every other, and so in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _sum_of_all(x: Tensor) -> Tensor:
    summed: Tensor = _SumOfAll.apply(x)
    return summed
