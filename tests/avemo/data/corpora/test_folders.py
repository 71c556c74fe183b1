"""Folders of classes, with and without folders of splits and speakers; and such that are damaged."""

from pathlib import Path

import pytest

from avemo.data.cache import SPLITS, ClipCache
from avemo.data.corpora.listing import Listing, shared_speakers
from avemo.data.corpora.registry import CORPORA, list_clips
from avemo.data.prepare import prepare
from avemo.data.reasons import category_of
from tests.avemo.data.media_files import write_clip


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listed(root: Path) -> Listing:
    return list_clips(CORPORA["folders"], root, {}, ())


def test_a_cache_of_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number, split in enumerate(SPLITS):
        for label in ("happy", "sad"):
            (root / split / label / f"s{number}").mkdir(parents=True)
            write_clip(root / split / label / f"s{number}" / "a.MP4", first=number)
    prepare("folders", root, out=tmp_path / "cache", workers=1, bins=20, face_size=16)
    clips = ClipCache(tmp_path / "cache").clips
    assert sorted((c.split, c.label, c.speaker) for c in clips) == sorted(
        (split, label, f"s{number}")
        for number, split in enumerate(SPLITS)
        for label in ("happy", "sad")
    )


def test_speakers_are_dealt_whole(tmp_path: Path) -> None:
    names = [
        f"{label}/s{speaker}/{take}.mp4"
        for label in "ab"
        for speaker in range(20)
        for take in range(3)
    ]
    rows = listed(touch(tmp_path, *names)).rows
    assert not shared_speakers((row.speaker, row.split) for row in rows)
    held = {split: {row.speaker for row in rows if row.split == split} for split in SPLITS}
    assert {split: len(speakers) for split, speakers in held.items()} == {
        "train": 14,
        "val": 3,
        "test": 3,
    }
    assert held["val"] == {"s13", "s7", "s8"}  # by SHA-256 alone: the same everywhere


def test_clips_without_speakers_are_dealt_by_class(tmp_path: Path) -> None:
    names = [f"a/{i}.mp4" for i in range(10)] + [f"b/{i}.mp4" for i in range(3)] + ["c/0.mp4"]
    rows = listed(touch(tmp_path, *names)).rows
    counts = {
        label: [sum(r.label == label and r.split == split for r in rows) for split in SPLITS]
        for label in "abc"
    }
    assert counts == {"a": [6, 2, 2], "b": [1, 1, 1], "c": [1, 0, 0]}


def test_damaged(tmp_path: Path) -> None:
    touch(tmp_path, "train/sad/a.mp4", "train/sad/b.wav", "train/sad/notes.txt", ".git/x.mp4")
    touch(tmp_path, "train/happy/.DS_Store", "loose.mp4", "Thumbs.db", "TRAIN/sad/c.mp4")
    (tmp_path / "train/happy/link.mp4").symlink_to(tmp_path / "train/sad/a.mp4")
    (tmp_path / "train/back").symlink_to(tmp_path / "train")
    listing = listed(tmp_path)
    assert [(row.path, row.label, category_of(row.fault)) for row in listing.rows] == [
        ("TRAIN/sad/c.mp4", "TRAIN", ""),
        ("loose.mp4", "", "no label"),
        ("train/happy/link.mp4", "happy", ""),
        ("train/sad/a.mp4", "sad", "duplicate"),
        ("train/sad/b.wav", "sad", ""),
    ]
    assert listing.remarks == (
        "files that are no clips of the corpus: 2 (Thumbs.db, train/sad/notes.txt)",
    )


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("a.mp4", "b.mp4")])
def test_no_folders_of_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must have a folder of media files for each class"):
        listed(touch(tmp_path, *names))
