"""Measures the native CPU kernels against eager PyTorch and against the bare matrix products.

Run as `python -m bench.fbp_cpu`. All contenders of a case are verified, then run in turn (A B C A B C ...), so that a
neighbour's load hits them alike; the ratios are medians over pairs from the same turn.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

import fbp_kernels
from fbp_kernels import native, reference

from .shapes import SHAPES, Shape

RESULTS = Path(__file__).parent / "results"
LRN_SHAPES = ((8, 96, 50, 150), (8, 256, 24, 74))
Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is measured together; the first contender is the one that the ratios are of."""

    name: str
    contenders: dict[str, Run]


@dataclass(frozen=True)
class Timing:
    """Microseconds of one contender, and its time over the first contender's, from the same turns."""

    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]


def measure(
    case: Case, seconds: float, clock: Callable[[], float] = time.perf_counter, least: int = 9
) -> dict[str, Timing]:
    """Times the contenders of a case in turn for about `seconds`, at least `least` turns."""
    for run in case.contenders.values():
        for _ in range(2):
            run()
    turns: list[dict[str, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns) < least:
        turn = {}
        for name, run in case.contenders.items():
            start = clock()
            run()
            turn[name] = 1e6 * (clock() - start)
        turns.append(turn)
    first = next(iter(case.contenders))
    timings = {}
    for name in case.contenders:
        low, median, high = statistics.quantiles([t[name] for t in turns], n=4)
        ratio_low, ratio, ratio_high = statistics.quantiles(
            [t[name] / t[first] for t in turns], n=4
        )
        timings[name] = Timing(median, (low, high), ratio, (ratio_low, ratio_high))
    return timings


def verify(case: str, truth: list[Tensor], plain: list[Tensor], ours: list[Tensor]) -> None:
    """Our error against float64 is at most twice plain PyTorch's plus one unit in the last place.

    Raises:
        RuntimeError: it is not; timings of wrong results are worth nothing.
    """
    for i, (want, base, got) in enumerate(zip(truth, plain, ours, strict=True)):
        scale = want.abs().max().item()
        allowed = 2 * (base - want).abs().max().item() + torch.finfo(got.dtype).eps * scale
        error = (got - want).abs().max().item()
        if not error <= allowed:
            raise RuntimeError(f"{case}: result {i} is off by {error}, allowed {allowed}")


def operator_cases(
    name: str,
    native_run: Callable[..., Tensor],
    reference_run: Callable[..., Tensor],
    inputs: list[Tensor],
    floor: dict[str, Run],
) -> Iterator[Case]:
    """The forward alone, beside what it cannot do without, and forward and backward, of one operator."""

    def gradients(run: Callable[..., Tensor], given: list[Tensor]) -> Callable[[], list[Tensor]]:
        given = [t.detach().requires_grad_() for t in given]
        dz = torch.ones_like(run(*given)).to(given[0].dtype)
        return lambda: [(z := run(*given)).detach(), *torch.autograd.grad(z, given, dz)]

    doubles = [t.double() for t in inputs]
    ours, eager = gradients(native_run, inputs), gradients(reference_run, inputs)
    verify(name, gradients(reference_run, doubles)(), eager(), ours())
    yield Case(
        f"{name} forward",
        {
            "native": lambda: native_run(*inputs),
            "eager": lambda: reference_run(*inputs),
            **floor,
        },
    )
    yield Case(f"{name} forward+backward", {"native": ours, "eager": eager})


def bilinear_cases(name: str, s: Shape) -> Iterator[Case]:
    """fbp, trunk_fbp and am_fbp at one shape."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    a, v = draw(s.B, s.C), draw(s.B, s.D)
    p, q = draw(s.C, s.O_G * s.K_G) / s.C**0.5, draw(s.D, s.O_G * s.K_G) / s.D**0.5
    u, w = torch.empty(s.B, p.shape[1]), torch.empty(s.B, p.shape[1])
    yield from operator_cases(
        f"{name} fbp",
        lambda *t: fbp_kernels.fbp(*t, s.K_G, backend="native"),
        lambda *t: reference.fbp(*t, s.K_G),
        [a, v, p, q],
        {"products": lambda: (torch.mm(a, p, out=u), torch.mm(v, q, out=w))},
    )
    if not s.H:
        return
    a_trunks, v_trunks = draw(s.B, s.H, s.C), draw(s.B, s.H, s.D)
    p_trunks = draw(s.H, s.C, s.O_M * s.K_M) / s.C**0.5
    q_trunks = draw(s.H, s.D, s.O_M * s.K_M) / s.D**0.5
    # The products get contiguous operands, which the operator does not.
    a_first, v_first = (t.transpose(0, 1).contiguous() for t in (a_trunks, v_trunks))
    u_trunks, w_trunks = (torch.empty(s.H, s.B, p_trunks.shape[2]) for _ in range(2))
    yield from operator_cases(
        f"{name} trunk_fbp",
        lambda *t: fbp_kernels.trunk_fbp(*t, s.K_M, backend="native"),
        lambda *t: reference.trunk_fbp(*t, s.K_M),
        [a_trunks, v_trunks, p_trunks, q_trunks],
        {
            "products": lambda: (
                torch.bmm(a_first, p_trunks, out=u_trunks),
                torch.bmm(v_first, q_trunks, out=w_trunks),
            )
        },
    )
    yield from operator_cases(
        f"{name} am_fbp",
        lambda *t: fbp_kernels.am_fbp(*t, s.K_G, s.K_M, backend="native"),
        lambda *t: reference.am_fbp(*t, s.K_G, s.K_M),
        [a, v, a_trunks, v_trunks, p, q, p_trunks, q_trunks],
        {},
    )


def lrn_cases() -> Iterator[Case]:
    """local_response_norm in both memory formats, with a copy of the tensor as its floor."""
    for shape in LRN_SHAPES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            x = x.to(memory_format=memory_format)
            copy = torch.empty_like(x)
            layout = str(memory_format).removeprefix("torch.").removesuffix("_format")
            yield from operator_cases(
                f"local_response_norm {shape} {layout}",
                lambda t: fbp_kernels.local_response_norm(t, backend="native"),
                reference.local_response_norm,
                [x],
                {"copy": lambda x=x, copy=copy: copy.copy_(x)},  # type: ignore[misc]
            )


def processor() -> str:
    """The processor's name as Linux has it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """What the timings depend on."""
    return {
        "processor": processor(),
        "instruction_set": torch.ops.fbp_native.cpu_isa(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measures, prints a table and writes the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.fbp_cpu", description=__doc__)
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=["clip", "batch"], help="rows of SHAPES"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each case")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument(
        "--out", type=Path, help="JSON file, default bench/results/cpu-PROCESSOR-DATE.json"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of one thread, which a busy machine disturbs less than time on the clock",
    )
    options = parser.parse_args()
    if native.MISSING:
        parser.exit(1, f"{native.MISSING}\n")
    torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter

    results = {}
    print(f"{'case':<58}{'contender':>10}{'median us':>12}{'of native':>11}  quartiles")
    for case in (
        *(c for name in options.shapes for c in bilinear_cases(name, SHAPES[name])),
        *lrn_cases(),
    ):
        timings = measure(case, options.seconds, clock)
        results[case.name] = {name: asdict(timing) for name, timing in timings.items()}
        for name, t in timings.items():
            low, high = t.ratio_quartiles
            print(
                f"{case.name:<58}{name:>10}{t.median:>12.0f}{t.ratio:>11.2f}  {low:.2f} to {high:.2f}",
                flush=True,
            )
    slug = "-".join(processor().lower().replace("(r)", "").split())
    out = options.out or RESULTS / f"cpu-{slug}-{date.today().isoformat()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    clock_name = "processor time" if options.cpu_time else "time on the clock"
    report = {"machine": machine(), "clock": clock_name, "microseconds": results}
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
