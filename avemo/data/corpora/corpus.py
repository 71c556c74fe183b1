"""What a corpus is to the commands: how it is read, and what its authors say is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avemo.data.corpora.listing import Listing

ANY = "any"
"""In place of a split where a corpus has no official ones."""


@dataclass(frozen=True)
class Published:
    """What a corpus has by its authors.

    Attributes:
        clips: their number by split (:data:`ANY` where there are no official ones) and label.
        speakers: their number, if it is known.
    """

    clips: Mapping[str, Mapping[str, int]]
    speakers: int | None = None

    def chosen(self, merge: Mapping[str, str], classes: Sequence[str]) -> Published:
        """The numbers with some labels renamed, old to new, and of some classes only, if there are any."""
        clips: dict[str, Counter[str]] = {}
        for split, counts in self.clips.items():
            clips[split] = Counter()
            for label, count in counts.items():
                new = merge.get(label, label)
                if not classes or new in classes:
                    clips[split][new] += count
        return Published(clips, self.speakers)


@dataclass(frozen=True)
class Corpus:
    """One of the corpora that `avemo prepare` knows.

    Attributes:
        read: lists the clips of a root; raises FileNotFoundError or ValueError, in one line, where it
            is no such corpus at all. All else that is wrong is told of in the listing.
        classes: those that are taken unless others are asked for; all if there are none.
        published: what should be there.
    """

    read: Callable[[Path], Listing]
    classes: tuple[str, ...] = ()
    published: Published = field(default_factory=lambda: Published({}))


def deal_folds(folds: Sequence[str]) -> dict[str, str]:
    """The splits of a corpus that has folds in place of splits: the last one tests, the one before it validates."""
    return dict.fromkeys(folds, "train") | {folds[-2]: "val", folds[-1]: "test"}
