"""Reads a corpus's manifest: one row per clip, each checked on its own."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from avemo.data.cache import SPLITS
from avemo.data.reasons import reason

REQUIRED = ("path", "label", "split")
"""Columns that a manifest must have; `speaker` is known too, and all others are ignored."""


@dataclass(frozen=True)
class Row:
    """A clip of the manifest.

    Attributes:
        path: as written, relative to the root.
        label: its class.
        speaker: who speaks; empty if not known.
        split: `train`, `val` or `test`.
        fault: what is wrong with the row itself, or an empty string.
    """

    path: str
    label: str
    speaker: str
    split: str
    fault: str


@dataclass(frozen=True)
class Manifest:
    """All rows, in the file's order.

    Attributes:
        rows: faulty ones included.
        digest: SHA-256 of the file.
    """

    rows: tuple[Row, ...]
    digest: str

    def shared_speakers(self) -> list[str]:
        """Speakers that occur in more than one split: their voices and faces leak into
        evaluation."""
        splits: dict[str, set[str]] = {}
        for row in self.rows:
            if row.speaker and not row.fault:
                splits.setdefault(row.speaker, set()).add(row.split)
        return sorted(speaker for speaker, where in splits.items() if len(where) > 1)


def read_manifest(path: Path) -> Manifest:
    """Reads a CSV file with a header.

    Args:
        path: UTF-8, comma-separated, lines end with CR, LF or both, cells in quotes may have
            them; columns `path`, `label`, `split` and, if known, `speaker`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no CSV text, lacks columns, or has no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"manifest must be a CSV file, got {path}, which does not exist")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
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
    seen: dict[str, int] = {}
    rows = []
    for line, record in enumerate(records, start=1):
        name, label, split = ((record[key] or "").strip() for key in REQUIRED)
        speaker = (record.get("speaker") or "").strip()
        fault = _fault(name, label, split, seen)
        seen.setdefault(_spelling(name), line)
        rows.append(Row(name, label, speaker, split, fault))
    return Manifest(tuple(rows), hashlib.sha256(content).hexdigest())


def _fault(name: str, label: str, split: str, seen: dict[str, int]) -> str:
    if not name:
        return reason("no path")
    if _spelling(name) in seen:
        return _duplicate(seen[_spelling(name)])
    if not label:
        return reason("no label")
    if split not in SPLITS:
        return reason("unknown split", repr(split))
    pure = PurePosixPath(name)
    if pure.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in pure.parts:
        return reason("path outside of the root")
    return ""


def _spelling(name: str) -> str:
    """A path without what makes no difference: `./`, `//`."""
    return PurePosixPath(name).as_posix()


def _duplicate(row: int) -> str:
    return reason("duplicate", f"also in row {row}")


def refuse_same_files(manifest: Manifest, root: Path) -> Manifest:
    """Adds a fault to each row whose file an earlier row names in another way: by a link, in
    another case or another composition of letters where the file system takes them for the same.

    Args:
        manifest: the rows.
        root: the corpus's folder.
    """
    seen: dict[tuple[int, int], int] = {}
    rows = []
    for number, row in enumerate(manifest.rows, start=1):
        file = None if row.fault else _identity(root / row.path)
        first = number if file is None else seen.setdefault(file, number)
        rows.append(row if first == number else replace(row, fault=_duplicate(first)))
    return replace(manifest, rows=tuple(rows))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # opening it will say what is wrong
        return None
    return status.st_dev, status.st_ino


def locate(root: Path, name: str) -> Path | None:
    """The file that a row names, or None if links lead out of the root.

    Args:
        root: the corpus's folder; it may be a link itself.
        name: a relative path without `..`.
    """
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null character
        return root / name  # opening it will say what is wrong
    return path if path.is_relative_to(root.resolve()) else None
