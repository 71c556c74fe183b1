"""CREMA-D: 91 actors, 12 sentences; names of files say who says what, how and how strongly.

A clip is its Flash video where that is there, else its sound (WAV, or MP3 if there is no WAV).
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
    r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>LO|MD|HI|XX?)",
    re.IGNORECASE,
)

EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}

STREAMS = {".flv": BOTH, ".wav": ("audio",), ".mp3": ("audio",)}
"""By the ending of a file's name, the best first."""

_NO_SOUND, _NO_DURATION = "very short, without sound", "without duration"
_ALL = "a minute long, with all emotions"
BAD = {
    "1076_MTI_SAD_XX": {".flv": _NO_SOUND, ".wav": _NO_SOUND, ".mp3": _NO_SOUND},
    "1076_MTI_NEU_XX": {".flv": _NO_SOUND, ".mp3": _NO_SOUND},
    "1064_TIE_SAD_XX": {".flv": _NO_DURATION, ".mp3": _NO_DURATION},
    "1064_IEO_DIS_MD": {".flv": _ALL, ".mp3": _ALL},
}
"""What the authors' README says of clips, by the ending of the file."""

ACTORS = range(1001, 1092)
FOLDS = tuple(f"fold{n}" for n in range(5))
_SPLIT = deal_folds(FOLDS)


def read(root: Path) -> Listing:
    """Lists the clips in a folder and its folders.

    Raises:
        ValueError: there are none.
    """
    tree = Tree(root)
    clips: dict[str, list[str]] = {}
    for path in tree.files:
        pure = PurePosixPath(path)
        found = _NAME.fullmatch(pure.stem)
        if found and pure.suffix.lower() in STREAMS and int(found["actor"]) in ACTORS:
            clips.setdefault(_published(pure.stem), []).append(path)
            if pure.stem != pure.stem.upper():
                tree.note_case(path)
        else:
            tree.strays.append(path)
    if not clips:
        raise ValueError(
            f"{root} must have files named like 1001_DFA_ANG_XX.flv, found none of them"
        )
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    for name, paths in sorted(clips.items()):
        endings = [PurePosixPath(path).suffix.lower() for path in paths]
        best = next(ending for ending in STREAMS if ending in endings)
        taken = [path for path, ending in zip(paths, endings, strict=True) if ending == best]
        rows += with_copies(_row(name, best, taken[0]), taken[1:])
        if len(paths) > len(taken):
            what = "with its picture" if best == ".flv" else "as WAV"
            left_out[f"sound of a clip that is there {what}"] += len(paths) - len(taken)
    return Listing(tuple(rows), dict(left_out), tree.remarks())


CORPUS = Corpus(
    read,
    published=Published(
        {ANY: {label: 1087 if label == "neutral" else 1271 for label in EMOTIONS.values()}},
        speakers=len(ACTORS),
    ),
)


def _published(stem: str) -> str:
    """The name as published: until one was renamed, a sound had the level X and its picture XX."""
    name = stem.upper()
    return f"{name}X" if name.endswith("_X") else name


def _row(name: str, ending: str, path: str) -> Row:
    actor, _, emotion, _ = name.split("_")
    bad = BAD.get(name, {}).get(ending)
    fault = reason("known to be bad", bad) if bad else ""
    if emotion not in EMOTIONS:
        fault = reason("no label", f"no emotion has the code {emotion}")
    fold = FOLDS[(int(actor) - ACTORS.start) % len(FOLDS)]
    return Row(
        path,
        EMOTIONS.get(emotion, ""),
        _SPLIT[fold],
        speaker=actor,
        group=fold,
        streams=STREAMS[ending],
        fault=fault,
    )
