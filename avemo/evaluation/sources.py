"""Which media files are meant: by name, as a folder, a pattern, or a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

STANDARD_INPUT = "-"

_VIDEO = "3g2 3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
_AUDIO = "aac aif aiff flac m4a mka mp3 oga ogg opus wav wma"
SUFFIXES = frozenset(f".{suffix}" for names in (_VIDEO, _AUDIO) for suffix in names.split())
"""Of the files that are taken of a folder; a file that is named itself may have any."""


def find_clips(names: Iterable[str]) -> list[Path]:
    """The media files that are meant by names of files, folders and patterns.

    Args:
        names: a file; a folder, for the media files in it and below it; a pattern such as `*.mp4` or `**/*.mov`, where
            no file has that name; `-` for names on standard input, one a line, or, as `find -print0` has them, between
            null characters. What is no file stays: it is told as a clip that cannot be used.

    Returns:
        Paths without those that come again, in the order of the names; of a folder or a pattern in that of their names.

    Raises:
        FileNotFoundError: a pattern or a folder has no media file, standard input no name, or there is no file of any
            name.
        ValueError: a name is empty, as that of a shell's variable that is not set: it is not the folder where one is.
    """
    clips = list(dict.fromkeys(path for name in names for path in _meant(name)))
    if clips and not any(path.exists() for path in clips):
        more = f" (nor any of {len(clips) - 1} others)" if len(clips) > 1 else ""
        raise FileNotFoundError(f"no such file: {clips[0]}{more}")
    return clips


def _meant(name: str) -> Iterator[Path]:
    path = Path(name)
    if not name:
        raise ValueError("clips must be names of files, folders or patterns, got an empty one")
    if name == STANDARD_INPUT:
        lines = _listed()
        if not lines:
            raise FileNotFoundError("no name of a media file on standard input")
        yield from (clip for line in lines for clip in _meant(line))
    elif path.is_dir():
        yield from _required(f"folder {name}", _below(path))
    elif glob.has_magic(name) and not os.path.lexists(path):
        found = sorted(glob.glob(name, recursive=True))
        yield from _required(f"pattern {name}", [Path(f) for f in found if os.path.isfile(f)])
    else:
        yield path


def _below(folder: Path) -> list[Path]:
    places = (Path(root, file) for root, _, files in os.walk(folder) for file in files)
    return sorted(path for path in places if path.suffix.lower() in SUFFIXES)


def _required(what: str, paths: list[Path]) -> list[Path]:
    if not paths:
        raise FileNotFoundError(f"no media file in the {what}")
    return paths


def _listed() -> list[str]:
    """The names on standard input, whatever bytes they are."""
    content = sys.stdin.buffer.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip() and line != b"-"]
