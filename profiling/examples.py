"""Makes the examples in docs/profiling anew, and the figures of docs/profiling.md from them.

Run as `python -m profiling.examples` on a quiet machine; with --check nothing is changed, and the exit status is 1
where the page or the tables are not what the committed profiles say.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from profiling.account import Row
from profiling.report import (
    PROFILE,
    TABLES,
    TRACE,
    Profile,
    code,
    conditions,
    convolutions_table,
    floor_sentence,
    memory_sentence,
    ms,
    ranges_table,
    table,
    text,
)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "profiling"
PAGE = ROOT / "docs" / "profiling.md"
_BEGIN, _END = "<!-- figures", "<!-- end of figures -->"
_SMALL = 0.005  # share of a step below which a kind is among the others
_TRACE_LIMIT = 1_000_000  # bytes; larger ones are not committed


@dataclass(frozen=True)
class Example:
    """A command whose outputs are committed.

    Attributes:
        name: folder in docs/profiling.
        module: in `profiling`.
        arguments: of its command line.
        keeps_trace: whether the trace is committed, too.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    keeps_trace: bool = False

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def make(self) -> None:
        """Runs the command.

        Raises:
            subprocess.CalledProcessError: it failed; what it said is on the error output.
        """
        command = [sys.executable, "-m", self.module, *self.arguments, "--out", str(self.folder)]
        print(" ".join(command[1:]), file=sys.stderr)
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        trace = self.folder / TRACE
        if not self.keeps_trace or trace.stat().st_size > _TRACE_LIMIT:
            trace.unlink()

    def profile(self) -> Profile:
        """What the command left.

        Raises:
            OSError, ValueError: there is nothing, or something else.
        """
        return Profile.load(self.folder / PROFILE)


_THREADS = ("--threads", "2")
REFERENCE = Example("step-reference", "profiling.step", ("--backend", "reference", *_THREADS))
ACCELERATED = Example("step-accelerated", "profiling.step", _THREADS, keeps_trace=True)
OPERATORS = (
    Example("am_fbp-clip", "profiling.operator", ("am_fbp", "--shape", "clip", *_THREADS)),
    Example("fbp-vqa", "profiling.operator", ("fbp", "--shape", "vqa", *_THREADS)),
    Example(
        "local_response_norm-conv1",
        "profiling.operator",
        ("local_response_norm", "--shape", "conv1", *_THREADS),
    ),
)
EXAMPLES = (REFERENCE, ACCELERATED, *OPERATORS)


def section() -> str:
    """The page's figures, between its two markers."""
    reference, accelerated = REFERENCE.profile(), ACCELERATED.profile()
    parts = [
        f"{_BEGIN}: written by `python -m profiling.examples`, from the files in docs/profiling -->",
        "### With the reference",
        conditions(reference),
        f"Most of it: {largest(reference)}. {memory_sentence(reference)}",
        ranges_table(reference, depth=1),
        "![Memory of a step with the reference](profiling/step-reference/memory.png)",
        "### Accelerated",
        conditions(accelerated),
        f"Most of it: {largest(accelerated)}. {memory_sentence(accelerated)}",
        ranges_table(accelerated, depth=1),
        "![Memory of an accelerated step](profiling/step-accelerated/memory.png)",
        "### Side by side",
        side_by_side(reference, accelerated),
        "Convolutions of the accelerated step, and how near they come to the machine's ceiling:",
        convolutions_table(accelerated),
        "### Operators on their own",
        *(_operator(example) for example in OPERATORS),
        _END,
    ]
    return "\n\n".join(parts)


def largest(profile: Profile, most: int = 4) -> str:
    """The kinds of module with the most time."""
    rows = profile.account.kinds[:most]
    shares = (f"{code(row.name)} {row.total_ms / profile.account.total_ms:.0%}" for row in rows)
    return ", ".join(shares)


def side_by_side(reference: Profile, accelerated: Profile) -> str:
    """Time by kind of module, with and without acceleration; most time first."""
    before, after = ({r.name: r for r in p.account.kinds} for p in (reference, accelerated))
    wholes = (reference.account.total_ms, accelerated.account.total_ms)
    pairs = {n: (before.get(n, Row(n)), after.get(n, Row(n))) for n in (*before, *after)}
    shown = [
        n
        for n, rows in pairs.items()
        if any(r.total_ms > _SMALL * w for r, w in zip(rows, wholes, strict=True))
    ]
    shown.sort(key=lambda n: -pairs[n][0].total_ms)
    lines = [(code(n), *_pair(pairs[n][0].total_ms, pairs[n][1].total_ms, wholes)) for n in shown]
    left = [sum(rows[i].total_ms for n, rows in pairs.items() if n not in shown) for i in (0, 1)]
    lines.append(("(others)", *_pair(left[0], left[1], wholes)))
    lines.append(("**total**", *_pair(*wholes, wholes)))
    headings = ("kind", "reference, ms", "share", "accelerated, ms", "share", "times faster")
    return table(headings, lines)


def _pair(before: float, after: float, wholes: tuple[float, float]) -> tuple[str, ...]:
    ratio = f"{before / after:.2f}" if before and after else ""
    return (
        f"{before:.1f}" if before else "",
        f"{before / wholes[0]:.1%}",
        f"{after:.1f}" if after else "",
        f"{after / wholes[1]:.1%}",
        ratio,
    )


def _operator(example: Example) -> str:
    profile = example.profile()
    place = f"profiling/{example.name}/{TABLES}"
    return (
        f"**[{profile.title}]({place})**, {ms(profile.seconds.median)}. {floor_sentence(profile)}"
    )


def updated(page: str) -> str:
    """The page with its figures as the files have them.

    Raises:
        ValueError: the page lacks a marker.
    """
    try:
        begin, end = page.index(_BEGIN), page.index(_END) + len(_END)
    except ValueError:
        raise ValueError(f"{PAGE.name} has no {_BEGIN!r} or no {_END!r}") from None
    return page[:begin] + section() + page[end:]


def differences() -> list[str]:
    """Files that are not what the committed profiles say."""
    page = PAGE.read_text("utf-8")
    wrong = [PAGE] if updated(page) != page else []
    for example in EXAMPLES:
        tables = example.folder / TABLES
        if tables.read_text("utf-8") != text(example.profile()) + "\n":
            wrong.append(tables)
    return [str(path.relative_to(ROOT)) for path in wrong]


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m profiling.examples", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if it would")
    parser.add_argument("--write", action="store_true", help="run nothing, write tables and page")
    options = parser.parse_args(arguments)
    if options.check:
        wrong = differences()
        for path in wrong:
            print(
                f"{path} is not what the profiles say; run python -m profiling.examples --write",
                file=sys.stderr,
            )
        return int(bool(wrong))
    for example in EXAMPLES:
        if options.write:
            (example.folder / TABLES).write_text(text(example.profile()) + "\n", "utf-8")
        else:
            example.make()
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
