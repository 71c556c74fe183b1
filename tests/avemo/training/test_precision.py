"""Mixed precision: a whole step under autocast, with either set of operators."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from avemo.models.backend import BackendName, use_backend
from avemo.training.config import OptimizerConfig
from avemo.training.step import TrainingStep
from tests.avemo.models.tiny_model import CLASSES, tiny_batch, tiny_model, whole_batch


def _gradient(backend: BackendName, dtype: torch.dtype | None) -> Tensor:
    """The loss and all gradients of a step, float32 as the weights are."""
    model = tiny_model()
    use_backend(model, backend)
    step = TrainingStep(model, CLASSES, OptimizerConfig(), seed=0, total=10)
    batch = whole_batch(*tiny_batch(), torch.arange(4))
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype):
        loss = step.forward(batch)
    step.backward(loss)
    gradients = [p.grad for p in step.module.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in gradients)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_operators_lose_no_more_than_the_reference(dtype: torch.dtype) -> None:
    exact = _gradient("reference", None)
    plain = (_gradient("reference", dtype) - exact).norm() / exact.norm()
    ours = (_gradient("native", dtype) - exact).norm() / exact.norm()
    assert 0 < plain < 0.2
    assert ours <= 2 * plain
