"""What a call holds: at its peak, and between forward and backward; and how many kernels it starts on a GPU."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """The most that PyTorch's allocator holds at once during a call, beyond what it held before.

    Results count. What a kernel takes from elsewhere, such as a stack or buffers of its threads, does not.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        held = run()
        torch.cuda.synchronize()
        del held
        return torch.cuda.max_memory_allocated() - before
    with (
        _silent_errors(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        held = run()
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    del held
    level = most = 0
    for _, size in sorted(_allocations(tree)):
        level += size
        most = max(most, level)
    return most


def kept_bytes(run: Callable[[], object], inputs: Iterable[Tensor]) -> int:
    """What autograd holds between forward and backward.

    Args:
        run: the forward.
        inputs: its inputs and weights, which are there anyway and do not count.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = run()
    own = {t.untyped_storage().data_ptr() for t in inputs}
    kept = sum(size for at, size in storages.items() if at not in own)
    del held
    return kept


def launches(run: Callable[[], object]) -> int:
    """Kernels that one call starts on the GPU, memory sets and copies included."""
    run()
    torch.cuda.synchronize()
    with _silent_errors(), profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events() or []
    )


@contextmanager
def _silent_errors() -> Iterator[None]:
    """Keeps the profiler's library, which announces every start and stop, off the console."""
    console = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(console, 2)
        os.close(console)
        os.close(nowhere)


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int]]:
    """When, and how many bytes; what is freed is negative."""
    for event in events:
        if event.tag == torch._C._profiler._EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from _allocations(event.children)
