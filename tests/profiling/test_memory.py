"""The timeline has the bytes that tensors have, and knows who holds them."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from profiling.memory import BEFORE, Held, draw, state_tensors, storage_bytes, strips, timeline
from profiling.ranges import Range
from profiling.record import record
from profiling.trace import Trace
from tests.profiling.traces import forward, memory, node, ours

CPU = torch.device("cpu")


def test_a_known_tensor_is_what_the_step_holds(tmp_path: Path) -> None:
    size = 4 * 3000 * 70

    def step() -> None:
        with Range("forward"):
            held = torch.empty(3000, 70)
            with Range("part"):
                more = torch.empty(2 * 3000, 70)
        with Range("backward"):
            del more
            del held

    trace = record(step, steps=1, device=CPU, path=tmp_path / "trace.json.gz")
    line = timeline(trace, trace.steps[0], before=1000, on_host=True)
    assert line.start_bytes == 1000
    assert line.peak_bytes == 1000 + 3 * size
    assert line.bytes == [1000, 1000 + size, 1000 + 3 * size, 1000 + size, 1000]
    expected = [
        Held("part", False, 2 * size),
        Held("forward", False, size),
        Held(BEFORE, False, 1000),
    ]
    assert line.at_peak == expected
    assert line.at_backward == expected
    assert [name for name, _, _ in line.bands] == ["forward", "backward"]
    assert 0 < line.peak_ms < trace.steps[0].duration / 1e3


def _two_steps() -> Trace:
    return Trace(
        [
            ours("step", 0, 100),
            memory(50, 30, address=1),
            ours("step", 200, 300),
            ours("a", 210, 220),
            forward("aten::mm", 211, 219, 4),
            memory(212, 100, address=2),
            memory(213, 7, address=9, on_host=False),
            ours("backward", 230, 290),
            node("MmBackward0", 231, 280, 4),
            memory(240, -30, address=1),
            memory(241, 200, address=1),  # the same address again
            memory(281, -100, address=2),
            memory(295, -200, address=1),
            memory(400, 999, address=3),  # after the step
        ]
    )


def test_a_later_step_starts_from_what_the_earlier_left() -> None:
    trace = _two_steps()
    line = timeline(trace, trace.steps[1], before=5, on_host=True)
    assert line.bytes == [35, 135, 105, 305, 205, 5]
    assert line.times == pytest.approx([0, 0.012, 0.040, 0.041, 0.081, 0.095])
    assert line.start_bytes == 35
    assert (line.peak_bytes, line.peak_ms) == (305, pytest.approx(0.041))
    assert line.at_backward == [
        Held("a", False, 100),
        Held("step", False, 30),
        Held(BEFORE, False, 5),
    ]
    assert line.at_peak == [Held("a", True, 200), Held("a", False, 100), Held(BEFORE, False, 5)]


def test_device_memory_is_followed_apart() -> None:
    trace = _two_steps()
    line = timeline(trace, trace.steps[1], before=0, on_host=False)
    assert line.bytes == [0, 7]
    assert line.at_peak == [Held("a", False, 7)]


def test_shared_memory_counts_once() -> None:
    x = torch.zeros(10, 4)
    assert storage_bytes([x, x[2:], x.T, torch.zeros(3)], CPU) == 160 + 12
    assert storage_bytes([x], torch.device("cuda")) == 0


def test_the_optimizers_state_counts() -> None:
    weight = torch.nn.Parameter(torch.ones(6))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    assert storage_bytes(state_tensors(optimizer), CPU) == 2 * 24 + 4  # two moments and a count


def test_the_picture_is_small_and_shows_whose_work_ran(tmp_path: Path) -> None:
    trace = _two_steps()
    step = trace.steps[1]
    line = timeline(trace, step, before=5, on_host=True)
    (strip,) = strips(trace, step)  # the forward's and the backward's, which nearly touch
    assert strip == ("a", pytest.approx(0.010), pytest.approx(0.080))
    path = tmp_path / "memory.png"
    draw(line, strips(trace, step), "two steps", path)
    assert path.stat().st_size < 200_000
    assert plt.imread(path).shape[1] > 800
