"""The table of docs/export.md."""

import json
from pathlib import Path

from avemo.machine import title

from .figures import table
from .results import Result, link_to, of_commit
from .sections import Section

# Whose file is whose.
_FILES = {
    "PyTorch, reference": "safetensors",
    "PyTorch, accelerated": "safetensors",
    "torch.export": "pt2",
    "AOTInductor": "aot",
    "onnxruntime": "onnx",
}


def _lines(result: Result) -> list[str]:
    figures = json.loads(result.path.read_text("utf-8"))
    machine, sizes, seconds = figures["machine"], figures["bytes"], figures["seconds"]
    rows = []
    for name, kind in _FILES.items():
        spreads = [by_name.get(name) for by_name in seconds.values()]
        if any(spreads):
            rows.append((name, f"{sizes[kind] / 2**20:.1f} MiB", *map(_milliseconds, spreads)))
    worst = {kind: max(by.values()) for kind, by in figures["largest_difference"].items()}
    apart = ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
    return [
        f"{title(machine)}, torch {machine['torch']}; milliseconds, contenders in turn (median, 10th to 90th "
        "percentile):",
        "",
        *table(["", "file", *seconds], rows),
        "",
        f"Largest difference from PyTorch on drawn batches: {apart}. From {link_to(result)}: {of_commit(machine)}.",
    ]


def _milliseconds(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    median, low, high = (f"{1e3 * spread[k]:.1f}" for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


SECTION = Section(Path("docs/export.md"), "latencies", "export", _lines)
