"""Who is compared: our backends, plain PyTorch, its compiler, bare products, other people's code."""

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import fbp_kernels
from fbp_kernels.backends import BACKENDS
from fbp_kernels.ops._operator import little

from . import verify
from .names import GRAPH, KEEPING, asked_as, plain
from .operators.call import Call, Function, Thunk, forward, on_backend, training

KERNELS = tuple(backend for backend in BACKENDS if backend != "reference")


class UnavailableError(RuntimeError):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A contender, ready to run.

    Attributes:
        run: one call; gives results and, in training, gradients in the order of the operator's inputs.
        function: what is called, for looking at its memory.
        tensors: what it is called with.
        rule: what its error may be, or None where it computes only parts of the operator.
    """

    run: Thunk
    function: Function
    tensors: tuple[Tensor, ...]
    rule: verify.Rule | None


def names(call: Call, mode: str, device: str) -> list[str]:
    """All that can be asked for, whether or not it can run here."""
    bare = list(call.bare) if mode == "forward" else []
    called = [*KERNELS, "eager", "compile", "max-autotune"]
    if device != "cuda":
        return [*called, *bare, *call.others]
    # The compiler replays what it has tuned by itself.
    replayed = [name + GRAPH for name in (*called[:-1], *bare)]
    keeping = list(KEEPING) if mode == "training" and call.projections else []
    return [*called, *keeping, *replayed, *bare, *call.others]


def prepare(
    name: str, call: Call, mode: str, cotangents: tuple[Tensor, ...], *, dynamic: bool = False
) -> Contender:
    """Makes a contender ready for the inputs of a call.

    Args:
        name: one of `names`.
        call: the operator and its inputs.
        mode: "forward" or "training".
        cotangents: gradients of the results.
        dynamic: compile for any sizes.

    Raises:
        UnavailableError: it cannot run here.
    """
    if name.endswith(GRAPH):
        called = prepare(plain(name), call, mode, cotangents)
        return replace(called, run=_replayed(called.run))
    if name in call.bare:
        return Contender(call.bare[name], call.reference, call.tensors, None)
    if name in call.others:
        return _other(name, call, mode, cotangents)
    function = _function(name, call, dynamic)
    run = _run(function, call.tensors, mode, cotangents)
    rule = verify.correct if asked_as(name) in KERNELS else verify.alike
    return Contender(run, function, call.tensors, rule)


def _function(name: str, call: Call, dynamic: bool) -> Function:
    if name in KERNELS:
        _require(name, call.operator, call.tensors[0].device)
        return on_backend(call.function, name)
    if name in KEEPING:
        return _keeping(name, call)
    if name == "eager":
        return call.reference
    if name == "compile":
        return torch.compile(call.reference, dynamic=dynamic)
    return torch.compile(call.reference, mode="max-autotune")


def _keeping(name: str, call: Call) -> Function:
    """A backend that is told whether to keep the projections, where it would not do so by itself."""
    backend, keep = asked_as(name), KEEPING[name]
    if little(2 * call.projections, call.tensors[0]) == keep:
        raise UnavailableError(f"that is what {backend} does here")
    _require(backend, call.operator, call.tensors[0].device)
    return on_backend(call.function, backend, keep_projections=keep)


def _require(backend: str, operator: str, device: torch.device) -> None:
    for status in fbp_kernels.available_backends(device):
        if (status.operator, status.backend) == (operator, backend) and not status.available:
            raise UnavailableError(status.reason)


def _other(name: str, call: Call, mode: str, cotangents: tuple[Tensor, ...]) -> Contender:
    try:
        peer = call.others[name](call.tensors)
    except ImportError as error:
        raise UnavailableError(f"not installed: {error}") from error
    run = _run(peer.function, peer.tensors, mode, cotangents)
    results = len(cotangents)

    def like_ours() -> tuple[Tensor, ...]:
        values = run()
        return (*values[:results], *peer.like_ours(values[results:]))

    reordered = like_ours if mode == "training" else run
    return Contender(reordered, peer.function, peer.tensors, verify.alike)


def _run(
    function: Function, tensors: tuple[Tensor, ...], mode: str, cotangents: tuple[Tensor, ...]
) -> Thunk:
    if mode == "forward":
        return forward(function, tensors)
    return training(function, tensors, cotangents)


def _replayed(run: Thunk) -> Thunk:
    """Captures a call as a CUDA graph.

    Raises:
        Exception: the call fails, by itself or while it is captured; nothing of the capture is left.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    # A graph knows addresses, not tensors: what the call reads has to be there for every replay.
    held = (*_captured(run), run)

    def replay() -> tuple[Tensor, ...]:
        held[0].replay()
        return held[1]

    return replay


def _captured(run: Thunk) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    before = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = run()
    except BaseException:
        # Where the capture cannot be ended, PyTorch stays on the stream that captured.
        torch.cuda.set_stream(before)
        _dropped(graph)
        raise
    return graph, results


def _dropped(graph: torch.cuda.CUDAGraph) -> None:
    """Gives up a graph that was not captured to its end, the memory that it drew from, and errors that it left."""
    for step in (graph.reset, torch.cuda.synchronize, torch.cuda.empty_cache):
        with suppress(RuntimeError):  # the error to be told is the one that ended the capture
            step()
