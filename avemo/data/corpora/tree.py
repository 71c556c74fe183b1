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
        self.recased: dict[str, None] = {}
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
        self.note_case(known[0])
        return known[0]

    def note_case(self, path: str) -> None:
        """Notes a file whose name is in another case than published."""
        self.recased[path] = None

    def remarks(self) -> tuple[str, ...]:
        """What is odd about the folder, a sentence each."""
        return tuple(
            said
            for said in (
                listed("files that are no clips of the corpus", self.strays),
                listed("files whose names are in another case than published", self.recased),
            )
            if said
        )


def listed(what: str, names: Iterable[str]) -> str:
    """How many there are of something, and the first ones: "files that ...: 2 (a, b)"; empty if none."""
    names = list(names)
    some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{what}: {len(names)} ({some})" if names else ""


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
