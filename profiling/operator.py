"""Profiles one operator at one shape and says what binds it: `python -m profiling.operator --help`."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import ceilings, machine
from bench.operators import OPERATORS
from bench.operators.call import (
    DTYPES,
    Call,
    Draw,
    Thunk,
    arithmetic,
    cotangents,
    forward,
    leaves,
    moved_bytes,
    on_backend,
    results,
    rounding,
    training,
)
from bench.records import Ceilings, Spread
from bench.timing import clock, interleave
from fbp_kernels import backends
from profiling import commands
from profiling.memory import storage_bytes
from profiling.ranges import Range, cost_seconds, nvtx_status
from profiling.record import one_step, record
from profiling.report import TRACE, About, Profile, text, write
from profiling.trace import BACKWARD, FORWARD

MODES = ("forward", "training")
_SECONDS = 1.0  # for the calls that nothing watches


class Calls:
    """Calls an operator, in ranges.

    Args:
        call: the operator and its inputs.
        mode: "forward", or "training" for forward and backward.
        backend: by name.
        given: gradients of the results.
    """

    def __init__(self, call: Call, mode: str, backend: str, given: tuple[Tensor, ...]) -> None:
        self.function = on_backend(call.function, backend)
        self.training = mode == "training"
        self.inputs = leaves(call.tensors) if self.training else call.tensors
        self.given = given

    def bare(self) -> Thunk:
        """The same call without ranges."""
        if self.training:
            return training(self.function, self.inputs, self.given)
        return forward(self.function, self.inputs)

    def __call__(self) -> None:
        """One call."""
        with Range(FORWARD):
            outputs = results(self.function(*self.inputs))
        if self.training:
            with Range(BACKWARD):
                torch.autograd.grad(outputs, self.inputs, self.given)


def floor(call: Call, mode: str, dtype: str, found: Ceilings, seconds: float) -> dict[str, Any]:
    """What bounds a call: its arithmetic or its memory, each at the machine's ceiling.

    Args:
        call: the operator.
        mode: "forward" or "training".
        dtype: of the inputs.
        found: the ceilings.
        seconds: that a call takes.

    Returns:
        `binds` ("arithmetic" or "memory"), `times_floor` (how many times longer a call takes), and what both
        follow from.
    """
    flops, moved = arithmetic(call, mode), moved_bytes(call, mode)
    by_arithmetic, by_memory = flops / found.flops[dtype], moved / found.bytes
    return {
        "flops": flops,
        "bytes": moved,
        "flops_ceiling": found.flops[dtype],
        "bytes_ceiling": found.bytes,
        "product": found.product[dtype],
        "arithmetic_seconds": by_arithmetic,
        "memory_seconds": by_memory,
        "binds": "arithmetic" if by_arithmetic >= by_memory else "memory",
        "times_floor": seconds / max(by_arithmetic, by_memory),
        "achieved_flops": flops / seconds,
        "achieved_bytes": moved / seconds,
    }


_PROGRAM = "profiling.operator"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        device = commands.device_of(options)
        with rounding(options.dtype):
            _run(options, given, device)
    except (OSError, ValueError, RuntimeError) as error:
        return commands.fail(_PROGRAM, error)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        description="Profiles one operator at one shape: time, memory, a trace, and its distance from the floor.",
    )
    parser.add_argument("operator", choices=OPERATORS)
    parser.add_argument("--shape", help="default: the operator's first; a wrong one tells them all")
    parser.add_argument("--mode", choices=MODES, default="training")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--backend", choices=backends.BACKENDS, help="default: the best there is")
    commands.add_common(parser, steps=11)
    return parser


def _run(options: argparse.Namespace, given: list[str], device: torch.device) -> None:
    shapes = OPERATORS[options.operator].sizes
    label = options.shape or next(iter(shapes))
    if label not in shapes:
        raise ValueError(
            f"--shape of {options.operator} is one of {', '.join(shapes)}; got {label!r}"
        )
    draw = Draw(options.dtype, device.type)
    call = OPERATORS[options.operator].make(shapes[label], draw)
    backend = backends.resolve(
        call.operator, options.backend, device.type, call.tensors[0].dtype, call.tensors
    )
    calls = Calls(call, options.mode, backend, cotangents(call, draw))
    if options.external:
        commands.watch(lambda: one_step(calls, device), options.steps, device)
        return
    title = f"{options.operator}, {label}, {options.mode}, {options.dtype}, {backend}"
    out = commands.folder(options, title.replace(", ", "-"))
    sizes = ", ".join(f"{name}={size}" for name, size in call.sizes.items())

    def about(seconds: Spread, found: Ceilings, bound: dict[str, Any]) -> About:
        return About(
            title,
            commands.command(_PROGRAM, given),
            machine.describe(device.type),
            {"sizes": sizes, "NVTX": nvtx_status()},
            seconds,
            cost_seconds(),
            storage_bytes([*calls.inputs, *calls.given], device),
            found,
            bound,
        )

    profile = _profile(options, call, calls, device, out, about)
    print(text(profile))
    print(f"\nWritten to {out}; {TRACE} opens in https://ui.perfetto.dev")
    if device.type == "cuda":
        print(f"Nsight Systems: {commands.nsys(_PROGRAM, given)}")
        print(f"Nsight Compute: python -m profiling.ncu {shlex.join(given)}")


def _profile(
    options: argparse.Namespace,
    call: Call,
    calls: Calls,
    device: torch.device,
    out: Path,
    about: Callable[[Spread, Ceilings, dict[str, Any]], About],
) -> Profile:
    samples = interleave({"call": calls.bare()}, _SECONDS, clock(device.type))["call"]
    seconds = Spread.of(samples)
    found = ceilings.measure(device.type, [options.dtype])
    bound = floor(call, options.mode, options.dtype, found, seconds.median)
    one_step(calls, device)
    trace = record(calls, steps=options.steps, device=device, path=out / TRACE)
    return write(trace, about(seconds, found, bound), out, {}, shapes=options.shapes)


if __name__ == "__main__":
    sys.exit(main())
