"""The one way to start a Triton kernel: planned and compiled once for all calls that look alike.

A launch follows from what its planner is given: shapes, strides and dtypes of tensors, options, the device. Triton
compiles for that, for which tensors are missing, and for where in memory the others begin, to 16 bytes. Where all of it
was met before, the compiled kernel is started with the numbers of the plan and the pointers of the call.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from . import interpreted, tuning, workspace
from .starter import starter
from .tuning import Config, Key, detours

if interpreted():
    from . import interpreter

    interpreter.mend()

# Called with (kernel, grid, arguments, options) in place of a launch; the last one entered counts.
Instead = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
_instead: list[Instead] = []


@dataclass(frozen=True)
class Plan:
    """A launch, but for where its tensors are.

    A kernel's arguments are its tensors, then scratch and counters where it takes them, numbers, and constants by name.

    Attributes:
        kernel: a function under `triton.jit`.
        grid: how many programs; where none, nothing is started.
        numbers: what follows the tensors.
        constants: compile-time arguments by name, besides the configuration's.
        config: gives block sizes by name, warps and stages.
        scratch: float32 numbers of memory that the launch writes to; 0 if this one needs none and the kernel gets a
            None, None if the kernel takes no such argument.
        counters: likewise, see `workspace`.
    """

    kernel: Any
    grid: tuple[int, ...]
    numbers: tuple[int | float | None, ...]
    constants: dict[str, Any]
    config: Config
    scratch: int | None = None
    counters: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """All compile-time arguments by name, and what Triton's compiler is told."""
        return {
            **self.constants,
            **self.config.blocks,
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
            "enable_fp_fusion": True,  # off by default from Triton 3.10 on
        }


# Called with (device, *arguments); gives what the configuration is chosen by, and the plan that follows from it.
Planner = Callable[..., tuple[Key, Callable[[Config], Plan]]]
Tensors = tuple[Tensor | None, ...]
Pointers = list[int | None]
Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # a tensor's shape, strides and dtype
Again = Callable[[Pointers], tuple[Plan, Tensor | None]]

_MOST = 1024  # launches that a launcher keeps prepared
_Prepared = dict[
    Any, list[tuple[list[Any], Again]]
]  # by the first argument: keys, and what starts their launch
_prepared: list[_Prepared] = []  # one for each launcher


def launcher(planner: Planner) -> Callable[[tuple[Any, ...], Tensors], tuple[Plan, Tensor | None]]:
    """What starts a kernel as a planner says, which is asked once for all calls that look alike.

    Args:
        planner: gives a launch for arguments; it may depend on nothing else.
    """
    prepared: _Prepared = {}
    _prepared.append(prepared)

    # Most of what a launch costs the processor is steps of Python: few here are many microseconds.
    def start(arguments: tuple[Any, ...], tensors: Tensors) -> tuple[Plan, Tensor | None]:
        """Starts the kernel on the current stream of its tensors' device.

        Args:
            arguments: for the planner. Shapes, strides and dtypes of all tensors follow from them. The first one is
                hashable and tells most launches apart: a shape, say.
            tensors: what the kernel's own arguments begin with; None for one that is missing. The last one is there.

        Returns:
            The plan, and the scratch that the launch wrote to.
        """
        key: list[Any] = [arguments, tensors[-1].device]  # type: ignore[union-attr]
        pointers: Pointers = []
        for tensor in tensors:
            if tensor is None:
                key.append(len(pointers))
                pointers.append(None)
            else:
                pointer = tensor.data_ptr()
                if pointer & 15:
                    key.append((len(pointers), pointer & 15))
                pointers.append(pointer)
        if not detours:
            for known, again in prepared.get(arguments[0], ()):
                if known == key:
                    return again(pointers)
        return _first(planner, prepared, key, tensors, pointers)

    return start


def _first(
    planner: Planner, prepared: _Prepared, key: list[Any], tensors: Tensors, pointers: Pointers
) -> tuple[Plan, Tensor | None]:
    arguments, device = key[:2]
    wanted, plan = planner(device, *arguments)
    launches: dict[int, _Launch] = {}
    last: list[_Launch] = []

    def call(config: Config) -> tuple[Plan, Tensor | None]:
        launch = launches.get(id(config))
        if launch is None:
            launch = launches[id(config)] = _Launch(plan(config), device)
        last[:] = [launch]
        return launch(tensors, pointers)

    done: tuple[Plan, Tensor | None] = tuning.run(wanted, architecture(device), call, device)
    if last and last[0].again is not None and not detours:
        if sum(map(len, prepared.values())) >= _MOST:
            prepared.clear()
        prepared.setdefault(arguments[0], []).append((key, last[0].again))
    return done


def forget() -> None:
    """Plans every launch anew, as after a change of Triton's settings or of the table."""
    tuning.forget()
    for prepared in _prepared:
        prepared.clear()


def likes(tensors: Tensors) -> list[Like | None]:
    """What launches may follow from of tensors."""
    return [t if t is None else (t.shape, t.stride(), t.dtype) for t in tensors]


def without_memory(like: Like) -> Tensor:
    """A tensor that is like another."""
    shape, strides, dtype = like
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


class _Launch:
    """A plan for one device: started as Triton does it, and prepared thereby to be started again.

    Attributes:
        again: starts it again, given the pointers that begin the kernel's arguments; None where nothing is compiled.
    """

    __slots__ = ("_device", "_plan", "again")

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self.again: Again | None = None

    def __call__(self, tensors: Tensors, pointers: Pointers) -> tuple[Plan, Tensor | None]:
        if self.again is not None and not _instead:
            return self.again([*pointers])
        plan, device, options = self._plan, self._device, self._plan.options
        scratch = counters = None
        if plan.scratch:
            scratch = torch.empty(plan.scratch, dtype=torch.float32, device=device)
        if plan.counters:
            counters = torch.zeros(plan.counters, dtype=torch.int32, device=device)
        if plan.scratch is not None:
            tensors += (scratch,)
        if plan.counters is not None:
            tensors += (counters,)
        arguments = (*tensors, *plan.numbers)
        if _instead:
            _instead[-1](plan.kernel, plan.grid, arguments, options)
        elif math.prod(plan.grid):
            with _on(device):
                # Triton looks at every argument, and compiles the kernel where it has not yet.
                compiled = plan.kernel[plan.grid](*arguments, **options)
                # A hook of Triton's may have none compiled.
                if compiled is not None and not interpreted():
                    rest = [options[name] for name in plan.kernel.arg_names[len(arguments) :]]
                    self.again = _again(plan, device, compiled, [*plan.numbers, *rest])
        return plan, scratch


def _again(plan: Plan, device: torch.device, compiled: Any, rest: list[Any]) -> Again:
    """What starts a compiled kernel on what is the current device now, whatever it is then."""
    active, runtime = driver.active, knobs.runtime
    current_device, stream_of = active.get_current_device, active.get_current_stream
    index, several = current_device(), torch.cuda.device_count() > 1
    x, y, z = grid = (*plan.grid, 1, 1)[:3]
    watched = compiled[grid]
    start, settings = starter(compiled, grid, rest)
    memory = plan.scratch is not None or plan.counters is not None
    # Of a tensor that is there, for that takes less Python.
    size = plan.scratch or 0
    floats = torch.empty(0, dtype=torch.float32, device=device).new_empty if size else None
    counters_on = workspace.counting(device, plan.counters or 0)

    def again(pointers: Pointers) -> tuple[Plan, Tensor | None]:
        if several and current_device() != index:
            with torch.cuda.device(index):
                return again(pointers)
        stream = stream_of(index)
        scratch = None
        if memory:
            if floats is not None:
                scratch = floats(size)
                pointers.append(scratch.data_ptr())
            elif plan.scratch is not None:
                pointers.append(None)
            if plan.counters:
                counters = counters_on(stream)
                pointers.append(counters.data_ptr())
            elif plan.counters is not None:
                pointers.append(None)
        if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:
            watched(*pointers, *rest, stream=stream)  # tells a profiler what is started
        else:
            start(x, y, z, stream, *settings, pointers + rest)
        return plan, scratch

    return again


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes it the current device, whose stream Triton takes."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()


@contextmanager
def instead(call: Instead) -> Iterator[None]:
    """Within it, launches go to `call`; what they would have written is not written."""
    _instead.append(call)
    try:
        with tuning.detour():
            yield
    finally:
        _instead.pop()


@contextmanager
def counted() -> Iterator[list[str]]:
    """Within it, the names of the kernels launched are added to the list that it gives."""
    names: list[str] = []

    def run(
        kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        names.append(kernel.fn.__name__)
        kernel[grid](*arguments, **options)

    with instead(run):
        yield names


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a device has: how many programs a launch should have at least."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return _MULTIPROCESSORS.get(architecture(device), 4)


# Where only the compiler runs: of A100, H100, B200; the interpreter takes few, so that small cases are split too.
_MULTIPROCESSORS = {"sm80": 108, "sm90": 132, "sm100": 148}


def architecture(device: torch.device) -> str:
    """The family whose configurations serve a device: "sm80", "sm90", "sm100" or "interpreter".

    Families, not devices: sm80 also serves what has its instructions and less shared memory (8.x and 12.x).
    """
    if interpreted():
        return "interpreter"
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
    else:  # nothing runs: the target that is compiled for
        from triton.runtime import driver

        major = driver.active.get_current_target().arch // 10
    return {9: "sm90", 10: "sm100", 11: "sm100"}.get(major, "sm80")
