"""Sums over a step leave nothing out and count nothing twice."""

import pytest

from profiling.account import IDLE, PYTHON, Row, account, median_step, tree
from profiling.trace import Trace
from tests.profiling import traces
from tests.profiling.traces import forward, node, ours, span


def _host_trace() -> Trace:
    return Trace(
        [
            ours("step", 0, 1000),
            ours("data", 0, 100),
            ours("forward", 100, 400),
            ours("a", 110, 300),
            ours("a.b", 120, 220),
            forward("aten::mm", 130, 210, 1),
            ours("backward", 400, 900),
            node("MmBackward0", 500, 800, 1),
            span("cpu_op", "aten::mm", 510, 710),
            ours("optimizer", 900, 990),
            # An operation of a thread that only helps.
            span("cpu_op", "aten::copy_", 20, 60, thread=555),
        ]
    )


def test_every_microsecond_is_in_one_range() -> None:
    trace = _host_trace()
    sums = account(trace, trace.steps[0])
    assert sums.clock == "host"
    assert sums.total_ms == pytest.approx(1.0)
    rows = {r.name: (r.forward_ms, r.backward_ms, r.other_ms) for r in sums.ranges}
    expected = {
        "step": (0, 0, 0.010),
        "data": (0, 0, 0.100),
        "forward": (0.110, 0, 0),
        "a": (0.090, 0, 0),
        "a.b": (0.100, 0.300, 0),
        "backward": (0, 0.200, 0),
        "optimizer": (0, 0, 0.090),
    }
    assert list(rows) == list(expected)  # in the order in which they were opened
    for name, times in expected.items():
        assert rows[name] == pytest.approx(times), name


def test_operations_and_kinds_have_the_same_total() -> None:
    trace = _host_trace()
    sums = account(trace, trace.steps[0], {"a": "Block", "a.b": "Linear"})
    for table in (sums.ranges, sums.kinds, sums.operations):
        assert sum(r.total_ms for r in table) == pytest.approx(1.0)
    mm = next(r for r in sums.operations if r.name == "aten::mm")
    assert (mm.calls, mm.forward_ms, mm.backward_ms) == pytest.approx((2, 0.080, 0.200))
    linear = next(r for r in sums.kinds if r.name == "Linear")
    assert (linear.calls, linear.forward_ms, linear.backward_ms) == pytest.approx((1, 0.1, 0.3))
    python = next(r for r in sums.operations if r.name == PYTHON)
    assert python.total_ms == pytest.approx(1.0 - 0.080 - 0.300)


def test_on_a_device_time_is_that_of_kernels_and_what_they_leave_idle() -> None:
    trace = Trace(traces.gpu_step())
    sums = account(trace, trace.steps[0])
    assert sums.clock == "device"
    rows = {r.name: (r.forward_ms, r.backward_ms, r.other_ms) for r in sums.ranges}
    assert rows["part"] == pytest.approx((0.020, 0.030, 0))
    assert rows["backward"] == pytest.approx((0, 0.015, 0))
    assert rows["step"] == pytest.approx((0, 0, 0.040))  # 100 less the 60 in which a kernel ran
    operations = {r.name: (r.calls, r.total_ms) for r in sums.operations}
    assert operations["aten::mm"] == pytest.approx((2, 0.050))
    assert operations[IDLE] == pytest.approx((0, 0.040))
    kernels = {r.name: (r.calls, r.forward_ms, r.backward_ms) for r in sums.kernels}
    assert kernels["gemm"] == pytest.approx((2, 0.020, 0.030))
    assert kernels["add"] == pytest.approx((1, 0, 0.015))
    assert sums.total_ms == pytest.approx(0.105)  # 5 microseconds ran side by side


def test_shapes_tell_operations_apart() -> None:
    events = [
        ours("step", 0, 10),
        span("cpu_op", "aten::mm", 1, 2, **{"Input Dims": [[2, 3], [3, 4], []]}),
        span("cpu_op", "aten::mm", 3, 6, **{"Input Dims": [[5, 3], [3, 4], []]}),
    ]
    trace = Trace(events)
    names = [r.name for r in account(trace, trace.steps[0], shapes=True).operations]
    assert names == [PYTHON, "aten::mm [[5, 3], [3, 4]]", "aten::mm [[2, 3], [3, 4]]"]


def test_the_median_step_is_one_of_them() -> None:
    bounds = [(0, 10), (20, 25), (30, 50), (60, 67)]
    trace = Trace([ours("step", start, end) for start, end in bounds])
    assert median_step(trace).start == 60  # 5, 7, 10, 20: the lower of the two in the middle


def test_a_range_includes_what_is_nested_in_it() -> None:
    rows = [
        Row("step", 1, other_ms=1),
        Row("a", 1, forward_ms=2),
        Row("a.b", 1, forward_ms=4, backward_ms=8),
        Row("a.list.0", 1, forward_ms=16),  # "a.list" itself was never called
        Row("ab", 1, backward_ms=32),
    ]
    found = [(b.row.name, b.depth, b.is_rest, b.row.total_ms) for b in tree(rows)]
    assert found == [
        ("step", 0, False, 1),
        ("a", 0, False, 30),
        ("a.b", 1, False, 12),
        ("a.list.0", 1, False, 16),
        ("a", 1, True, 2),
        ("ab", 0, False, 32),
    ]
    assert sum(b.row.total_ms for b in tree(rows) if b.depth == 0) == 63
