"""AFEW, of the EmotiW challenges: scenes of films in a folder for each of seven classes.

Labels come from the folders, or from list files where the root has some: lines of a path or name and a
label, as in the challenge's baseline kit. Clips of the test split have no public labels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from avemo.data.corpora.corpus import Corpus, Published
from avemo.data.corpora.listing import Listing, Row
from avemo.data.corpora.tree import Tree, is_media, listed
from avemo.data.media import BOTH
from avemo.data.reasons import reason

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
"""In the order of their numbers in list files, from 0."""

_SPLITS = {"train": "train", "val": "val", "eval": "val", "test": "test"}
_SPLIT = re.compile("(?<![a-z])(train|val|eval|test)(?![a-z])", re.IGNORECASE)
_LIST = re.compile(r"(?P<path>\S+)\s+(?P<label>\S+)")


def read(root: Path) -> Listing:
    """Lists the clips of the folders, or of the list files.

    Raises:
        ValueError: there are neither.
    """
    tree = Tree(root)
    films = [path for path in tree.files if is_media(path) and _split(path)]
    lists = [
        path for path in tree.files if "/" not in path and path.endswith(".txt") and _split(path)
    ]
    if not films and not lists:
        raise ValueError(
            f"{root} must have folders like Train_AFEW/Angry, or lists like train.txt, found neither"
        )
    left_out: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    rows = list(_listed(tree, films, lists, odd) if lists else _sorted(tree, films, left_out))
    known = {*films, *lists}
    tree.strays += [path for path in tree.files if path not in known and is_media(path)]
    if lists:
        named = {row.path for row in rows}
        left_out.update("in no list" for path in films if path not in named)
    there = {row.split for row in rows}
    remarks = (
        listed("splits without clips", (split for split in ("train", "val") if split not in there)),
        listed("lists with lines that cannot be read", (f"{path}: {n}" for path, n in odd.items())),
    )
    return Listing(tuple(rows), dict(left_out), (*filter(None, remarks), *tree.remarks()))


CORPUS = Corpus(
    read,
    published=Published(
        {
            "train": dict(zip(EMOTIONS, (133, 74, 81, 150, 144, 117, 74), strict=True)),
            "val": dict(zip(EMOTIONS, (64, 40, 46, 63, 63, 61, 46), strict=True)),
        }
    ),
)


def _split(path: str) -> str:
    """The split that the first name to speak of one in a path speaks of, or an empty string."""
    found = next(filter(None, map(_SPLIT.search, path.split("/"))), None)
    return _SPLITS[found[1].lower()] if found else ""


def _sorted(tree: Tree, films: list[str], left_out: Counter[str]) -> Iterator[Row]:
    """The clips that folders tell of."""
    for path in films:
        split, label = _split(path), _label(PurePosixPath(path).parent.name)
        if split == "test" and not label:
            left_out["test clip, whose label is not public"] += 1
            continue
        fault = "" if label else reason("no label", "it lies in no folder of a class")
        yield Row(path, label, split, streams=BOTH, fault=fault)


def _listed(tree: Tree, films: list[str], lists: list[str], odd: Counter[str]) -> Iterator[Row]:
    """The clips that list files tell of."""
    by_name = {(_split(path), PurePosixPath(path).stem.casefold()): path for path in films}
    for path in lists:
        split = _split(path)
        for line in (tree.root / path).read_text("utf-8-sig", errors="replace").splitlines():
            found = _LIST.fullmatch(line.strip())
            if not found:
                odd[path] += bool(line.strip())
                continue
            label = _label(found["label"])
            stem = PurePosixPath(found["path"].replace("\\", "/")).stem.casefold()
            inside = ".." not in PurePosixPath(found["path"]).parts
            clip = by_name.get((split, stem), found["path"]) if inside else found["path"]
            fault = _doubt(found["label"], label, clip)
            yield Row(clip, "" if fault else label, split, streams=BOTH, fault=fault)


def _doubt(said: str, label: str, clip: str) -> str:
    """Why what a list says is no label: nothing has that name, or the clip's folder shows that its numbers are in
    another order."""
    if not label:
        return reason("no label", f"no class is {said!r}")
    folder = _label(PurePosixPath(clip).parent.name)
    if said.isdigit() and folder not in ("", label):
        return reason(
            "no label", f"{said} is {label} in alphabetical order, its folder is {folder}"
        )
    return ""


def _label(text: str) -> str:
    """A class by its name in any case or its number in list files; an empty string if there is none."""
    if text.isdigit() and int(text) < len(EMOTIONS):
        return EMOTIONS[int(text)]
    return text.lower() if text.lower() in EMOTIONS else ""
