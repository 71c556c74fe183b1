"""Finds the shortest way to start a compiled kernel again."""

import copy
from collections.abc import Callable
from typing import Any

Grid = tuple[int, ...]  # of three dimensions
Start = Callable[
    ..., object
]  # called with the grid, a stream, settings, and a list of the kernel's arguments


def starter(compiled: Any, grid: Grid, arguments: list[Any]) -> tuple[Start, tuple[Any, ...]]:
    """What starts a kernel of Triton's on the current device, and its settings.

    It is the function in C that Triton's launcher ends in, where that is called alike in every launch. What the
    launcher adds to a call of it is noted here, once, in a launch that does not take place.

    Args:
        compiled: the kernel.
        grid: how many programs.
        arguments: some of the kernel's, to be found again in what is noted.
    """
    needs, launch = compiled.metadata, getattr(compiled.run, "launch", None)
    # Memory of Triton's own is allocated by its launcher, anew for every launch.
    if launch is None or needs.global_scratch_size or needs.profile_scratch_size:
        return _through(compiled, compiled.run), ()
    noted: list[Any] = []
    launcher = copy.copy(compiled.run)
    launcher.launch = lambda *call: noted.extend(call)
    _through(compiled, launcher)(*grid, 0, arguments)
    if noted[-1:] == [tuple(arguments)]:  # from Triton 3.7 on
        return launch, tuple(noted[4:-1])
    if noted[-len(arguments) :] == arguments:
        return lambda *call: launch(*call[:-1], *call[-1]), tuple(noted[4 : -len(arguments)])
    return _through(compiled, compiled.run), ()


def _through(compiled: Any, launcher: Any) -> Start:
    """A launcher of Triton's, called as all are here."""
    function, metadata = compiled.function, compiled.packed_metadata

    def start(x: int, y: int, z: int, stream: int, arguments: list[Any]) -> None:
        launcher(x, y, z, stream, function, metadata, None, None, None, *arguments)

    return start
