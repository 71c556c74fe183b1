"""MELD: turns of dialogues from a television series, with its official splits, a CSV file for each.

Of test turns that are there twice, `diaX_uttY.mp4` and `final_videos_testdiaX_uttY.mp4`, the second is the
clip: docs/corpora.md says why.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from avemo.data.corpora.corpus import Corpus, Published
from avemo.data.corpora.listing import Listing, Row
from avemo.data.corpora.tree import Tree, is_media, listed
from avemo.data.media import BOTH
from avemo.data.reasons import reason

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")

LISTS = {"train": "train_sent_emo.csv", "val": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
FOLDERS = {
    "train": ("train_splits", "train"),
    "val": ("dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test"),
}
"""Names of the folder that films lie in: as published, and as people call it."""

BAD = {
    ("train", 125, 3): "it cannot be decoded",
    ("test", 38, 4): "305 s of other turns",
    ("test", 220, 0): "235 s of other turns",
}
"""What is known of clips by split, dialogue and utterance."""

_COLUMNS = ("Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_CLIP = re.compile(
    r"(?P<twin>final_videos_test)?dia(?P<dialogue>\d+)_utt(?P<utterance>\d+)\.mp4", re.IGNORECASE
)

Turn = tuple[str, int, int]
"""Split, dialogue and utterance."""


def read(root: Path) -> Listing:
    """Lists the turns of the splits that have a CSV file.

    Raises:
        ValueError: none has, or one of them is no such file.
    """
    tree = Tree(root)
    clips, twins = _clips(tree)
    lists = {split: _lists(tree, name) for split, name in LISTS.items()}
    if not any(lists.values()):
        raise ValueError(f"{root} must have {', '.join(LISTS.values())}, found none of them")
    rows: list[Row] = []
    for split, paths in lists.items():
        for path in paths[:1]:
            rows += _rows(tree, split, path, clips)
    named = {row.path for row in rows}
    tree.strays += [path for path in clips.values() if path not in named]
    remarks = (
        listed("lists missing", (LISTS[split] for split, paths in lists.items() if not paths)),
        listed("further copies of lists", (p for paths in lists.values() for p in paths[1:])),
    )
    left_out = Counter({"another film of a turn of the test split": twins} if twins else {})
    return Listing(tuple(rows), dict(left_out), (*filter(None, remarks), *tree.remarks()))


CORPUS = Corpus(
    read,
    published=Published(
        {
            split: dict(zip(EMOTIONS, counts, strict=True))
            for split, counts in {
                "train": (1109, 271, 268, 1743, 4710, 683, 1205),
                "val": (153, 22, 40, 163, 470, 111, 150),
                "test": (345, 68, 50, 402, 1256, 208, 281),
            }.items()
        },
        speakers=304,
    ),
)


def _lists(tree: Tree, name: str) -> list[str]:
    """The lists of that name, the one in the fewest folders first."""
    found = [path for path in tree.files if PurePosixPath(path).name.casefold() == name]
    return sorted(found, key=lambda path: path.count("/"))


def _clips(tree: Tree) -> tuple[dict[Turn, str], int]:
    """The file of each turn, and the number of those that another one takes the place of."""
    clips: dict[Turn, str] = {}
    twins: dict[Turn, str] = {}
    for split, folders in FOLDERS.items():
        for path in filter(is_media, tree.files):
            folder, name = ("/" + path).split("/")[-2:]
            if folder.casefold() not in folders:
                continue
            found = _CLIP.fullmatch(name)
            turn = (split, int(found["dialogue"]), int(found["utterance"])) if found else None
            kind = twins if found and found["twin"] else clips
            if turn is None or turn in kind:
                tree.strays.append(path)
            else:
                kind[turn] = path
                if name != name.lower():
                    tree.note_case(path)
    return clips | twins, len(clips.keys() & twins.keys())


def _rows(tree: Tree, split: str, path: str, clips: dict[Turn, str]) -> Iterator[Row]:
    for number, record in enumerate(_records(tree.root / path), start=2):
        label = record["Emotion"].strip().lower()
        try:
            turn = split, int(record["Dialogue_ID"]), int(record["Utterance_ID"])
        except ValueError:
            said = f"line {number} of {path} has no numbers of dialogue and utterance"
            yield Row(f"{path}#{number}", label, split, fault=reason("no path", said))
            continue
        _, dialogue, utterance = turn
        expected = f"{FOLDERS[split][0]}/dia{dialogue}_utt{utterance}.mp4"
        fault = reason("known to be bad", BAD[turn]) if turn in BAD else ""
        if label not in EMOTIONS:
            fault = reason("no label", f"no emotion is called {label!r}")
        yield Row(
            clips.get(turn, expected),
            label if label in EMOTIONS else "",
            split,
            speaker=record["Speaker"].strip(),
            group=f"{split}-dia{dialogue}",
            streams=BOTH,
            fault=fault,
        )


def _records(path: Path) -> list[dict[str, str]]:
    """The rows of a list: UTF-8, or the bytes of Windows that some copies have in what is said.

    Raises:
        ValueError: it is no list of MELD's.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} must have the columns {', '.join(missing)}")
        return list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} must be a CSV file: {error}") from error
