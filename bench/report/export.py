"""The table of docs/export.md."""

import json
from pathlib import Path

from avemo.machine import title

from .figures import table
from .results import RESULTS, Result, of_commit

PAGE = Path("docs/export.md")
_BEGIN, _END = "<!-- latencies", "<!-- end of latencies -->"

# Whose file is whose.
_FILES = {
    "PyTorch, reference": "safetensors",
    "PyTorch, accelerated": "safetensors",
    "torch.export": "pt2",
    "AOTInductor": "aot",
    "onnxruntime": "onnx",
}


def updated(text: str, result: Result) -> str:
    """The page with its table as a file of `python -m bench.export` has it.

    Raises:
        ValueError: it has no place for it.
    """
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end:
        raise ValueError(f"{PAGE} has no section between {_BEGIN!r} and {_END!r}")
    return text[:begin] + "\n".join([*_section(result), ""]) + text[end:]


def _section(result: Result) -> list[str]:
    figures = json.loads(result.path.read_text("utf-8"))
    machine, sizes, seconds = figures["machine"], figures["bytes"], figures["seconds"]
    rows = []
    for name, kind in _FILES.items():
        spreads = [by_name.get(name) for by_name in seconds.values()]
        if any(spreads):
            rows.append((name, f"{sizes[kind] / 2**20:.1f} MiB", *map(_milliseconds, spreads)))
    worst = {kind: max(by.values()) for kind, by in figures["largest_difference"].items()}
    apart = ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
    link = f"[{result.path.name}](../{(RESULTS / result.path.name).as_posix()})"
    return [
        f"{_BEGIN}: written by `python -m bench report`, from the file that is named -->",
        "",
        f"{title(machine)}, torch {machine['torch']}; milliseconds, contenders in turn (median, 10th to 90th "
        "percentile):",
        "",
        *table(["", "file", *seconds], rows),
        "",
        f"Largest difference from PyTorch on drawn batches: {apart}. From {link}: {of_commit(machine)}.",
    ]


def _milliseconds(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    median, low, high = (f"{1e3 * spread[k]:.1f}" for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
