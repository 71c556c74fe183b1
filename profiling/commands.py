"""What the command lines here have in common."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

USAGE_ERROR = 2
RUNS = Path("runs/profiling")  # in which results go to a folder each, unless told otherwise


def add_common(parser: argparse.ArgumentParser, steps: int) -> None:
    """Adds the options that say where to run, `steps` times unless told otherwise, and where results go."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--threads", type=positive, help="of PyTorch on the CPU; default: its own")
    parser.add_argument(
        "--steps", type=positive, default=steps, help="that are traced (default: %(default)s)"
    )
    parser.add_argument("--shapes", action="store_true", help="tell operations apart by shapes")
    parser.add_argument("--out", type=Path, help=f"folder of the results (default: in {RUNS})")
    parser.add_argument(
        "--external",
        action="store_true",
        help="trace nothing, only run the steps in their NVTX ranges, for nsys or ncu to watch",
    )


def positive(value: str) -> int:
    """An argument that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no positive number.
    """
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value!r}")
    return number


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that was asked for, with the threads that were asked for.

    Raises:
        ValueError: there is no GPU.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but PyTorch finds no GPU here")
    return torch.device(name)


def folder(options: argparse.Namespace, name: str) -> Path:
    """The folder of the results, made if need be."""
    out: Path = options.out or RUNS / name
    out.mkdir(parents=True, exist_ok=True)
    return out


def command(module: str, arguments: Sequence[str]) -> str:
    """A command line to be pasted; where its results went is nobody else's matter."""
    kept = list(arguments)
    if "--out" in kept:
        place = kept.index("--out")
        del kept[place : place + 2]
    return shlex.join(["python", "-m", module, *(a for a in kept if not a.startswith("--out="))])


def watch(step: Callable[[], object], steps: int, device: torch.device) -> None:
    """Takes steps for a profiler outside, which is told to watch them and nothing before.

    Args:
        step: takes one, in its range.
        steps: how many.
        device: where.
    """
    step()
    if device.type == "cuda":
        torch.cuda.profiler.start()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.profiler.stop()


def nsys(module: str, arguments: Sequence[str]) -> str:
    """A command line that has Nsight Systems watch the same steps."""
    report = "--output=" + module.rpartition(".")[2]
    options = ["--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", report]
    return f"nsys profile {shlex.join(options)} {command(module, [*arguments, '--external'])}"


def fail(program: str, error: Exception) -> int:
    """Tells what the user can put right, in one line; gives the exit status."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"python -m {program}: error: {first}", file=sys.stderr)
    return USAGE_ERROR
