"""Figures of a run: what is reckoned from the measured ones, and how they are written."""

import math
from collections.abc import Iterable, Sequence

from ..names import PEERS, ordered, ours, peer_ratios, plain
from ..records import Case, Measurement, Run, Spread
from ..shapes import SHAPES, SMALLEST

NOTHING = "-"
STEP = "training_step"
MAIN_SHAPES = ("clip", "batch")
_MEBI = 2**20


def gflops(case: Case, measured: Measurement) -> float:
    """Useful operations per second, in 10^9: the operator's own count over the median time."""
    return _quotient(case.flops, measured.seconds.median) / 1e9


def gbytes(case: Case, measured: Measurement) -> float:
    """Useful bytes per second, in 10^9: inputs, weights and results, each once, over the median time."""
    return _quotient(case.bytes, measured.seconds.median) / 1e9


def of_floor(case: Case, measured: Measurement) -> float:
    """The floor over the median time: 1 is as fast as the machine's ceilings allow."""
    return _quotient(case.floor_seconds, measured.seconds.median)


def _quotient(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else math.nan


def against(case: Case, contender: str, peer: str) -> Spread | None:
    """A contender's ratio to a peer, replayed as a graph if the contender is; None where it was not measured."""
    ratios = peer_ratios(case, contender)
    return next((ratio for name, ratio in ratios.items() if plain(name) == peer), None)


def usable(spread: Spread | None) -> bool:
    """Whether there is a spread that can be drawn on a logarithmic axis."""
    return spread is not None and all(
        math.isfinite(x) and x > 0 for x in (spread.low, spread.median, spread.high)
    )


def steps(run: Run) -> list[Case]:
    """The training steps of a run, of models that people train."""
    return [
        case
        for case in run.cases
        if case.operator == STEP and not case.curve and case.label not in SMALLEST
    ]


def operators(run: Run) -> list[Case]:
    """The operators of a run at named shapes."""
    return [
        case
        for case in run.cases
        if case.operator != STEP and not case.curve and case.label not in SMALLEST
    ]


def smallest(run: Run) -> list[Case]:
    """The operators of a run at size 1, where a call costs what surrounds the kernel."""
    return [case for case in run.cases if case.label == "one" and not case.curve]


def curves(run: Run) -> dict[tuple[str, str], list[Case]]:
    """The curves of a run by what they vary and dtype."""
    grouped: dict[tuple[str, str], list[Case]] = {}
    for case in run.cases:
        if case.curve:
            grouped.setdefault((case.curve, case.dtype), []).append(case)
    return grouped


def main_rows(run: Run) -> list[tuple[str, dict[str, Case]]]:
    """What represents a run: one of our contenders at each operator and size, and its cases by mode.

    That is in float32, or the run's first dtype, without the largest shapes and without graphs. Where several of
    ours ran, the fastest over all modes stands for them.
    """
    cases = operators(run)
    dtypes = unique(case.dtype for case in cases)
    dtype = "float32" if "float32" in dtypes else next(iter(dtypes), "")
    grouped: dict[tuple[str, str], dict[str, Case]] = {}
    for case in cases:
        shape = case.label.split()[0]
        if case.dtype == dtype and (shape in MAIN_SHAPES or shape not in SHAPES):
            grouped.setdefault((case.operator, case.label), {})[case.mode] = case
    chosen = ((_fastest(modes.values()), modes) for modes in grouped.values())
    return [(name, modes) for name, modes in chosen if name]


def _fastest(cases: Iterable[Case]) -> str:
    """Our contender without graph that is in most of the cases and needs the least time for them; "" for none."""
    cases = list(cases)
    names = ordered(name for case in cases for name in ours(case) if name == plain(name))

    def cost(name: str) -> tuple[int, float]:
        times = [c.contenders[name].seconds.median for c in cases if name in c.contenders]
        return -len(times), sum(times)

    return min(names, key=cost, default="")


def losses(run: Run) -> list[tuple[Case, str, str, Spread]]:
    """Where ours is slower than a peer: case, contender, peer and ratio, the worst first.

    A plain copy is no peer: it does none of an operator's work.
    """
    lost = [row for row in rivalries(run) if row[3].median < 1]
    return sorted(lost, key=lambda row: row[3].median)


def rivalries(run: Run) -> list[tuple[Case, str, str, Spread]]:
    """Every ratio of ours to a peer: case, contender, peer and ratio."""
    return [
        (case, contender, peer, ratio)
        for case in run.cases
        for contender in ours(case)
        for peer, ratio in peer_ratios(case, contender).items()
        if plain(peer) in PEERS
    ]


def unique(values: Iterable[str]) -> list[str]:
    """Each value once, in the order of their first coming."""
    return list(dict.fromkeys(values))


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits and without an exponent; NOTHING for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def milliseconds(seconds: Spread) -> str:
    """Median and quartiles in ms."""
    median, lower, upper = (number(1e3 * x) for x in (seconds.median, seconds.lower, seconds.upper))
    return f"{median} ({lower} to {upper})"


def microseconds(seconds: Spread) -> str:
    """Median and quartiles in microseconds."""
    median, lower, upper = (number(1e6 * x) for x in (seconds.median, seconds.lower, seconds.upper))
    return f"{median} ({lower} to {upper})"


def ratio_text(ratio: Spread | None) -> str:
    """Median, 10th and 90th percentile."""
    if ratio is None or not math.isfinite(ratio.median):
        return NOTHING
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def mebibytes(count: int | None) -> str:
    """Bytes as MiB."""
    return NOTHING if count is None else number(count / _MEBI)


def percent(part: float) -> str:
    """A part as percent, small ones with two digits."""
    if not math.isfinite(part):
        return NOTHING
    return f"{100 * part:.0f}%" if part >= 0.1 else f"{number(100 * part, 2)}%"


def sizes(case: Case) -> str:
    """What a case was called with."""
    return ", ".join(f"{letter} = {size}" for letter, size in case.sizes.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, without the columns that have nothing in them."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    filled = [i for i in range(len(head)) if any(row[i] not in ("", NOTHING) for row in rows)]
    return [
        "| " + " | ".join(head[i] for i in filled) + " |",
        "|" + "---|" * len(filled),
        *("| " + " | ".join(row[i] for i in filled) + " |" for row in rows),
    ]
