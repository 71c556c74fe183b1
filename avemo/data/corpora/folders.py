"""A corpus that has a folder for each class: [SPLIT/]CLASS/[SPEAKER/]FILE.

Where no folders say which split a clip is of, speakers are dealt to the splits, or clips where no folder
says who speaks, by the SHA-256 of their names: the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from avemo.data.cache import SPLITS
from avemo.data.corpora.corpus import Corpus
from avemo.data.corpora.listing import Listing, Row
from avemo.data.corpora.tree import Tree, is_media
from avemo.data.reasons import reason

HELD_OUT = 0.15
"""Share of the speakers, or of the clips of a class, that each of `val` and `test` has."""


def read(root: Path) -> Listing:
    """Lists the media files of a folder of folders.

    Raises:
        ValueError: there are none.
    """
    tree = Tree(root)
    found = []
    for path in tree.files:
        if is_media(path):
            found.append(_Found(path))
        else:
            tree.strays.append(path)
    if not any(clip.label for clip in found):
        raise ValueError(f"{root} must have a folder of media files for each class, found none")
    dealt = _deal(clip for clip in found if not clip.split)
    rows = (
        Row(
            clip.path,
            clip.label,
            clip.split or dealt.get(clip.unit, "train"),
            clip.speaker,
            fault="" if clip.label else reason("no label", "it lies in no folder of a class"),
        )
        for clip in found
    )
    return Listing(tuple(rows), remarks=tree.remarks())


CORPUS = Corpus(read)


class _Found:
    """What the folders of a file say."""

    def __init__(self, path: str) -> None:
        folders = path.split("/")[:-1]
        self.path = path
        self.split = folders.pop(0) if folders and folders[0] in SPLITS else ""
        self.label = folders[0] if folders else ""
        self.speaker = "/".join(folders[1:])

    @property
    def unit(self) -> tuple[str, str]:
        """What must stay together, and among which others it is dealt."""
        return ("", self.speaker) if self.speaker else (self.label, self.path)


def _deal(clips: Iterable[_Found]) -> dict[tuple[str, str], str]:
    """A split for each unit: of each kind as many held out as the share says, rounded, but at least one of
    three."""
    kinds: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for clip in clips:
        kinds[clip.unit[0]].add(clip.unit)
    splits = {}
    for units in kinds.values():
        order = sorted(units, key=lambda unit: hashlib.sha256(unit[1].encode()).digest())
        count = max(round(HELD_OUT * len(order)), len(order) >= 3)
        for place, unit in enumerate(order):
            splits[unit] = "val" if place < count else "test" if place < 2 * count else "train"
    return splits
