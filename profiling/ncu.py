"""Runs Nsight Compute on an operator and tells the few counters that matter: `python -m profiling.ncu --help`.

Counters and their names are those of NVIDIA's "Nsight Compute CLI" and "Kernel Profiling Guide"
(https://docs.nvidia.com/nsight-compute). Stall reasons are warps that wait for that reason in each cycle in which a
scheduler issues an instruction.
"""

import argparse
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiling import commands
from profiling import operator as profiled
from profiling.ranges import DOMAIN

SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "LaunchStats")
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
METRICS = (
    TENSOR,
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "gpu__time_duration.sum",
)
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
_NO_STALL = {"selected"}  # such a warp issued
_REASONS = 3  # that the table tells
_SECONDS = {"nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0}
_SECONDS |= {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


@dataclass(frozen=True)
class Counters:
    """What the hardware counted while one kernel ran; None where it was not measured.

    Attributes:
        kernel: its name.
        grid: blocks, as ncu writes them.
        block: threads of one.
        seconds: how long it ran.
        dram_percent: of the memory's peak throughput.
        dram_bytes: read and written.
        tensor_percent: of the tensor cores' peak, in cycles in which the multiprocessor was active.
        sm_percent: of the peak of the busiest unit of the multiprocessors.
        occupancy_percent: warps that were active, of those that fit.
        registers: of a thread.
        stalls: warps waiting for each reason, per issue; the most first.
    """

    kernel: str
    grid: str
    block: str
    seconds: float | None
    dram_percent: float | None
    dram_bytes: float | None
    tensor_percent: float | None
    sm_percent: float | None
    occupancy_percent: float | None
    registers: float | None
    stalls: dict[str, float]


def parse(text: str) -> list[Counters]:
    """Reads what `ncu --csv --page raw` prints: a row of names, a row of units, a row for each kernel.

    Args:
        text: with or without ncu's own messages and what the program printed.

    Raises:
        ValueError: there is no such table; the message has ncu's reason where it gave one.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        raise ValueError(_why_empty(lines))
    rows = list(csv.reader(line for line in lines[start:] if line.startswith('"')))
    names, *rest = rows
    if not rest or rest[0][0]:
        raise ValueError("ncu's table has no row of units; was it printed with --page raw?")
    units, *kernels = rest
    for row in kernels:
        if len(row) != len(names):
            raise ValueError(f"ncu's table has {len(names)} columns, but one row has {len(row)}")
    return [_counters(_Values(names, units, row)) for row in kernels]


def _why_empty(lines: Iterable[str]) -> str:
    errors = [line.strip() for line in lines if line.startswith("==ERROR==")]
    return " ".join(errors) or "ncu printed no table, so it saw no kernel"


class _Values:
    """One kernel's row."""

    def __init__(self, names: Sequence[str], units: Sequence[str], row: Sequence[str]) -> None:
        self.cells = dict(zip(names, row, strict=True))
        self.units = dict(zip(names, units, strict=True))

    def number(self, name: str, scales: dict[str, float] | None = None) -> float | None:
        """A counter in its base unit, None where it is missing or was not measured.

        Raises:
            ValueError: its unit is none of those that `scales` knows.
        """
        cell = self.cells.get(name, "").replace(",", "")
        try:
            value = float(cell)
        except ValueError:  # "", "n/a"
            return None
        if scales is None:
            return value
        unit = self.units[name]
        if unit not in scales:
            raise ValueError(f"{name} has the unit {unit!r}, expected one of {', '.join(scales)}")
        return value * scales[unit]


def _counters(values: _Values) -> Counters:
    read = values.number("dram__bytes_read.sum", _BYTES)
    written = values.number("dram__bytes_write.sum", _BYTES)
    stalls = {
        match[1]: number
        for name in values.cells
        if (match := _STALL.fullmatch(name)) and match[1] not in _NO_STALL
        if (number := values.number(name)) is not None
    }
    return Counters(
        kernel=values.cells["Kernel Name"],
        grid=values.cells.get("Grid Size", ""),
        block=values.cells.get("Block Size", ""),
        seconds=values.number("gpu__time_duration.sum", _SECONDS),
        dram_percent=values.number("dram__throughput.avg.pct_of_peak_sustained_elapsed"),
        dram_bytes=None if read is None or written is None else read + written,
        tensor_percent=values.number(TENSOR),
        sm_percent=values.number("sm__throughput.avg.pct_of_peak_sustained_elapsed"),
        occupancy_percent=values.number("sm__warps_active.avg.pct_of_peak_sustained_active"),
        registers=values.number("launch__registers_per_thread"),
        stalls=dict(sorted(stalls.items(), key=lambda s: -s[1])),
    )


def table(counters: Sequence[Counters]) -> str:
    """The counters in Markdown, a row for each kernel."""
    from profiling.report import table as markdown

    headings = (
        "kernel", "grid", "block", "us", "DRAM %", "DRAM MB", "tensor %", "SM %", "occupancy %",
        "registers", "waits for (warps per issue)",
    )  # fmt: skip
    return markdown(headings, [_row(c) for c in counters])


def _row(c: Counters) -> tuple[str, ...]:
    def cell(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    reasons = list(c.stalls.items())[:_REASONS]
    stalls = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in reasons)
    return (
        f"`{c.kernel}`", c.grid, c.block,
        cell(c.seconds, 1e6), cell(c.dram_percent), cell(c.dram_bytes, 1e-6, 2), cell(c.tensor_percent),
        cell(c.sm_percent), cell(c.occupancy_percent), cell(c.registers, digits=0), stalls or "-",
    )  # fmt: skip


def find(program: str | None = None) -> str:
    """The path of ncu.

    Raises:
        FileNotFoundError: it is not there.
    """
    found = shutil.which(program or "ncu")
    if found is None:
        where = f"at {program}" if program else "on the PATH"
        raise FileNotFoundError(
            f"there is no ncu {where}; it comes with Nsight Compute and the CUDA toolkit, --ncu tells where"
        )
    return found


def arguments(program: str, log: Path, operator: Sequence[str]) -> list[str]:
    """The command that counts, as a list.

    Args:
        program: ncu.
        log: where its table goes.
        operator: arguments of `python -m profiling.operator`.
    """
    sections = [part for name in SECTIONS for part in ("--section", name)]
    return [
        program,
        "--profile-from-start", "off",  # the operator says when
        "--csv", "--page", "raw", "--print-units", "base",
        *sections,
        "--metrics", ",".join(METRICS),
        "--log-file", str(log),
        sys.executable, "-m", "profiling.operator", *operator,
        "--device", "cuda", "--external", "--steps", "1",
    ]  # fmt: skip


def run(program: str, operator: Sequence[str]) -> list[Counters]:
    """Counts while an operator runs once.

    Args:
        program: ncu.
        operator: arguments of `python -m profiling.operator`.

    Raises:
        ValueError: ncu or the operator failed; the message has its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        done = subprocess.run(
            arguments(program, log, operator),
            capture_output=True,
            text=True,
            env=os.environ | {"LC_ALL": "C"},  # which decides how it writes numbers
            check=False,
        )
        text = log.read_text("utf-8") if log.is_file() else ""
    if done.returncode:
        told = [
            line
            for line in (*text.splitlines(), *done.stderr.splitlines())
            if "error" in line.lower()
        ]
        raise ValueError(f"ncu ended with status {done.returncode}: {' '.join(told)}")
    return parse(text)


def step_command(step: Sequence[str]) -> str:
    """A command line that has ncu count in the fusion of a training step, forward only."""
    options = [
        "--profile-from-start", "off", "--nvtx", "--nvtx-include", f"{DOMAIN}@fusion/",
        "--set", "full", "--export", "fusion",
    ]  # fmt: skip
    return f"ncu {shlex.join(options)} {commands.command('profiling.step', [*step, '--external'])}"


_PROGRAM = "profiling.ncu"


def main(given: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_PROGRAM}",
        usage=f"python -m {_PROGRAM} [--ncu PATH] [--csv FILE] OPERATOR [options of profiling.operator]",
        description="DRAM and tensor-core utilisation, occupancy and stall reasons of an operator's kernels.",
        epilog=f"options of profiling.operator:\n\n{profiled.parser().format_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--ncu", help="the program; default: the one on the PATH")
    parser.add_argument(
        "--csv", type=Path, help="read what ncu --csv --page raw wrote; run nothing"
    )
    options, operator = parser.parse_known_args(given)
    if options.csv is None and not operator:
        parser.error("name an operator, or a file with --csv")
    if operator:
        profiled.parser().parse_args(operator)  # what is wrong there is told before anything runs
    try:
        if options.csv is not None:
            counters = parse(options.csv.read_text("utf-8"))
        else:
            counters = run(find(options.ncu), operator)
    except (OSError, ValueError) as error:
        return commands.fail(_PROGRAM, error)
    print(table(counters))
    return 0


if __name__ == "__main__":
    sys.exit(main())
