"""Says what became slower or larger between two runs, and whether they agree."""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from statistics import median

import numpy as np

from .names import is_ours, ours, peer_ratios, plain
from .records import Case, Measurement, Run, Spread

LEAST_CHANGE = 0.05
"""Medians of ratios that differ by less (of the older one) count as unchanged, however narrow their spreads are."""

DRIFT_PERCENTILE = 95
DRIFT_LEAST = 8
"""How far peers moved between the runs, as this percentile, from at least so many of their ratios."""

BYTES_ALLOWED = 4096
BYTES_ALLOWED_PART = 0.01
"""Memory may grow by the larger of the two, the second a part of the older figure. Launches may not grow."""

_MACHINE = ("device", "processor", "gpu", "threads", "torch", "triton")
_COUNTS = ("peak_bytes", "kept_bytes", "launches")


class Verdict(Enum):
    """What became of a figure."""

    REGRESSION = "REGRESSION"
    IMPROVEMENT = "improvement"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Row:
    """One figure of one of our contenders in both runs.

    Attributes:
        case: its name.
        contender: one of ours.
        quantity: "speed against PEER" (the peer's time over ours, above 1 ours is faster), "peak_bytes", "kept_bytes",
            "launches", or "measured" where the newer run has no figures and says why.
        old: the figure of the older run, as text.
        new: that of the newer one.
        change: new over old, less 1; NaN where that has no meaning.
        verdict: what became of it.
        agrees: the spreads (10th to 90th percentile) meet, or the counts are alike within what is allowed.
    """

    case: str
    contender: str
    quantity: str
    old: str
    new: str
    change: float
    verdict: Verdict
    agrees: bool

    @property
    def timed(self) -> bool:
        """Whether it is a timing, which has a spread."""
        return self.quantity.startswith("speed")


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        warnings: what makes the comparison doubtful.
        rows: every figure that is in both.
        apart: what could not be compared, and why: cases, contenders or figures of only one run.
        drift: how far peers moved between the runs, see `drift`.
    """

    warnings: list[str]
    rows: list[Row]
    apart: list[str]
    drift: float = 0.0

    def of(self, verdict: Verdict) -> list[Row]:
        """The rows with that verdict, the largest changes first."""
        rows = [row for row in self.rows if row.verdict is verdict]
        return sorted(rows, key=lambda row: -abs(row.change) if row.change == row.change else 0.0)

    @property
    def agreement(self) -> str:
        """How many figures agree, as a sentence, and how far medians are apart: wide spreads agree with anything."""
        timed = [row for row in self.rows if row.timed]
        counts = [row for row in self.rows if row.quantity in _COUNTS]
        apart = sorted(abs(row.change) for row in timed if math.isfinite(row.change))
        changes = (
            f" (half of the medians differ by at most {median(apart):.1%}, all by at most {apart[-1]:.1%})"
            if apart
            else ""
        )
        return (
            f"{sum(row.agrees for row in timed)} of {len(timed)} speed ratios agree within their spread, 10th to "
            f"90th percentile, or within the {self.drift:.1%} that peers moved against eager between the "
            f"runs{changes}; {sum(row.agrees for row in counts)} of {len(counts)} figures of memory and "
            f"launches agree."
        )


def compare(old: Run, new: Run) -> Comparison:
    """Compares our contenders of two runs.

    Machines drift, so times themselves are not compared but ratios to a peer of the same turns: eager PyTorch, or
    the fastest peer that both runs have. It is a regression where the newer ratio's spread (10th to 90th
    percentile) lies wholly below the older one's and the medians differ by more than `LEAST_CHANGE` and by more
    than the peers themselves moved between the runs (`drift`); where memory or launches grew beyond what is
    allowed; or where the newer run had to leave a contender out or has no finite figure for it.

    Raises:
        ValueError: a run has two cases of one name.
    """
    before, after = _by_name(old), _by_name(new)
    moved = drift(before, after)
    rows: list[Row] = []
    apart = [f"only in the old run: {name}" for name in before if name not in after]
    apart += [f"only in the new run: {name}" for name in after if name not in before]
    for name, case in before.items():
        if name not in after:
            continue
        if case.sizes != after[name].sizes:
            apart.append(f"other sizes: {name}: {case.sizes}, now {after[name].sizes}")
            continue
        for found in _case_rows(case, after[name], moved):
            if isinstance(found, Row):
                rows.append(found)
            else:
                apart.append(found)
    return Comparison(_warnings(old, new), rows, apart, moved)


def drift(before: Mapping[str, Case], after: Mapping[str, Case]) -> float:
    """How far the machine alone moves a ratio between two runs.

    The spread of one case is that of some seconds; caches, clocks and neighbours change over minutes, too. Peers' code
    is the same in both runs, so whatever moved their times over eager's was not code. Given is the 95th percentile
    of these changes (0.1 is 10 % up or down), 0 where peers are too few to tell.
    """
    changes = [
        abs(math.log(_over_eager(case, name) / _over_eager(after[case_name], name)))
        for case_name, case in before.items()
        if case_name in after
        for name in case.contenders
        if not is_ours(name) and plain(name) != "eager" and _has(case, after[case_name], name)
    ]
    if len(changes) < DRIFT_LEAST:
        return 0.0
    return math.expm1(float(np.percentile(changes, DRIFT_PERCENTILE)))


def _has(old: Case, new: Case, name: str) -> bool:
    return all(n in case.contenders for case in (old, new) for n in (name, "eager"))


def _over_eager(case: Case, name: str) -> float:
    return case.contenders[name].seconds.median / case.contenders["eager"].seconds.median


def _by_name(run: Run) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for case in run.cases:
        if case.name in cases:
            raise ValueError(f"the run of {run.machine.get('date')} has two cases {case.name!r}")
        cases[case.name] = case
    return cases


def _warnings(old: Run, new: Run) -> list[str]:
    differences = [
        f"{key} {old.machine.get(key)!r} and {new.machine.get(key)!r}"
        for key in _MACHINE
        if old.machine.get(key) != new.machine.get(key)
    ]
    if not differences:
        return []
    return [f"These runs are not of one machine and set-up: {'; '.join(differences)}."]


def _case_rows(old: Case, new: Case, moved: float) -> Iterator[Row | str]:
    """Rows of what is in both, and sentences about what is not."""
    for name in ours(old):
        if name in new.contenders:
            yield _speed_row(old, new, name, moved)
            yield from _count_rows(old.name, name, old.contenders[name], new.contenders[name])
        elif name in new.left_out:
            yield Row(
                old.name,
                name,
                "measured",
                "yes",
                f"left out: {new.left_out[name]}",
                math.nan,
                Verdict.REGRESSION,
                False,
            )
        else:
            yield f"only in the old run: {name} in {old.name}"
    yield from (
        f"only in the new run: {name} in {new.name}"
        for name in ours(new)
        if name not in old.contenders
    )


def _speed_row(old: Case, new: Case, contender: str, moved: float) -> Row | str:
    before, after = peer_ratios(old, contender), peer_ratios(new, contender)
    shared = [peer for peer in before if peer in after]
    if not shared:
        return f"no peer in both runs: {contender} in {old.name}"
    eager = [peer for peer in shared if plain(peer) == "eager"]
    peer = eager[0] if eager else min(shared, key=lambda p: before[p].median)
    a, b = before[peer], after[peer]
    if not _usable(a):
        return f"no usable ratio to {peer} in the old run: {contender} in {old.name}"
    verdict, agrees = _judge(a, b, moved)
    change = b.median / a.median - 1
    return Row(
        old.name,
        contender,
        f"speed against {peer}",
        _text(a),
        _text(b),
        change if math.isfinite(change) else math.nan,
        verdict,
        agrees,
    )


def _judge(old: Spread, new: Spread, moved: float) -> tuple[Verdict, bool]:
    """The verdict, and whether the two agree within their spread or the machine's drift.

    A ratio that is no positive number is a regression.
    """
    if not _usable(new):
        return Verdict.REGRESSION, False
    meet = new.high >= old.low and new.low <= old.high
    agrees = meet or abs(math.log(new.median / old.median)) <= math.log1p(moved)
    if agrees or abs(new.median / old.median - 1) <= LEAST_CHANGE:
        return Verdict.UNCHANGED, agrees
    return (Verdict.REGRESSION if new.median < old.median else Verdict.IMPROVEMENT), agrees


def _usable(ratio: Spread) -> bool:
    return all(math.isfinite(x) and x > 0 for x in (ratio.low, ratio.median, ratio.high))


def _count_rows(
    case: str, contender: str, old: Measurement, new: Measurement
) -> Iterator[Row | str]:
    for quantity in _COUNTS:
        before, after = getattr(old, quantity), getattr(new, quantity)
        if before is None and after is None:
            continue
        if before is None or after is None:
            which = "new" if before is None else "old"
            yield f"only in the {which} run: {quantity} of {contender} in {case}"
            continue
        allowed = (
            0 if quantity == "launches" else max(BYTES_ALLOWED, BYTES_ALLOWED_PART * abs(before))
        )
        verdict = Verdict.UNCHANGED
        if not abs(after - before) <= allowed:
            verdict = Verdict.IMPROVEMENT if after < before else Verdict.REGRESSION
        change = after / before - 1 if before else math.nan
        yield Row(
            case,
            contender,
            quantity,
            f"{before:,}",
            f"{after:,}",
            change,
            verdict,
            verdict is Verdict.UNCHANGED,
        )


def _text(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def table(comparison: Comparison) -> str:
    """The comparison as text: warnings, every timing, every changed count, what was apart, the sums."""
    lines = [f"WARNING: {warning}" for warning in comparison.warnings]
    rows = [
        (row.verdict.value, row.case, row.contender, row.quantity, row.old, row.new, _percent(row))
        for verdict in Verdict
        for row in comparison.of(verdict)
        if row.timed or verdict is not Verdict.UNCHANGED
    ]
    if rows:
        head = ("verdict", "case", "contender", "quantity", "old", "new", "change")
        widths = [max(len(cells[i]) for cells in (head, *rows)) for i in range(len(head))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in (head, *rows)
        ]
    if comparison.apart:
        lines += ["", f"Not compared ({len(comparison.apart)}):"]
        lines += [f"  {sentence}" for sentence in comparison.apart]
    sums = (f"{len(comparison.of(v))} {name}" for v, name in zip(Verdict, _SUMS, strict=True))
    return "\n".join([*lines, "", ", ".join(sums) + ".", comparison.agreement])


_SUMS = ("regressions", "improvements", "unchanged")


def _percent(row: Row) -> str:
    return f"{row.change:+.1%}" if math.isfinite(row.change) else ""


def run_compare(old_path: Path, new_path: Path) -> int:
    """Prints the comparison of two result files.

    Returns:
        1 where something regressed or nothing could be compared, 2 where a file is no result, else 0.
    """
    try:
        comparison = compare(Run.load(old_path), Run.load(new_path))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(comparison))
    if not comparison.rows:
        print("The runs have nothing in common.", file=sys.stderr)
        return 1
    return 1 if comparison.of(Verdict.REGRESSION) else 0
