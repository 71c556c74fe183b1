"""A trace's operations, kernels and allocations belong to the right range."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from profiling.account import account, median_step
from profiling.ranges import ModuleRanges, Range
from profiling.record import record
from profiling.trace import Span, Trace
from tests.profiling import traces
from tests.profiling.traces import forward, launch, node, ours, span

CPU = torch.device("cpu")


def _find(trace: Trace, name: str) -> Span:
    (found,) = (s for s in trace.spans if s.name == name)
    return found


def test_backward_belongs_to_the_operation_that_made_the_node() -> None:
    trace = Trace(
        [
            ours("step", 0, 100),
            ours("a", 1, 10),
            forward("aten::conv2d", 2, 8, 7),
            forward("aten::convolution", 3, 8, 7),
            forward("aten::detach", 9, 9.5, 8),  # makes no node: the next one has the same number
            ours("b", 11, 20),
            forward("aten::relu", 12, 14, 8),
            forward("aten::eq", 15, 16, 0),  # no gradient is wanted of it
            ours("backward", 30, 90),
            node("ReluBackward0", 31, 35, 8),
            span("cpu_op", "aten::threshold_backward", 32, 34),
            node("ConvolutionBackward0", 36, 50, 7),
            node("torch::autograd::AccumulateGrad", 51, 55, None),
        ]
    )
    relu, threshold, conv, accumulate = trace.spans[-4:]
    assert (relu.owner, relu.backward) == ("b", True)
    assert (threshold.owner, threshold.backward) == ("b", True)
    assert (conv.owner, conv.backward) == ("a", True)
    assert (accumulate.owner, accumulate.backward) == ("backward", True)
    assert not _find(trace, "aten::relu").backward


def test_a_node_without_an_operation_of_its_own_belongs_to_the_one_before() -> None:
    trace = Trace(
        [
            ours("step", 0, 100),
            ours("a", 1, 10),
            forward("aten::relu_", 2, 8, 7),  # on a view: it makes the nodes 7 and 8
            ours("b", 11, 20),
            forward("aten::mul", 12, 14, 9),
            ours("backward", 30, 90),
            node("CopySlices", 31, 35, 8),
        ]
    )
    assert trace.spans[-1].owner == "a"


def test_the_backward_of_a_device_runs_on_another_thread() -> None:
    trace = Trace(traces.gpu_step())
    owners = [(k.launch.owner, k.launch.backward) for k in trace.kernels if k.launch]
    assert owners == [("part", False), ("part", True), ("backward", True)]


def test_own_time_leaves_out_what_ran_inside() -> None:
    trace = Trace(traces.gpu_step())
    step = trace.steps[0]
    assert step.itself == pytest.approx(100 - 30 - 50)
    assert _find(trace, "part").itself == pytest.approx(18 - 6)
    assert sum(s.itself for s in trace.in_step(step) if s.thread == step.thread) == 100


def test_what_ran_at_a_time() -> None:
    trace = Trace(traces.gpu_step())
    names = {t: s.name if (s := trace.running(traces.MAIN, t)) else None for t in (13, 16, 25, 99)}
    assert names == {13: "part", 16: "cudaLaunchKernel", 25: "part", 99: "step"}
    assert trace.running(traces.MAIN, 101) is None
    assert trace.running(12345, 50) is None


def test_a_kernel_whose_launch_was_not_seen_has_none() -> None:
    events = [ours("step", 0, 9), launch(1, 2, 5), traces.kernel("k", 3, 4, 6)]
    assert Trace(events).kernels[0].launch is None


class Sleep(torch.autograd.Function):
    """Sleeps ten times as long in the backward as in the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(10 * ctx.seconds)
        return gradients[0], None


class Part(nn.Module):
    def __init__(self, products: int, seconds: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.eye(8) for _ in range(products))
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = (x @ weight).relu_()  # in place, which module backward hooks could not stand
        return Sleep.apply(x, self.seconds)


def test_a_part_with_ten_times_the_work_gets_ten_times_the_backward(tmp_path: Path) -> None:
    model = nn.Sequential(Part(1, 0.001), Part(10, 0.01))
    x = torch.randn(4, 8)

    def step() -> None:
        with Range("forward"):
            loss = model(x).sum()
        with Range("backward"):
            loss.backward()

    with ModuleRanges(model):
        trace = record(step, steps=2, device=CPU, path=tmp_path / "trace.json.gz")
    assert len(trace.steps) == 2
    for taken in trace.steps:
        spans = trace.in_step(taken)
        products = [s for s in spans if s.name == "aten::mm"]
        counts = {
            (part, way): sum(s.owner == part and s.backward == way for s in products)
            for part in "01"
            for way in (False, True)
        }
        # One product forward; backward two, but for the first, whose input has no gradient.
        assert counts == {("0", False): 1, ("1", False): 10, ("0", True): 1, ("1", True): 20}
        rows = {row.name: row for row in account(trace, taken).ranges}
        assert rows["0"].forward_ms >= 1.0
        assert rows["0"].backward_ms >= 10.0
        assert rows["1"].forward_ms >= 10.0
        assert rows["1"].backward_ms >= 100.0
    assert median_step(trace) in trace.steps


def test_a_written_trace_can_be_read_again_and_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    trace = record(lambda: torch.ones(3) + 1, steps=1, device=CPU, path=path)
    again = Trace.load(path)
    assert [(s.name, s.owner, s.itself) for s in again.spans] == [
        (s.name, s.owner, s.itself) for s in trace.spans
    ]
    text = gzip.decompress(path.read_bytes()).decode()
    assert str(tmp_path) not in text
    assert "host_name" not in text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"no json", b"\xff\xfe"])
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "t.json", tmp_path / "t.json.gz"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name} is not a trace"):
            Trace.load(path)


def test_a_trace_without_our_steps_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": [span("cpu_op", "aten::mm", 0, 1)]}))
    with pytest.raises(ValueError, match="no range 'avemo: step'"):
        Trace.load(path)
