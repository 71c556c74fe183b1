"""The page of all figures, docs/benchmarks.md."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..compare import Verdict, compare
from ..names import COPY, ordered, ours
from ..records import Case, Measurement, Run
from ..shapes import STEPS
from . import charts
from . import goals as side_by_side
from .figures import (
    NOTHING,
    curves,
    gbytes,
    gflops,
    losses,
    mebibytes,
    microseconds,
    milliseconds,
    number,
    of_floor,
    operators,
    percent,
    ratio_text,
    rivalries,
    sizes,
    smallest,
    steps,
    table,
    unique,
)
from .pictures import Picture
from .results import Device, GoalResult, Result, link_to, of_commit

PAGE = Path("docs", "benchmarks.md")
PICTURES = Path("docs", "benchmarks")

_HEAD = """\
<!-- Written by `python -m bench report`; what is changed here is lost. -->

# Benchmarks

Measured by `python -m bench run`, written by `python -m bench report` from the newest result of each device in
[bench/results](../bench/results).

## How to read the figures

- All contenders of a case run in turn (A B C, A B C, ...) in one process, so that a machine that drifts or is shared
  drifts for all of them. A *ratio* is the peer's time over ours in the same turn: 1.5 means that ours is 1.5 times
  faster, below 1 it is slower. Times differ from day to day more than ratios do.
- *Spread*: brackets after a ratio, whiskers and bands hold the 10th to the 90th percentile of all turns, brackets
  after a time the quartiles; before them stands the median. Where the spread of a ratio includes 1, the two are as
  good as equal.
- Every contender's results and gradients were checked against the reference before it was timed. One that fails has
  no time: it is listed as left out.
- Peers: *eager* is the operator in plain PyTorch, *channels-last* a model that is in that memory format as a whole,
  *compile* and *max-autotune* are `torch.compile` of the eager one, *products* the bare matrix products of the operator
  into memory that is there already (no fusion can be expected to beat them; they do less than the operator), *plain* a
  better expression in plain PyTorch than its own function, *mfb* the MFB of `block.bootstrap.pytorch`, *copy* a copy of
  the input. *graph*: replayed as a CUDA graph.
- *GFLOP/s* and *GB/s* count what the operator cannot do without: its products (three times the forward's with the
  backward), and each input, weight and result once. What a contender does beyond that does not count.
- The *floor* is the time in which the machine could do that arithmetic or that traffic, whichever takes longer. Its
  two ceilings are measured in the same run, with a large matrix product and a large copy beyond the caches, and not
  taken from a datasheet. So a small case that stays in a cache can be above 100% of its floor.
- *Peak* is the most that PyTorch held at once beyond what there was before the call, *kept* what stays from the
  forward to the backward beyond inputs and weights.
"""


def pictures(device: Device) -> dict[str, list[Picture]]:
    """The pictures of a device by the section that shows them."""
    run = device.run
    return {
        "speed": charts.speedup(run),
        "step": charts.training_step(run),
        "roofline": charts.roofline(run),
        "memory": charts.memory(run),
        "curves": charts.cost_curves(run),
        "host": charts.host(run),
    }


def picture_path(device: Device, picture: Picture) -> Path:
    """Where a picture of a device lies, from the repository's root."""
    return PICTURES / device.name / f"{picture.name}.svg"


def page(devices: Sequence[Device], goals: Sequence[GoalResult]) -> str:
    """The whole page."""
    lines = [_HEAD]
    if len(devices) > 1:
        lines += [f"- [{d.title}](#{_anchor(d.title)})" for d in devices] + [""]
    lines += _goals(goals)
    for device in devices:
        lines += _device(device)
    return "\n".join(lines).rstrip() + "\n"


def _device(device: Device) -> list[str]:
    run, shown = device.run, pictures(device)
    sections = [
        ("Machine", _machine(run)),
        ("Training step", _steps(device, shown["step"])),
        ("Speed", _images(device, shown["speed"])),
        ("Where ours loses", _losses(run)),
        ("Roofline", _roofline(device, shown["roofline"])),
        ("Memory", _memory(device, shown["memory"])),
        ("Cost against size", _images(device, shown["curves"])),
        ("Cost of a call", _host(device, shown["host"])),
        ("Operators", _operators(run)),
        ("Curves", _curves(run)),
        ("Left out", _left_out(run)),
        ("Repeated", _repeats(device)),
        ("Measured besides", _besides(device)),
    ]
    lines = [
        f"## {device.title}",
        "",
        f"From {link_to(device.result)}: {of_commit(run.machine)}.",
        f"<!-- sha256:{device.digest} -->",
        "",
    ]
    for title, body in sections:
        if body:
            lines += [f"### {title}", "", *body, ""]
    return lines


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _goals(results: Sequence[GoalResult]) -> list[str]:
    if not results:
        return []
    return [
        "## Goals",
        "",
        "What the CPU kernels are held to, by `python -m bench goals`: how many times faster than the peer they are to "
        "be. That depends on the instruction set. Calls of less than a millisecond are timed in groups "
        "of up to ten. *one thread*: ours, on one; *eager's memory*: what a call adds to the resident memory of a "
        "process, eager's over ours. *Held to*: the kernels, PyTorch and its libraries were told to use no more than "
        "that instruction set (`--hold`).",
        "",
        *side_by_side.machines(results, [link_to(r.result) for r in results]),
        "",
        *side_by_side.every_goal(results),
        "",
    ]


def _images(device: Device, shown: Iterable[Picture]) -> list[str]:
    lines = []
    for picture in shown:
        path = picture_path(device, picture).relative_to(PAGE.parent).as_posix()
        lines += [f"![{picture.title}]({path})", "", f"*{picture.title}.*", ""]
    return lines[:-1]


def _machine(run: Run) -> list[str]:
    known = [(key, str(value)) for key, value in run.machine.items() if value not in (None, "")]
    lines = table(["", ""], [(key.replace("_", " "), value) for key, value in known])
    products = [
        (f"{dtype} ({run.ceilings.product.get(dtype, 'product')})", f"{number(rate / 1e9)} GFLOP/s")
        for dtype, rate in run.ceilings.flops.items()
    ]
    ceilings = [
        *products,
        ("large copy, read and written", f"{number(run.ceilings.bytes / 1e9)} GB/s"),
    ]
    return [*lines, "", "Ceilings:", "", *table(["what", "measured"], ceilings)]


def _steps(device: Device, shown: list[Picture]) -> list[str]:
    cases = steps(device.run)
    if not cases:
        return []
    memory = [
        f"- `{case.label}`: memory of the process: {STEPS[case.label]}."
        for case in cases
        if case.label in STEPS
    ]
    return [*memory, "", *_images(device, shown), "", *_cases(cases)]


def _losses(run: Run) -> list[str]:
    lost, all_of_them = losses(run), rivalries(run)
    if not all_of_them:
        return []
    certain = sum(ratio.high < 1 for *_, ratio in lost)
    lines = [
        f"Of {len(all_of_them)} ratios to a peer, {len(lost)} are below 1; {certain} of them with their whole spread.",
    ]
    if not lost:
        return lines
    rows = [
        (
            *_identity(case),
            contender,
            peer,
            ratio_text(ratio),
            "yes" if ratio.high < 1 else "within the spread",
        )
        for case, contender, peer, ratio in lost
    ]
    head = ["operator", "size", "dtype", "mode", "contender", "peer", "ratio", "slower"]
    return [*lines, "", *table(head, rows)]


def _identity(case: Case) -> tuple[str, str, str, str]:
    return case.operator, case.label, case.dtype, charts.MODES.get(case.mode, case.mode)


def _roofline(device: Device, shown: list[Picture]) -> list[str]:
    if not shown:
        return []
    return [
        "Each kernel at the operator's own arithmetic over its own traffic; a dash marks eager PyTorch at the same "
        "case. The roof is the lower of the two measured ceilings.",
        "",
        *_images(device, shown),
    ]


def _memory(device: Device, shown: list[Picture]) -> list[str]:
    if not shown:
        return []
    return [
        "As parts of what eager PyTorch takes in the same case; the tables below have it in MiB.",
        "",
        *_images(device, shown),
    ]


def _host(device: Device, shown: list[Picture]) -> list[str]:
    cases = smallest(device.run)
    if not cases:
        return []
    names = ordered(name for case in cases for name in case.contenders)
    rows = [
        (
            case.operator,
            case.dtype,
            charts.MODES.get(case.mode, case.mode),
            *(
                microseconds(case.contenders[n].seconds) if n in case.contenders else NOTHING
                for n in names
            ),
        )
        for case in cases
    ]
    return [
        "All sizes 1, in microseconds: what Python, the dispatcher and launches cost, and no arithmetic.",
        "",
        *_images(device, shown),
        "",
        *table(["operator", "dtype", "mode", *names], rows),
    ]


def _operators(run: Run) -> list[str]:
    lines: list[str] = []
    cases = operators(run)
    for operator in unique(case.operator for case in cases):
        mine = [case for case in cases if case.operator == operator]
        for label in unique(case.label for case in mine):
            here = [case for case in mine if case.label == label]
            lines += [f"#### {operator} {label}", "", *_cases(here), ""]
    return lines[:-1]


def _cases(cases: Sequence[Case]) -> list[str]:
    """Every contender of cases of one operator and label, below what they have in common."""
    if not cases:
        return []
    several = len(unique(case.label for case in cases)) > 1
    rows = [
        ((case.label if several else "", *_identity(case)[2:]), case, name)
        for case in cases
        for name in ordered(case.contenders)
    ]
    given = "; ".join(unique(sizes(case) for case in cases))
    return [f"{given}.", "", *_measured(["case", "dtype", "mode"], rows)]


def _curves(run: Run) -> list[str]:
    lines: list[str] = []
    for (varied, dtype), cases in curves(run).items():
        for operator in unique(case.operator for case in cases):
            mine = [case for case in cases if case.operator == operator]
            fixed = {k: v for k, v in mine[0].sizes.items() if k != varied}
            held = ", ".join(f"{k} = {v}" for k, v in fixed.items())
            rows = [
                ((case.label, charts.MODES.get(case.mode, case.mode)), case, name)
                for mode in unique(case.mode for case in mine)
                for case in mine
                if case.mode == mode
                for name in ours(case)
            ]
            if rows:
                lines += [f"#### {operator} against {varied}, {dtype}", "", f"{held}.", ""]
                lines += [*_measured(["size", "mode"], rows), ""]
    return lines[:-1]


def _measured(head: list[str], rows: Sequence[tuple[tuple[str, ...], Case, str]]) -> list[str]:
    """A table of all figures, a row for each contender of a case."""
    peers = ordered(peer for _, case, name in rows for peer in case.contenders[name].ratios)
    columns = [
        *head,
        "contender",
        "ms",
        *(f"against {peer}" for peer in peers),
        "GFLOP/s",
        "GB/s",
        "of floor",
        "peak MiB",
        "kept MiB",
        "launches",
    ]
    return table(
        columns, [(*leading, name, *_figures(case, name, peers)) for leading, case, name in rows]
    )


def _figures(case: Case, name: str, peers: Sequence[str]) -> Iterable[str]:
    measured: Measurement = case.contenders[name]
    yield milliseconds(measured.seconds)
    for peer in peers:
        yield ratio_text(measured.ratios.get(peer))
    yield number(gflops(case, measured)) if case.flops and name != COPY else NOTHING
    yield number(gbytes(case, measured)) if case.bytes else NOTHING
    yield percent(of_floor(case, measured)) if case.floor_seconds else NOTHING
    yield mebibytes(measured.peak_bytes)
    yield mebibytes(measured.kept_bytes)
    yield NOTHING if measured.launches is None else str(measured.launches)


def _left_out(run: Run) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in run.cases:
        for name, why in case.left_out.items():
            reasons.setdefault((name, _first_line(why)), []).append(case.name)
    rows = [
        (name, why, ", ".join(cases) if len(cases) <= 2 else f"{len(cases)} cases: {_span(cases)}")
        for (name, why), cases in reasons.items()
    ]
    return table(["contender", "why", "where"], rows) if rows else []


def _span(cases: list[str]) -> str:
    """All cases of a long list, named by operator."""
    counts: dict[str, int] = {}
    for case in cases:
        operator = case.split(" ", 1)[0]
        counts[operator] = counts.get(operator, 0) + 1
    return ", ".join(f"{operator} ({count})" for operator, count in counts.items())


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def _repeats(device: Device) -> list[str]:
    """How well other results of the same day agree with the one that is shown."""
    return [line for result in device.others for line in _repeat(device, result)]


def _repeat(device: Device, result: Result) -> list[str]:
    comparison = compare(device.run, Run.load(result.path))
    if not comparison.rows:
        return []
    if comparison.warnings:
        return [f"- {link_to(result)}: {' '.join(comparison.warnings)}"]
    flagged = len(comparison.of(Verdict.REGRESSION))
    return [
        f"- {link_to(result)}: {comparison.agreement} `python -m bench compare` flags {flagged}."
    ]


def _besides(device: Device) -> list[str]:
    """Cases that only other results of the same day have."""
    lines: list[str] = []
    shown = {case.name for case in device.run.cases}
    for result in device.others:
        run = Run.load(result.path)
        cases = [case for case in run.cases if case.name not in shown]
        shown |= {case.name for case in cases}
        if cases:
            lines += [f"From {link_to(result)}: {of_commit(run.machine)}.", ""]
        for label in unique(f"{case.operator} {case.label}" for case in cases):
            here = [case for case in cases if f"{case.operator} {case.label}" == label]
            lines += [f"#### {label}, from {result.suffix}", "", *_cases(here), ""]
        lines += [*_left_out(replace(run, cases=cases)), ""] if cases else []
    return lines[:-1]
