"""Reads a CSV file that lists clips, a row for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from avemo.data.corpora.listing import Listing, Row
from avemo.data.media import BOTH, Cut
from avemo.data.reasons import reason

REQUIRED = ("path", "label", "split")
"""Columns that a manifest must have. `speaker`, `group`, `start`, `end`, `half` and `streams` are known
too, and all others are ignored."""


def read_manifest(path: Path) -> Listing:
    """Reads a CSV file with a header.

    Args:
        path: UTF-8, comma-separated, lines end with CR, LF or both, cells in quotes may have
            them; columns `path`, `label`, `split` and, where they say something, `speaker`, `group`,
            `start` and `end` (seconds), `half` (of the picture) and `streams`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV text, lacks columns, or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"manifest must be a CSV file, got {path}, which does not exist")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # Lines end as the csv module says, not as str.splitlines: that ends them at eight more
        # characters, which transcripts have.
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(
                f"manifest {path} must have the columns {', '.join(REQUIRED)}; "
                f"{', '.join(missing)} missing, found {', '.join(columns) or 'none'}"
            )
        records = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"manifest {path} must be a CSV file in UTF-8: {error}") from error
    if not records:
        raise ValueError(f"manifest {path} has no rows")
    return Listing(tuple(map(_row, records)))


def _row(record: Mapping[str, str | None]) -> Row:
    def cell(name: str) -> str:
        return (record.get(name) or "").strip()

    start, end, streams = cell("start"), cell("end"), tuple(cell("streams").split())
    try:
        cut = Cut(float(start or 0), float(end) if end else None, cell("half"))
        fault = ""
    except ValueError:
        cut = Cut()
        fault = reason("no such stretch", f"start {start!r} and end {end!r} must be seconds")
    if not set(streams) <= set(BOTH):
        fault = reason("unknown stream", cell("streams"))
    return Row(
        cell("path"),
        cell("label"),
        cell("split"),
        cell("speaker"),
        cell("group"),
        cut,
        turn=f"{start or 0}-{end}".rstrip("-") if start or end else "",
        streams=tuple(s for s in BOTH if s in streams),
        fault=fault,
    )
