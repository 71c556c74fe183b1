"""Counts what a corpus's folder has, and compares that with what its authors published."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avemo.data.cache import SPLITS
from avemo.data.corpora.corpus import ANY, Published
from avemo.data.corpora.listing import Listing, Row, locate, shared_speakers
from avemo.data.corpora.tree import listed
from avemo.data.limits import LONGEST_WORK_SECONDS, MOST_MEMORY, SHORTEST_SECONDS
from avemo.data.media import Cut, cut_seconds, file_seconds
from avemo.data.reasons import MediaError, category_of, reason, refusal
from avemo.data.worker import WorkerDeath, ended, process_all

Task = tuple[str, tuple[str, ...], list[tuple[int, Cut]]]
"""A file, the streams that it must have, and what of it are clips, with the numbers of their rows."""

Seconds = dict[int, float | str]
"""How long clips are, by the number of their row, or why they cannot be used."""


@dataclass(frozen=True)
class CheckReport:
    """What was found.

    Attributes:
        clips: number of clips that can be used, by split and label.
        speakers: the same by split and speaker.
        seconds: that they last in all.
        unusable: names of the others, by the category of the reason.
        left_out: how many clips were not looked at, by why.
        remarks: what is odd about the folder as a whole.
        shared: speakers in more than one split, with these.
        published: what should be there, of the labels that were asked for.
    """

    clips: Mapping[tuple[str, str], int]
    speakers: Mapping[tuple[str, str], int]
    seconds: float
    unusable: Mapping[str, Sequence[str]]
    left_out: Mapping[str, int]
    remarks: Sequence[str]
    shared: Mapping[str, Sequence[str]]
    published: Published

    def __str__(self) -> str:
        total = sum(self.clips.values())
        return "\n".join(
            [
                f"{total} clips can be used, {self.seconds / 3600:.1f} hours",
                *self._table(),
                *self._speakers(),
                *(listed(f"cannot be used: {why}", names) for why, names in self.unusable.items()),
                *(f"left out: {why}: {count}" for why, count in self.left_out.items()),
                *self.remarks,
            ]
        )

    def _table(self) -> Iterator[str]:
        """A line for each label and one for all; where it is published, so many of how many."""
        wanted = self.published.clips
        labels = {label for _, label in self.clips} | {
            name for part in wanted.values() for name in part
        }
        columns = (*SPLITS, ANY)
        rows = [["", *SPLITS, "all"]]
        for group in (*((label,) for label in sorted(labels)), sorted(labels)):
            cells = [group[0] if len(group) == 1 else "all"]
            for split in columns:
                splits = SPLITS if split == ANY else (split,)
                found = sum(self.clips.get((s, label), 0) for s in splits for label in group)
                parts = wanted.values() if split == ANY else [wanted.get(split)]
                of = [part.get(label, 0) for part in parts if part is not None for label in group]
                cells.append(f"{found} of {sum(of)}" if of else str(found))
            rows.append(cells)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            yield "  ".join([first.ljust(widths[0]), *cells])

    def _speakers(self) -> Iterator[str]:
        known = {speaker for _, speaker in self.speakers}
        of = f" of {self.published.speakers}" if self.published.speakers else ""
        yield f"speakers: {len(known) or 'not known'}{of}"
        for split in SPLITS:
            counts = [(name, n) for (s, name), n in sorted(self.speakers.items()) if s == split]
            if counts:
                yield f"  {split}: {', '.join(f'{name} {n}' for name, n in counts)}"
        if self.shared:
            yield listed("speakers in more than one split", self.shared)


def count_clips(
    listing: Listing, root: Path, published: Published, *, max_seconds: float, workers: int
) -> CheckReport:
    """Opens the files of all clips and reads their packets, but decodes none.

    Args:
        listing: the corpus's clips.
        root: its folder.
        published: what should be there.
        max_seconds: longer clips cannot be used.
        workers: number of processes.
    """
    from tqdm import tqdm

    found: Seconds = {n: row.fault for n, row in enumerate(listing.rows) if row.fault}
    with tqdm(total=len(listing.rows), initial=len(found), unit="clip", desc="check") as bar:
        for seconds in _look(listing.rows, root, max_seconds, workers):
            found |= seconds
            bar.update(len(seconds))
    clips: Counter[tuple[str, str]] = Counter()
    speakers: Counter[tuple[str, str]] = Counter()
    unusable: dict[str, list[str]] = defaultdict(list)
    for number, row in enumerate(listing.rows):
        what = found[number]
        if isinstance(what, str):
            unusable[category_of(what)].append(row.name)
            continue
        clips[row.split, row.label] += 1
        if row.speaker:
            speakers[row.split, row.speaker] += 1
    return CheckReport(
        clips,
        speakers,
        sum(what for what in found.values() if not isinstance(what, str)),
        unusable,
        listing.left_out,
        listing.remarks,
        shared_speakers((speaker, split) for split, speaker in speakers),
        published,
    )


def _look(rows: Sequence[Row], root: Path, max_seconds: float, workers: int) -> Iterator[Seconds]:
    """How long the clips without a fault are, file by file."""
    files: dict[tuple[str, tuple[str, ...]], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not row.fault:
            files[row.path, row.streams].append(number)
    tasks = [
        (path, streams, [(number, rows[number].cut) for number in numbers])
        for (path, streams), numbers in files.items()
    ]
    for (_, _, cuts), result in process_all(
        tasks,
        _looker,
        (root, max_seconds),
        workers=min(workers, max(1, len(tasks))),
        timeout=LONGEST_WORK_SECONDS,
        memory=MOST_MEMORY,
    ):
        if isinstance(result, WorkerDeath):
            yield {number: str(ended(result)) for number, _ in cuts}
        else:
            yield result


def _looker(root: Path, max_seconds: float) -> Callable[[Task], Seconds]:
    def look(task: Task) -> Seconds:
        name, streams, cuts = task
        try:
            path = locate(root, name)
            if path is None:
                raise MediaError("path outside of the root", "by a link")
            seconds = file_seconds(path, streams)
        except Exception as error:
            return {number: str(refusal(error)) for number, _ in cuts}
        return {number: _seconds_or_reason(seconds, cut, max_seconds) for number, cut in cuts}

    return look


def _seconds_or_reason(seconds: float, cut: Cut, max_seconds: float) -> float | str:
    try:
        length = cut_seconds(seconds, cut)
    except MediaError as error:
        return str(error)
    if length < SHORTEST_SECONDS:
        return reason("too short", f"{length:.2f} s")
    if length > max_seconds:
        return reason("too long", f"{length:.1f} s of at most {max_seconds:g} s")
    return length
