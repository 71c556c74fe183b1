"""Arithmetic of convolutions is that of PyTorch's own counter, and belongs to the right layer."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from profiling.convolutions import convolutions
from profiling.ranges import ModuleRanges, Range
from profiling.record import record
from profiling.trace import Trace
from tests.profiling import traces
from tests.profiling.traces import forward, kernel, launch, node, ours, span


def _model(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 5), stride=(1, 2), padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=groups),
        nn.Conv2d(4, 3, 1),
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_operations_are_those_of_torchs_counter(groups: int, tmp_path: Path) -> None:
    model, x = _model(groups), torch.randn(5, 2, 11, 13)

    def step() -> None:
        with Range("forward"):
            loss = model(x).square().sum()
        with Range("backward"):
            loss.backward()

    with ModuleRanges(model):
        path = tmp_path / "trace.json.gz"
        trace = record(step, steps=1, device=torch.device("cpu"), path=path)
    rows = {c.name: c for c in convolutions(trace, trace.steps[0])}
    assert list(rows) == ["0", "2", "3"]
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert sum(c.forward_flops for c in rows.values()) == counter.get_total_flops()
    if groups == 1:  # the counter takes the backward of groups for a larger one
        with FlopCounterMode(display=False) as counter:
            step()
        assert sum(c.flops for c in rows.values()) == counter.get_total_flops()
    assert rows["0"].backward_flops == rows["0"].forward_flops
    assert rows["2"].backward_flops == 2 * rows["2"].forward_flops
    for row in rows.values():
        assert row.forward_ms > 0
        assert row.backward_ms > 0


def test_on_a_device_time_is_that_of_their_kernels() -> None:
    backward = {
        "Input Dims": [[1, 4, 5, 5], [1, 2, 5, 5], [4, 2, 3, 3], []],
        "Concrete Inputs": ["", "", "", "[True, True, False]"],
    }
    trace = Trace(
        [
            ours("step", 0, 100),
            ours("conv", 1, 20),
            forward("aten::convolution", 2, 19, 3),
            launch(3, 4, 1),
            launch(5, 6, 2),
            ours("backward", 30, 60),
            node("ConvolutionBackward0", 31, 59, 3, traces.AUTOGRAD),
            span("cpu_op", "aten::convolution_backward", 32, 50, traces.AUTOGRAD, **backward),
            launch(33, 34, 3, traces.AUTOGRAD),
            launch(51, 52, 4, traces.AUTOGRAD),  # beside the convolution
            kernel("a", 10, 30, 1),
            kernel("b", 30, 35, 2),
            kernel("c", 40, 80, 3),
            kernel("d", 80, 90, 4),
        ]
    )
    (row,) = convolutions(trace, trace.steps[0])
    assert row.name == "conv"
    assert row.forward_flops == 2 * 100 * 18
    assert row.backward_flops == 2 * row.forward_flops
    assert (row.forward_ms, row.backward_ms) == pytest.approx((0.025, 0.040))


def test_a_step_without_a_backward_has_none() -> None:
    trace = Trace([ours("step", 0, 9), forward("aten::convolution", 1, 5, 0)])
    assert convolutions(trace, trace.steps[0]) == []
