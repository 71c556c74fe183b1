"""What a corpus comes to: its clips, each checked on its own, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from avemo.data.cache import SPLITS
from avemo.data.media import HALVES, WHOLE, Cut
from avemo.data.reasons import reason


@dataclass(frozen=True)
class Row:
    """A clip of a corpus.

    Attributes:
        path: its file, as written, relative to the root.
        label: its class.
        split: `train`, `val` or `test`.
        speaker: who speaks; empty if not known.
        group: of clips that no split of the corpus may part, such as a session; empty if there are none.
        cut: the stretch and the half of the picture that are the clip.
        turn: name of the clip within its file, where that has several; empty else.
        streams: that the file must have, of "audio" and "video"; empty if it may lack either one.
        fault: what is wrong with the row itself, or an empty string.
    """

    path: str
    label: str
    split: str
    speaker: str = ""
    group: str = ""
    cut: Cut = WHOLE
    turn: str = ""
    streams: tuple[str, ...] = ()
    fault: str = ""

    @property
    def name(self) -> str:
        """What the clip is called: the path of its file, and after a # its name within that."""
        return f"{self.path}#{self.turn}" if self.turn else self.path


@dataclass(frozen=True)
class Listing:
    """A corpus as it was found.

    Attributes:
        rows: the clips in the corpus's order, faulty ones included.
        left_out: how many clips the corpus has that are not among the rows, by why.
        remarks: what is odd about the folder as a whole, a sentence each.
    """

    rows: tuple[Row, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all rows: whoever prepares anew must have the same ones."""
        content = json.dumps([asdict(row) for row in self.rows], ensure_ascii=False)
        return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()

    def chosen(self, merge: Mapping[str, str], classes: Iterable[str]) -> Listing:
        """The listing with some labels renamed, and without the clips of other classes.

        Args:
            merge: old label to new label.
            classes: the new labels that stay; all of them if it is empty.
        """
        rows = [replace(row, label=merge.get(row.label, row.label)) for row in self.rows]
        kept = {"", *classes} if classes else {row.label for row in rows}
        left_out = Counter(self.left_out)
        left_out.update(f"label {row.label}" for row in rows if row.label not in kept)
        return replace(
            self,
            rows=tuple(row for row in rows if row.label in kept),
            left_out=dict(left_out),
        )

    def expect_labels(self, argument: str, labels: Iterable[str]) -> None:
        """Raises a `ValueError` if an argument names labels that do not occur."""
        there = {row.label for row in self.rows if row.label}
        unknown = sorted(set(labels) - there)
        if unknown:
            raise ValueError(
                f"{argument} must name labels of the corpus, got {', '.join(unknown)}; "
                f"it has {', '.join(sorted(there)) or 'none'}"
            )


def with_copies(row: Row, others: Iterable[str]) -> list[Row]:
    """A clip, and the files that are copies of its file, which are faulty.

    Args:
        row: the clip.
        others: paths of the copies.
    """
    fault = reason("duplicate", f"a copy of {row.path}")
    return [row, *(replace(row, path=path, fault=fault) for path in others)]


def checked(rows: Iterable[Row], root: Path) -> tuple[Row, ...]:
    """The rows, with a fault on each that cannot be a clip; faults that are there stay.

    Args:
        rows: of a corpus.
        root: its folder.
    """
    named: dict[tuple[str, Cut], int] = {}
    files: dict[tuple[tuple[int, int], Cut], int] = {}
    result = []
    for number, row in enumerate(rows, start=1):
        spelt = PurePosixPath(row.path).as_posix(), row.cut  # without `./` and `//`
        first = named.setdefault(spelt, number)
        fault = row.fault or _fault(row, first if first != number else None)
        if not fault:
            file = _identity(root / row.path)
            first = number if file is None else files.setdefault((file, row.cut), number)
            fault = _duplicate(first) if first != number else ""
        result.append(replace(row, fault=fault))
    return tuple(result)


def _fault(row: Row, first: int | None) -> str:
    if not row.path:
        return reason("no path")
    if first is not None:
        return _duplicate(first)
    if not row.label:
        return reason("no label")
    if row.split not in SPLITS:
        return reason("unknown split", repr(row.split))
    spellings = PurePosixPath(row.path), PureWindowsPath(row.path)
    if any(path.is_absolute() or ".." in path.parts for path in spellings):
        return reason("path outside of the root")
    return _fault_of_cut(row.cut)


def _fault_of_cut(cut: Cut) -> str:
    end = math.inf if cut.end is None else cut.end
    if not 0 <= cut.start < end:
        return reason("no such stretch", f"{cut.start:g} to {end:g} s")
    if cut.half not in ("", *HALVES):
        return reason("unknown half", repr(cut.half))
    return ""


def _duplicate(row: int) -> str:
    return reason("duplicate", f"also in row {row}")


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file share: by a link, in another case or another composition of letters
    where the file system takes them for the same."""
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


def shared_speakers(clips: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Speakers that occur in more than one split, with these: their voices and faces leak into
    evaluation.

    Args:
        clips: speaker and split of each.
    """
    splits: dict[str, set[str]] = {}
    for speaker, split in clips:
        if speaker:
            splits.setdefault(speaker, set()).add(split)
    return {
        speaker: [split for split in SPLITS if split in where]
        for speaker, where in sorted(splits.items())
        if len(where) > 1
    }
