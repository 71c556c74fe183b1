"""Counters by which the programs of one launch find out which of them comes last.

They are zero between launches: the last program to arrive sets its counter back. So there is nothing to clear before a
launch, and a launch stays one launch. Two launches must not share counters unless one follows the other:
each stream has its own, and each capture of a CUDA graph gets its own for good, for its replays may run anywhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_ARENA = 1 << 18  # counters allocated at a time: 1 MiB
_UNIT = 4  # 16 bytes: kernels are compiled for counters that begin there

_arenas: dict[torch.device, tuple[Tensor, int]] = {}
_full: list[Tensor] = []  # arenas that captured graphs may still count in
_streams: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, stream: int, count: int) -> Tensor:
    """A stream's counters: 0, and nobody else's. Not for a launch that is captured, whose replays run anywhere.

    Args:
        device: of the launch, which is to follow.
        stream: the device's current one.
        count: how many.

    Returns:
        int32, at least `count`.
    """
    have = _streams.get((device, stream))
    if have is None or have.numel() < count:
        have = _take(device, max(count, 4096))
        _streams[device, stream] = have
    return have


def counting(device: torch.device, count: int) -> Callable[[int], Tensor]:
    """What gives counters for launches that need so many, given the device's current stream: its own, or a graph's.

    It keeps what a stream was given, for to look that up by device and stream costs a launch a third of a microsecond.
    """
    captures = device.type == "cuda"
    given: dict[int, Tensor] = {}

    def give(stream: int) -> Tensor:
        if captures and torch.cuda.is_current_stream_capturing():
            return _captured(device, count)
        have = given.get(stream)
        if have is None:
            have = given[stream] = counters(device, stream, count)
        return have

    return give


def _captured(device: torch.device, count: int) -> Tensor:
    arena = _arenas.get(device)
    if arena is None or arena[1] + count > _ARENA:
        # Zeroed by the graph itself, at each replay: an allocation that outlives the capture cannot be made in it.
        return torch.zeros(count, dtype=torch.int32, device=device)
    return _take(device, count)


def _take(device: torch.device, count: int) -> Tensor:
    """The next counters of the arena, never given out again."""
    arena, used = _arenas.get(device, (None, _ARENA))
    if arena is None or used + count > arena.numel():
        if arena is not None:
            _full.append(arena)
        arena, used = torch.zeros(max(_ARENA, count), dtype=torch.int32, device=device), 0
        # Other streams will use the arena too.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    _arenas[device] = (arena, used + -(-count // _UNIT) * _UNIT)
    return arena[used : used + count]
