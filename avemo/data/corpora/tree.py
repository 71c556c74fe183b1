"""The files of a corpus's folder, as they are and in whatever case they are written."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

_ENDINGS = """
    3g2 3gp aac aif aiff asf avi flac flv m2ts m4a m4v mka mkv mov mp3 mp4 mpeg mpg mts mxf nut oga ogg
    ogv opus ts vob wav webm wma wmv
"""

MEDIA = frozenset(_ENDINGS.split())
"""Endings of the names of media files, in small letters."""

_SHOWN = 3


class Tree:
    """All files below a root, by their paths relative to it, sorted.

    Folders that are links are followed, each once; a file that a link leads out of the root to is refused
    where it is opened.

    Args:
        root: the corpus's folder.

    Attributes:
        root: the same.
        files: the paths, with `/`; hidden files and folders are left out.
        strays: files that were found where clips belong and are none.
        recased: files that were found by a name in another case.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted(_walk(root))
        self.strays: list[str] = []
        self.recased: list[str] = []
        self._by_case: dict[str, list[str]] = defaultdict(list)
        for path in self.files:
            self._by_case[path.casefold()].append(path)

    def find(self, path: str) -> str | None:
        """The file of a path, in this case or, if there is none, in another one; None if there is none."""
        known = self._by_case.get(PurePosixPath(path).as_posix().casefold(), [])
        if not known:
            return None
        if path in known:
            return path
        self.recased.append(known[0])
        return known[0]

    def below(self, folder: str) -> list[str]:
        """The files in a folder (in any case) and its folders; its name is relative to the root."""
        start = folder.casefold().rstrip("/") + "/"
        return [path for path in self.files if path.casefold().startswith(start)]

    def remarks(self) -> tuple[str, ...]:
        """What is odd about the folder, a sentence each."""
        return tuple(
            said
            for said in (
                listed(self.strays, "that are no clips of the corpus", "file"),
                listed(self.recased, "whose names are in another case than published", "file"),
            )
            if said
        )


def listed(names: Iterable[str], what: str, noun: str) -> str:
    """How many there are of something, and the first ones: "2 files that ...: a, b"; empty if none."""
    names = list(names)
    if not names:
        return ""
    some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} {noun}{'s' * (len(names) > 1)} {what}: {some}"


def is_media(path: str) -> bool:
    """Whether a file's name ends like that of a media file."""
    return PurePosixPath(path).suffix.lower().lstrip(".") in MEDIA


def _walk(root: Path) -> Iterable[str]:
    seen = set()
    for folder, names, files in os.walk(root, followlinks=True):
        there = os.path.realpath(folder)
        if there in seen:  # a link back: its files have been found by another way
            names.clear()
            continue
        seen.add(there)
        names[:] = sorted(name for name in names if not name.startswith("."))
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in files:
            if not name.startswith("."):
                yield (relative / name).as_posix()
