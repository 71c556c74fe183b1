"""How a compiled kernel is started again: by the function that Triton's launcher ends in, where that may be."""

from types import SimpleNamespace
from typing import Any

import pytest

from fbp_kernels.triton.starter import starter

POINTERS, REST = [4096, None], [7, "constant"]


class Kernel:
    """A compiled one with a launcher; everything that is called is noted."""

    def __init__(self, launcher: type, scratch: int = 0, profile: int = 0) -> None:
        self.function, self.packed_metadata = 99, (4, 1, 0)
        self.metadata = SimpleNamespace(global_scratch_size=scratch, profile_scratch_size=profile)
        self.run = launcher()


class Nested:
    """As in Triton 3.7: the kernel's arguments are one tuple."""

    through = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.launch = lambda *call: self.calls.append(call)

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        type(self).through += 1
        self.launch(x, y, z, stream, function, False, *rest[:4], "signature", rest[4:])


class Flat(Nested):
    """As in Triton 3.6."""

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        type(self).through += 1
        self.launch(x, y, z, stream, function, False, *rest)


class Instrumented(Nested):
    """Adds an argument to the kernel's own."""

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        type(self).through += 1
        self.launch(x, y, z, stream, function, (*rest[4:], object()))


class Other:
    """A launcher that calls nothing known."""

    through = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *call: Any) -> None:
        type(self).through += 1
        self.calls.append(call)


@pytest.mark.parametrize("launcher", [Nested, Flat])
def test_what_a_launcher_adds_is_learnt_once(launcher: Any) -> None:
    kernel = Kernel(launcher)
    start, settings = starter(kernel, (3, 1, 1), REST)
    assert not kernel.run.calls, "nothing was started yet"
    kernel.run(3, 1, 1, 5, 99, (4, 1, 0), None, None, None, *POINTERS, *REST)
    through = launcher.through
    start(3, 1, 1, 5, *settings, POINTERS + REST)
    first, second = kernel.run.calls
    assert [tuple(part) if isinstance(part, list) else part for part in second] == list(first)
    assert launcher.through == through


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(Nested, scratch=64),
        Kernel(Nested, profile=64),
        Kernel(Instrumented),
        Kernel(Other),
    ],
)
def test_where_launches_differ_the_launcher_is_called(kernel: Any) -> None:
    start, settings = starter(kernel, (3, 1, 1), REST)
    through = type(kernel.run).through
    start(3, 1, 1, 5, *settings, POINTERS + REST)
    assert type(kernel.run).through == through + 1
    assert len(kernel.run.calls) == 1
