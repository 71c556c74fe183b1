"""Says which kernel a call would run, and why that one; nothing is computed."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The public alternative, torch.overrides.TorchFunctionMode, sees no call that PyTorch makes itself; no call pays.
from torch.utils._python_dispatch import TorchDispatchMode  # isort: skip

from . import backends, native, ops
from .libraries import OPERATORS
from .ops._operator import KEEP_LIMIT


@dataclass(frozen=True)
class Explanation:
    """What a call would run. `str()` of it is a table to read.

    Attributes:
        operator: the public name.
        backend: what would run it: "native", "triton" or "reference".
        because: why that one.
        kernel: which of the backend's kernels: the instruction set, or the GPU and the configurations.
        device: where the tensors are.
        dtype: what the kernel is given; autocast has narrowed it already.
        autocast: whether it has.
        kept: whether the forward keeps for the backward what that would compute again, and why; empty where an
            operator has no such thing.
        copies: inputs that are copied first, with the reason.
        threads: of PyTorch that the kernel may use; 0 where it uses none.
        others: why each other backend would not run it.
    """

    operator: str
    backend: str
    because: str
    kernel: str
    device: torch.device
    dtype: torch.dtype
    autocast: bool
    kept: str = ""
    copies: tuple[str, ...] = ()
    threads: int = 0
    others: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        rows = {
            "backend": f"{self.backend}: {self.because}",
            "kernel": self.kernel,
            "tensors": f"{dtype} on {self.device}{', narrowed by autocast' * self.autocast}",
            "keeps": self.kept,
            "copies": "; ".join(self.copies) or "none",
            "threads": f"up to {self.threads}, fewer where there is little to do"
            if self.threads
            else "",
            **{f"not {backend}": reason for backend, reason in self.others.items()},
        }
        width = max(map(len, rows))
        lines = [f"  {name:<{width}}  {row}" for name, row in rows.items() if row]
        return "\n".join([self.operator, *lines])


def explain(operator: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Which backend and kernel would run a call, and why.

    The operator's own code checks the arguments and chooses; it is stopped where a kernel would start. So what is
    said holds for this call, here and now: for these tensors, this grad mode, this environment. No kernel is run,
    inputs are not copied and no random number is drawn.

    Args:
        operator: one of the operators, such as `fbp_kernels.am_fbp`, or its name.
        args: the operator's arguments.
        kwargs: likewise.

    Returns:
        What would run; print it.

    Raises:
        ValueError: there is no such operator; or whatever the operator raises for these arguments.
    """
    name = operator if isinstance(operator, str) else getattr(operator, "__name__", "")
    function = getattr(ops, name) if name in ops.__all__ else None
    if function is None or operator not in (name, function):
        expected = ", ".join(ops.__all__)
        raise ValueError(f"explain: the operator is {operator!r}, expected one of {expected}")
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    tensors = {n: t for n, t in given.arguments.items() if isinstance(t, Tensor)}
    asked = given.arguments["backend"]
    watch = _Watch(name, asked, tensors)
    try:
        with watch:
            function(*args, **kwargs)
    except _StoppedError as stopped:
        call = stopped
    else:
        raise AssertionError(f"{name} came to an end without a kernel")
    device, dtype = call.device, call.dtype
    narrowed = any(t.dtype != dtype for t in tensors.values() if t.is_floating_point())
    fused = call.backend != "reference"
    return Explanation(
        operator=name,
        backend=call.backend,
        because=_because(name, call, asked, tuple(tensors.values())),
        kernel=_kernel(name, call),
        device=device,
        dtype=dtype,
        autocast=torch.is_autocast_enabled(device.type) and narrowed,
        kept=_kept(given.arguments, call) if fused else "",
        copies=tuple(watch.copies),
        threads=torch.get_num_threads() if _uses_threads(call) else 0,
        others=_others(name, call, asked),
    )


class _StoppedError(Exception):
    """A call got to where its kernel would start."""

    def __init__(self, backend: str, device: torch.device, dtype: torch.dtype, arguments: Any):
        super().__init__(backend)
        self.backend, self.device, self.dtype = backend, device, dtype
        self.arguments: tuple[Any, ...] = arguments


# What checks of arguments do with tensors: they look at lengths, and convert.
_CHECKS = {f"{OPERATORS}::check_lengths", "aten::_to_copy"}
_COPIES = {"aten::_to_copy", "aten::clone"}


class _Watch(TorchDispatchMode):
    """Stops a call at the operator that PyTorch knows it by, and sees what is copied on the way there."""

    def __init__(self, operator: str, asked: str | None, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._operator, self._asked = operator, asked
        self._tensors = tensors
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._first = next(iter(tensors.values()), None)
        self._dtype = None if self._first is None else self._first.dtype
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == OPERATORS and func.name() not in _CHECKS:
            given = [a for a in args if isinstance(a, Tensor)]
            if any(tensor.layout is not torch.strided for tensor in given):
                raise NotImplementedError(func.name())  # as the dispatcher would further on
            raise _StoppedError(args[-1], given[0].device, given[0].dtype, args)
        if func is torch.ops.aten.randint.default:  # a seed: to draw one would change the next
            return torch.zeros(args[1], dtype=torch.int64, device=kwargs.get("device"))
        if func.name() in _COPIES and args[0].is_floating_point():
            return self._copy(args[0], kwargs)
        if func.name() not in _CHECKS:
            self._stop_reference()
        return func(*args, **kwargs)

    def _copy(self, tensor: Tensor, options: dict[str, Any]) -> Tensor:
        dtype = options.get("dtype") or tensor.dtype
        why = "the kernels do not read its strides"
        if dtype != tensor.dtype:
            why = f"made {str(dtype).removeprefix('torch.')}"
            self._dtype = dtype if tensor is self._first else self._dtype
        self.copies.append(f"{self._names.get(id(tensor), 'a tensor')}: {why}")
        return torch.empty_like(tensor, **options)

    def _stop_reference(self) -> None:
        """Plain PyTorch has no operator to stop at: it starts with whatever no check does."""
        first = self._first
        if first is None:
            return
        kind, inputs = first.device.type, tuple(self._tensors.values())
        if backends.resolve(self._operator, self._asked, kind, self._dtype, inputs) == "reference":
            assert self._dtype is not None
            raise _StoppedError("reference", first.device, self._dtype, ())


def _because(
    operator: str, call: _StoppedError, asked: str | None, inputs: tuple[Tensor, ...]
) -> str:
    if asked:
        return "the argument backend asks for it"
    if backends.asked_for():
        return f"the environment variable {backends.ENVIRONMENT} asks for it"
    step = backends.step(operator, call.device.type, call.dtype, inputs)
    first = f"the first of {', '.join(step.order)} that can run this call"
    if not step.why:
        return first
    if call.device.type == "cuda":
        return f"{first}; on a GPU {step.why}{_elsewhere(step.why, call.device)}"
    return f"{first}; with {backends.TARGETS['cpu']} {step.why}"


def _elsewhere(why: str, device: torch.device) -> str:
    """What has to be said where a GPU is not the one that was measured."""
    name = torch.cuda.get_device_name(device)
    return "" if name in why else f"; this is a {name}, of which nothing was measured"


def _kernel(operator: str, call: _StoppedError) -> str:
    if call.backend == "reference":
        return f"fbp_kernels.reference.{operator}"
    gpu = torch.cuda.get_device_name(call.device) if call.device.type == "cuda" else ""
    if call.backend == "native":
        if gpu:
            return f"CUDA C++ on {gpu}"
        isa = native.operation("cpu_isa")()
        forced = " (the environment variable FBP_CPU_ISA)" if os.environ.get("FBP_CPU_ISA") else ""
        return f"C++ for {isa}{forced}"
    return f"Triton{' on ' + gpu if gpu else ', interpreted'}: {_configurations(operator, call)}"


def _uses_threads(call: _StoppedError) -> bool:
    return call.device.type == "cpu" and call.backend != "triton"


def _configurations(operator: str, call: _StoppedError) -> str:
    """What a forward would be launched with; results are allocated, and nothing is launched."""
    from .triton import launch, tuning

    found: list[str] = []

    def chooser(key: tuning.Key, architecture: str, start: tuning.Call) -> Any:
        config = tuning.lookup(key, architecture)
        found.append(f"{key} on {architecture} {config.entry()}")
        return start(config)

    def nothing(*_: Any) -> None:
        """In place of a launch."""

    forward = backends.kernel(operator, "triton").forward
    with torch.no_grad(), tuning.choosing(chooser), launch.instead(nothing):
        forward(*call.arguments[:-1])
    searched = f", unless {tuning.ENVIRONMENT} finds a better one" * tuning.autotuning()
    return "; ".join(found) + searched


_KEEPING = {"keep_projections": "the two take", "keep_hidden": "it takes"}


def _kept(given: dict[str, Any], call: _StoppedError) -> str:
    name = next((name for name in _KEEPING if name in given), "")
    if not name:
        return ""
    asked, kept = given[name], call.arguments[-2]
    what = "kept for the backward" if kept else "recomputed in the backward"
    if not torch.is_grad_enabled() or not any(
        t.requires_grad for t in given.values() if isinstance(t, Tensor)
    ):
        return "not kept: no gradient is due"
    if asked is not None:
        return f"{what}: {name} is {asked}"
    relation = "at most" if kept else "more than"
    return f"{what}: {_KEEPING[name]} {relation} {KEEP_LIMIT // 2**20} MiB"


def _others(operator: str, call: _StoppedError, asked: str | None) -> dict[str, str]:
    wanted = asked or backends.asked_for()
    reasons = {}
    for backend in backends.BACKENDS:
        if backend == call.backend:
            continue
        reason = backends._why_not(operator, backend, call.device.type, call.dtype)
        if not reason and wanted:
            reason = f"{call.backend} is asked for"
        if not reason and backend == "triton" and call.device.type == "cpu":
            reason = "its interpreter is there to check kernels, for those who ask for it"
        reasons[backend] = reason or f"{call.backend} comes first"
    return reasons
