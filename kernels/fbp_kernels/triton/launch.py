"""The one way to start a Triton kernel: planned and compiled once for all calls that look alike.

A launch follows from a key: shapes, strides and dtypes of the tensors, the operator's options, the device, and where in
memory tensors begin, to 16 bytes. What follows from it is computed by a planner, which is given nothing else, when a
key is met first; Triton then compiles and starts the kernel as it always does. From then on, the compiled kernel is
started with the numbers of the plan and the pointers of the call.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from . import interpreted, tuning, workspace
from .tuning import Config, Key

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
        grid: how many programs.
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


# Called with (device, *options, *given), the tensors without memory; gives what the configuration is chosen by, and
# the plan that follows from it.
Planner = Callable[..., tuple[Key, Callable[[Config], Plan]]]
Tensors = tuple[Tensor | None, ...]

_MOST = 1024  # launches that are kept prepared
_prepared: dict[Any, "_Launch"] = {}


def run(
    planner: Planner, options: tuple[Any, ...], given: Tensors, own: tuple[Tensor | None, ...]
) -> tuple[Plan, Tensor | None]:
    """Starts a kernel on the current stream of its tensors' device.

    Args:
        planner: says how; it may depend on nothing but its arguments.
        options: hashable, for the planner.
        given: the kernel's first tensors, for the planner too; None for one that is missing.
        own: those that follow, whose shapes, strides and dtypes follow from options and given; the last one is there.

    Returns:
        The plan, and the scratch that the launch wrote to.
    """
    tensors = given + own
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    key = (
        planner,
        tensors[-1].device,  # type: ignore[union-attr]
        options,
        tuple([None if t is None else (t.shape, t.stride(), t.dtype) for t in given]),
        tuple([p and p & 15 for p in pointers]),
    )
    launch = _prepared.get(key)
    if launch is None or _instead or tuning.here.choosers:
        return _first(key, given, tensors, pointers)
    return launch(tensors, pointers)


def _first(
    key: Any, given: Tensors, tensors: Tensors, pointers: list[int | None]
) -> tuple[Plan, Tensor | None]:
    planner, device, options = key[:3]
    wanted, plan = planner(device, *options, *map(_without_memory, given))
    launches: dict[int, _Launch] = {}
    last: list[_Launch] = []

    def call(config: Config) -> tuple[Plan, Tensor | None]:
        launch = launches.get(id(config))
        if launch is None:
            launch = launches[id(config)] = _Launch(plan(config), device)
        last[:] = [launch]
        return launch(tensors, [*pointers])

    done: tuple[Plan, Tensor | None] = tuning.run(wanted, architecture(device), call, device)
    if not (_instead or tuning.here.choosers):
        if len(_prepared) >= _MOST:
            _prepared.pop(next(iter(_prepared)), None)
        _prepared[key] = last[0]
    return done


def forget() -> None:
    """Plans every launch anew, as after a change of Triton's settings or of the table."""
    _prepared.clear()


def _without_memory(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class _Launch:
    """A plan for one device, ready to be started again and again."""

    __slots__ = ("_current_device", "_device", "_index", "_plan", "_start", "_takes_workspace")

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._takes_workspace = plan.scratch is not None or plan.counters is not None
        self._start: Callable[[list[int | None]], None] | None = None  # the compiled kernel

    def __call__(self, tensors: Tensors, pointers: list[int | None]) -> tuple[Plan, Tensor | None]:
        scratch = None
        if self._takes_workspace:
            scratch, memory = self._workspace()
            tensors += memory
            pointers += [None if t is None else t.data_ptr() for t in memory]
        start = self._start
        if start is None or _instead:
            self._plainly(tensors)
        elif self._current_device() == self._index:
            start(pointers)
        else:
            with torch.cuda.device(self._index):
                start(pointers)
        return self._plan, scratch

    def _workspace(self) -> tuple[Tensor | None, Tensors]:
        """Scratch, and what of workspace the kernel takes."""
        plan, device = self._plan, self._device
        scratch = counters = None
        if plan.scratch:
            scratch = torch.empty(plan.scratch, dtype=torch.float32, device=device)
        if plan.counters:
            counters = workspace.counters(device, plan.counters)
        memory: Tensors = () if plan.scratch is None else (scratch,)
        return scratch, memory if plan.counters is None else (*memory, counters)

    def _plainly(self, tensors: Tensors) -> None:
        """As Triton does it, which looks at every argument, and compiles the kernel where it has not yet."""
        plan = self._plan
        arguments, options = (*tensors, *plan.numbers), plan.options
        if _instead:
            _instead[-1](plan.kernel, plan.grid, arguments, options)
            return
        with _on(self._device):
            compiled = plan.kernel[plan.grid](*arguments, **options)
            if (
                not interpreted() and compiled is not None
            ):  # a hook of Triton's may have none compiled
                self._keep(compiled, options, len(arguments))

    def _keep(self, compiled: Any, options: dict[str, Any], given: int) -> None:
        runtime, active, plan = knobs.runtime, driver.active, self._plan
        index, stream_of = active.get_current_device(), active.get_current_stream
        rest = (*plan.numbers, *(options[name] for name in plan.kernel.arg_names[given:]))
        grid = (*plan.grid, 1, 1)[:3]
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

        def start(pointers: list[int | None]) -> None:
            if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:
                compiled[grid](*pointers, *rest)  # tells a profiler what is started
                return
            stream = stream_of(index)
            run(*grid, stream, function, metadata, None, None, None, *pointers, *rest)

        self._index, self._current_device, self._start = index, active.get_current_device, start


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
