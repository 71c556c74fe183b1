"""What a profile leaves: JSON, tables, a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.records import Ceilings, Spread
from profiling.account import Account, Branch, Row, account, median_step, tree
from profiling.convolutions import Convolution, convolutions
from profiling.memory import Held, Timeline, draw, strips, timeline
from profiling.trace import BACKWARD, FORWARD, PHASES, STEP, Trace

PROFILE, TABLES, PICTURE, TRACE = "profile.json", "profile.md", "memory.png", "trace.json.gz"
_LARGE = 12  # rows of a table of operations


@dataclass(frozen=True)
class RangeCost:
    """What the ranges themselves cost while no profiler listens.

    Attributes:
        seconds: processor time that one adds to a module's call.
        ranges: in a step.
    """

    seconds: float
    ranges: int

    def share(self, step_seconds: float) -> float:
        """Of a step."""
        return self.seconds * self.ranges / step_seconds


@dataclass(frozen=True)
class Profile:
    """One profile.

    Attributes:
        title: what was profiled.
        command: that repeats it.
        machine: `bench.machine.describe`.
        settings: what else it depends on, by name.
        seconds: of a step that nothing watches.
        cost: of the ranges.
        account: of the median step of those traced.
        memory: of the same step, without its curve.
        convolutions: of the same step.
        ceilings: of the machine, measured in the same run.
        floor: what bounds the operator, in a profile of one.
    """

    title: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    seconds: Spread
    cost: RangeCost
    account: Account
    memory: dict[str, Any]
    convolutions: list[Convolution]
    ceilings: Ceilings
    floor: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Writes the profile as JSON; times are rounded to 100 nanoseconds."""
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Reads what `save` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
            parts = {
                "seconds": Spread(**values["seconds"]),
                "cost": RangeCost(**values["cost"]),
                "account": _account(values["account"]),
                "convolutions": [Convolution(**c) for c in values["convolutions"]],
                "ceilings": Ceilings(**values["ceilings"]),
            }
            return cls(**(values | parts))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a profile of `python -m profiling`: {error}") from None


def _account(values: dict[str, Any]) -> Account:
    tables = ("ranges", "kinds", "operations", "kernels")
    return Account(**(values | {name: [Row(**row) for row in values[name]] for name in tables}))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class About:
    """What a profile says of itself; see `Profile`."""

    title: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    seconds: Spread
    range_seconds: float
    held_bytes: int
    ceilings: Ceilings
    floor: dict[str, Any] | None = None


def write(
    trace: Trace, about: About, out: Path, kinds: Mapping[str, str], *, shapes: bool = False
) -> Profile:
    """Adds up a trace, writes JSON, tables and the picture of the memory into a folder."""
    step = median_step(trace)
    on_host = not trace.kernels
    line = timeline(trace, step, before=about.held_bytes, on_host=on_host)
    profile = Profile(
        about.title,
        about.command,
        about.machine,
        about.settings,
        about.seconds,
        RangeCost(about.range_seconds, sum(s.is_range for s in trace.in_step(step))),
        account(trace, step, kinds, shapes=shapes),
        _summary(line),
        convolutions(trace, step),
        about.ceilings,
        about.floor,
    )
    profile.save(out / PROFILE)
    profile = Profile.load(out / PROFILE)  # so that tables are those of the file
    (out / TABLES).write_text(text(profile) + "\n", "utf-8")
    draw(line, strips(trace, step), about.title, out / PICTURE)
    return profile


def _summary(line: Timeline) -> dict[str, Any]:
    values = asdict(line)
    for curve in ("times", "bytes", "bands"):
        del values[curve]
    return values


def text(profile: Profile) -> str:
    """All tables, in Markdown that reads well as it is."""
    parts = [
        f"# {profile.title}",
        f"`{profile.command}`",
        conditions(profile),
        *([floor_sentence(profile)] if profile.floor else []),
        "## By range",
        ranges_table(profile),
        *_kinds(profile),
        "## By operation (own time)",
        rows_table("operation", profile.account.operations, profile.account),
    ]
    if profile.convolutions:
        parts += ["## Convolutions", convolutions_table(profile)]
    if profile.account.kernels:
        parts += ["## By kernel", rows_table("kernel", profile.account.kernels, profile.account)]
    parts += ["## Memory", memory_sentence(profile), memory_table(profile)]
    return "\n\n".join(parts)


def _kinds(profile: Profile) -> list[str]:
    has_modules = any(row.name not in (STEP, *PHASES) for row in profile.account.ranges)
    rows = rows_table("kind", profile.account.kinds, profile.account)
    return ["## By kind", rows] if has_modules else []


def conditions(profile: Profile) -> str:
    """Where and how it was measured, and what measuring cost."""
    machine, seconds = profile.machine, profile.seconds
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    settings = ", ".join(f"{name} {value}" for name, value in profile.settings.items())
    share = profile.cost.share(seconds.median)
    account, cost = profile.account, profile.cost
    return (
        f"{where}, torch {machine['torch']}, {machine['date']}; {settings}. A step that nothing watches takes "
        f"{ms(seconds.median)} (quartiles {ms(seconds.lower)} to {ms(seconds.upper)}); the step below took "
        f"{ms(1e-3 * account.total_ms)} under the profiler, on the {account.clock}'s clock. Its {cost.ranges} ranges "
        f"cost {1e6 * cost.seconds:.2g} microseconds each, {100 * share:.2g}% of an unwatched step."
    )


def ranges_table(profile: Profile, depth: int = 9) -> str:
    """Ranges with what is nested in them, in the order in which they ran, down to a depth."""
    branches = [b for b in tree(profile.account.ranges) if b.depth <= depth]
    total = Row("total")
    for row in profile.account.ranges:
        total.forward_ms += row.forward_ms
        total.backward_ms += row.backward_ms
        total.other_ms += row.other_ms
    whole = profile.account.total_ms
    rows = [(_label(b), *_cells(b.row, whole)) for b in branches if _visible(b, whole)]
    return table(_HEADINGS, [*rows, ("**total**", *_cells(total, whole))])


def rows_table(heading: str, rows: Sequence[Row], account: Account, most: int = _LARGE) -> str:
    """The rows with the most time, and the others in one."""
    whole = account.total_ms
    others = Row(f"({len(rows) - most} others)")
    for row in rows[most:]:
        others.calls += row.calls
        others.forward_ms += row.forward_ms
        others.backward_ms += row.backward_ms
        others.other_ms += row.other_ms
    shown = [*rows[:most], *([others] if len(rows) > most else [])]
    return table((heading, *_HEADINGS[1:]), [(code(r.name), *_cells(r, whole)) for r in shown])


_HEADINGS = ("range", "calls", "forward, ms", "backward, ms", "other, ms", "share")


def _cells(row: Row, whole: float) -> tuple[str, ...]:
    times = (row.forward_ms, row.backward_ms, row.other_ms)
    share = row.total_ms / whole if whole else 0.0
    return (str(row.calls or ""), *(f"{t:.2f}" if t else "" for t in times), f"{share:.1%}")


def _label(branch: Branch) -> str:
    name = branch.row.name
    return "&nbsp;&nbsp;" * branch.depth + (f"(rest of {name})" if branch.is_rest else code(name))


def _visible(branch: Branch, whole: float) -> bool:
    return not branch.is_rest or branch.row.total_ms > 5e-4 * whole


def code(name: str) -> str:
    """A name in a table; what a range with others in it does itself is the rest of it."""
    if name in (STEP, FORWARD, BACKWARD):
        return f"(rest of {name})"
    return name if name.startswith("(") else f"`{name}`"


def convolutions_table(profile: Profile) -> str:
    """Each convolution's arithmetic, its rate, and that rate's share of the machine's ceiling."""
    ((dtype, ceiling),) = profile.ceilings.flops.items()
    total = Convolution("**total**")
    for c in profile.convolutions:
        total.forward_flops += c.forward_flops
        total.backward_flops += c.backward_flops
        total.forward_ms += c.forward_ms
        total.backward_ms += c.backward_ms
    headings = (
        "convolution", "GFLOP", "forward, GFLOP/s", "backward, GFLOP/s",
        f"share of {ceiling / 1e9:,.0f} GFLOP/s ({profile.ceilings.product[dtype]})",
    )  # fmt: skip
    rows = [
        (
            c.name if c is total else code(c.name),
            f"{c.flops / 1e9:,.1f}",
            f"{c.forward_flops / c.forward_ms / 1e6:,.0f}",
            f"{c.backward_flops / c.backward_ms / 1e6:,.0f}",
            f"{c.flops / c.seconds / ceiling:.0%}",
        )
        for c in (*profile.convolutions, total)
    ]
    return table(headings, rows)


def memory_sentence(profile: Profile) -> str:
    """Where the memory peaks."""
    memory = profile.memory
    return (
        f"The step finds {memory['start_bytes'] / 1e6:,.1f} MB (weights and the like, inputs, the last gradients) and "
        f"peaks at {memory['peak_bytes'] / 1e6:,.1f} MB, {ms(1e-3 * memory['peak_ms'])} after its start."
    )


def memory_table(profile: Profile, most: int = 8) -> str:
    """Who holds memory when the backward begins, and at the peak."""
    start, peak = ([Held(**h) for h in profile.memory[k]] for k in ("at_backward", "at_peak"))
    names = list(dict.fromkeys((h.name, h.backward) for h in (*peak, *start)))
    by_start, by_peak = ({(h.name, h.backward): h.bytes for h in held} for held in (start, peak))
    names.sort(key=lambda n: -by_peak.get(n, 0))
    rows = [
        (code(n[0]) + (" (backward)" if n[1] else ""), _mb(by_start.get(n)), _mb(by_peak.get(n)))
        for n in names[:most]
    ]
    rest = [sum(held.get(n, 0) for n in names[most:]) for held in (by_start, by_peak)]
    if len(names) > most:
        rows.append((f"({len(names) - most} others)", _mb(rest[0]), _mb(rest[1])))
    return table(("allocated in", "at the backward's start, MB", "at the peak, MB"), rows)


def _mb(size: int | None) -> str:
    return f"{size / 1e6:,.2f}" if size else ""


def floor_sentence(profile: Profile) -> str:
    """Which floor binds an operator, and how far away it is."""
    floor = profile.floor
    assert floor is not None
    return (
        f"Floor: {floor['flops'] / 1e9:.4g} GFLOP at {floor['flops_ceiling'] / 1e9:.4g} GFLOP/s "
        f"({floor['product']}) take {ms(floor['arithmetic_seconds'])}, {floor['bytes'] / 1e6:.4g} MB at "
        f"{floor['bytes_ceiling'] / 1e9:.4g} GB/s (a copy) take {ms(floor['memory_seconds'])}. "
        f"**{floor['binds'].capitalize()} binds; the operator takes {floor['times_floor']:.3g} times its floor** "
        f"({ms(profile.seconds.median)}: {floor['achieved_flops'] / 1e9:.4g} GFLOP/s, "
        f"{floor['achieved_bytes'] / 1e9:.4g} GB/s)."
    )


def ms(seconds: float) -> str:
    """Milliseconds with three digits that count."""
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns in line; all but the first to the right."""
    widths = [max(len(r[i]) for r in (headings, *rows)) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = (c.rjust(w) for c, w in zip(others, widths[1:], strict=True))
        return "| " + " | ".join([first.ljust(widths[0]), *padded]) + " |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([line(headings), f"|{rule}|", *map(line, rows)])
