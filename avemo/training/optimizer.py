"""AdamW and its learning rate over a run."""

import math
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from avemo.training.config import OptimizerConfig


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, scaled: bool = False
) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, but neither biases nor normalisations.

    A module's attribute `rate` is the share of the learning rate that its weights get; what needs no gradient is
    left out.

    On a GPU it is the fused one, which takes all weights in a few launches. On a CPU that copies whatever is not
    contiguous, weights of convolutions first of all, and takes ten times as long as the plain loop.

    Args:
        model: on the device that it will run on.
        config: its settings.
        scaled: whether a loss scaler works on the gradients, as in float16. A fused optimiser takes the scale out in
            its step alone, and so after they are clipped: then it is none.
    """
    fused = not scaled and all(p.device.type == "cuda" for p in model.parameters())
    shares: dict[nn.Parameter, float] = {}
    for module in model.modules():
        if isinstance(rate := getattr(module, "rate", None), float):
            shares |= dict.fromkeys(module.parameters(), rate)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((shares.get(p, 1.0), p.ndim > 1), []).append(p)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr": share * config.learning_rate,
            }
            for (share, decayed), parameters in groups.items()
        ],
        lr=config.learning_rate,
        fused=fused or None,  # None: as PyTorch likes
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int
) -> LRScheduler:
    """The learning rate in each step of a run of `steps` steps."""
    if config.schedule == "one_cycle":
        rising = config.warmup
        if rising * steps == 1:  # a rise without length, by which PyTorch would divide
            rising = math.nextafter(rising, 0.0)
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=rising,
            cycle_momentum=False,
        )
    return LambdaLR(optimizer, partial(share_of_rate, config, steps))


def share_of_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """By what the highest rate is multiplied in a step, which counts from 0, of the schedules that rise in a line."""
    rising = config.warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
    if config.schedule == "step":
        return config.decay ** sum(step >= share * steps for share in config.milestones)
    return 1.0
