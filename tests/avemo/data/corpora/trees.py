"""Makes small trees of corpora: empty files for what is only listed, films for what is prepared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avemo.data.cache import ClipCache, ClipInfo
from avemo.data.corpora.listing import Listing
from avemo.data.corpora.registry import CORPORA, list_clips
from avemo.data.prepare import prepare
from avemo.data.reasons import category_of
from tests.avemo.data.media_files import talking_head

NTSC = Fraction(30000, 1001)
SETTINGS = {"bins": 20, "face_size": 16, "workers": 1}


def touch(root: Path, *names: str) -> Path:
    """Makes files that hold their own names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def copy(film: Path, root: Path, *names: str) -> None:
    """Puts a film into a tree under several names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, root / name)


def head(count: int, width: int, height: int) -> NDArray[np.uint8]:
    """Frames of the talking head, (count, height, width, 3): scaled to the height, the sides cut or grey."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    for canvas, frame in zip(frames, talking_head(count), strict=True):
        scaled = cv2.resize(frame, (round(height * frame.shape[1] / frame.shape[0]), height))
        inner = min(width, scaled.shape[1])
        here, there = (width - inner) // 2, (scaled.shape[1] - inner) // 2
        canvas[:, here : here + inner] = scaled[:, there : there + inner]
    return frames


def listed(corpus: str, root: Path, **options: Mapping[str, str] | tuple[str, ...]) -> Listing:
    """The clips of a corpus."""
    options = {"merge": {}, "classes": (), **options}
    return list_clips(CORPORA[corpus], root, **options)


def faults(listing: Listing) -> dict[str, str]:
    """The categories of the faults, by the names of the clips that have one."""
    return {row.name: category_of(row.fault) for row in listing.rows if row.fault}


def prepared(corpus: str, root: Path, out: Path, **options: str) -> dict[str, ClipInfo]:
    """The clips of the cache that is made of a corpus, by their names; all of them must be good."""
    report = prepare(corpus, root, out=out, **SETTINGS, **options)
    assert not report.errors, (out / "errors.csv").read_text()
    return {clip.path: clip for clip in ClipCache(out).clips}
