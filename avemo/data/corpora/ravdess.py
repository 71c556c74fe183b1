"""RAVDESS: 24 actors who speak and sing. Names of files say all; folders say nothing that they do not.

A performance is published three times: with both streams (01), as a picture (02) and as sound (03). It is
one clip where the first is there, and one for each stream else.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePosixPath

from avemo.data.corpora.corpus import ANY, Corpus, Published, deal_folds
from avemo.data.corpora.listing import Listing, Row, with_copies
from avemo.data.corpora.tree import Tree
from avemo.data.media import BOTH
from avemo.data.reasons import reason

_NAME = re.compile(
    r"(?P<modality>\d\d)-(?P<performance>(?P<channel>\d\d)-(?P<emotion>\d\d)-(?P<level>\d\d)"
    r"-(?P<statement>\d\d)-(?P<repetition>\d\d)-(?P<actor>\d\d))",
)

STREAMS = {"01": BOTH, "02": ("video",), "03": ("audio",)}

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happy",
    "04": "sad",
    "05": "angry",
    "06": "fearful",
    "07": "disgust",
    "08": "surprised",
}

FOLDS = (
    (2, 5, 14, 15, 16),
    (3, 6, 7, 13, 18),
    (10, 11, 12, 19, 20),
    (8, 17, 21, 23, 24),
    (1, 4, 9, 22),
)
"""Actors by fold, of Luna-Jiménez et al., 2021, doi.org/10.3390/s21227665."""

_FOLD = {f"{actor:02d}": f"fold{n}" for n, actors in enumerate(FOLDS) for actor in actors}
_SPLIT = deal_folds([f"fold{n}" for n in range(len(FOLDS))])


def _published() -> dict[str, int]:
    """Performances by label: two statements, twice, at two levels (neutral has one); all 24 speak, all but one sing,
    and nobody sings in disgust or surprise."""
    return {
        label: 2 * 2 * (1 if label == "neutral" else 2) * (24 if code > "06" else 24 + 23)
        for code, label in EMOTIONS.items()
    }


def read(root: Path) -> Listing:
    """Lists the performances in a folder and its folders.

    Raises:
        ValueError: there are none.
    """
    tree = Tree(root)
    files: dict[str, dict[str, list[str]]] = {}
    for path in tree.files:
        found = _NAME.fullmatch(PurePosixPath(path).stem)
        if found and found["modality"] in STREAMS and found["actor"] in _FOLD:
            copies = files.setdefault(found["performance"], {})
            copies.setdefault(found["modality"], []).append(path)
        else:
            tree.strays.append(path)
    if not files:
        raise ValueError(
            f"{root} must have files named like 01-01-06-01-02-01-12.mp4, found none of them"
        )
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for performance, copies in sorted(files.items()):
        for modality, paths in sorted(copies.items()):
            if modality != "01" and "01" in copies:
                left_out["one stream of a performance that is there with both"] += len(paths)
            else:
                rows += with_copies(_row(performance, modality, paths[0]), paths[1:])
    return Listing(tuple(rows), dict(left_out), tree.remarks())


CORPUS = Corpus(read, published=Published({ANY: _published()}, speakers=24))


def _row(performance: str, modality: str, path: str) -> Row:
    _, emotion, *_, actor = performance.split("-")
    fold = _FOLD[actor]
    return Row(
        path,
        EMOTIONS.get(emotion, ""),
        _SPLIT[fold],
        speaker=f"Actor_{actor}",
        group=fold,
        streams=STREAMS[modality],
        fault=""
        if emotion in EMOTIONS
        else reason("no label", f"no emotion has the code {emotion}"),
    )
