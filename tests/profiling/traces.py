"""Traces written by hand, as torch.profiler writes them."""

from typing import Any

Event = dict[str, Any]
MAIN, AUTOGRAD = 100, 200


def span(
    category: str, name: str, start: float, end: float, thread: int = MAIN, **args: Any
) -> Event:
    """Something that ran from `start` to `end`."""
    return {
        "ph": "X", "cat": category, "name": name, "tid": thread, "pid": 1,
        "ts": start, "dur": end - start, "args": args,
    }  # fmt: skip


def ours(name: str, start: float, end: float) -> Event:
    """One of our ranges."""
    return span("user_annotation", f"avemo: {name}", start, end)


def forward(name: str, start: float, end: float, number: int) -> Event:
    """A forward operation that saw `number` as the next node's."""
    extra = {"Sequence number": number, "Fwd thread id": 0}
    return span("cpu_op", name, start, end, **extra)


def node(name: str, start: float, end: float, number: int | None, thread: int = MAIN) -> Event:
    """A node of the backward; one that accumulates gradients has no number."""
    extra = {} if number is None else {"Sequence number": number}
    full = f"autograd::engine::evaluate_function: {name}"
    return span("cpu_op", full, start, end, thread, **extra, **{"Fwd thread id": 1})


def launch(start: float, end: float, correlation: int, thread: int = MAIN) -> Event:
    """A call that launches a kernel."""
    return span("cuda_runtime", "cudaLaunchKernel", start, end, thread, correlation=correlation)


def kernel(name: str, start: float, end: float, correlation: int) -> Event:
    """A kernel on the device."""
    return span("kernel", name, start, end, 7, correlation=correlation)


def memory(
    time: float, size: int, address: int, thread: int = MAIN, *, on_host: bool = True
) -> Event:
    """An allocation, or what is taken back where `size` is negative."""
    return {
        "ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "tid": thread, "ts": time,
        "args": {"Bytes": size, "Addr": address, "Device Type": 0 if on_host else 1},
    }  # fmt: skip


def gpu_step() -> list[Event]:
    """A step whose backward runs on a thread of autograd: 100 microseconds, of which kernels fill 60."""
    return [
        ours("step", 0, 100),
        ours("forward", 10, 40),
        ours("part", 12, 30),
        forward("aten::mm", 14, 20, 5),
        launch(15, 17, 1),
        ours("backward", 40, 90),
        node("MmBackward0", 50, 70, 5, AUTOGRAD),
        span("cpu_op", "aten::mm", 52, 60, AUTOGRAD),
        launch(53, 54, 2, AUTOGRAD),
        node("torch::autograd::AccumulateGrad", 71, 75, None, AUTOGRAD),
        launch(72, 73, 3, AUTOGRAD),
        kernel("gemm", 20, 40, 1),
        kernel("gemm", 55, 85, 2),
        kernel("add", 80, 95, 3),  # 5 of its 15 beside the last one
        # What it looks like on the device's side, which is nobody's launch.
        span("gpu_user_annotation", "avemo: part", 20, 40, 7),
    ]
