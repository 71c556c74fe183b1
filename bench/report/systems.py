"""The table of docs/systems.md: what the kernels bring to each system."""

import json
from pathlib import Path

from avemo.machine import title

from .figures import table
from .results import Result, link_to, of_commit
from .sections import Section


def _lines(result: Result) -> list[str]:
    figures = json.loads(result.path.read_text("utf-8"))
    machine, rows = figures["machine"], []
    for name, found in figures["systems"].items():
        speed = found["speedup"]
        faster = f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
        if speed["median"] < figures["goal"]:
            faster += f", **missed {figures['goal']:.2f}**"
        seconds = [f"{found[side]['median']:.2f}" for side in ("reference_s", "accelerated_s")]
        shares = ", ".join(f"`{key}` {share:.0%}" for key, share in found["bound_by"].items())
        rows.append((f"`{name}`", faster, *seconds, shares))
    heads = [
        "system",
        "times faster",
        "reference, s",
        "accelerated, s",
        "where the accelerated step's time goes",
    ]
    return [
        *table(heads, rows),
        "",
        f"{title(machine)}, torch {machine['torch']}, {link_to(result)}: {of_commit(machine)}.",
    ]


SECTION = Section(Path("docs/systems.md"), "speed", "systems", _lines)
