"""RAVDESS: codes in names, streams by modality, folds of actors; whole and damaged."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from avemo.data.corpora.listing import shared_speakers
from avemo.data.corpora.ravdess import EMOTIONS, FOLDS
from tests.avemo.data.corpora.trees import NTSC, faults, head, listed, prepared, touch
from tests.avemo.data.media_files import tone, write_media


def published(actors: Sequence[int]) -> list[str]:
    """The names of all files of some actors, by the rules of the authors."""
    names = []
    for channel, emotion, level, statement, repetition, actor in itertools.product(
        ("01", "02"), EMOTIONS, ("01", "02"), ("01", "02"), ("01", "02"), actors
    ):
        sung = channel == "02"
        if (emotion == "01" and level == "02") or (sung and (emotion > "06" or actor == 18)):
            continue
        rest = f"{channel}-{emotion}-{level}-{statement}-{repetition}-{actor:02d}"
        what = "Song" if sung else "Speech"
        names += [
            f"Video_{what}_Actor_{actor:02d}/Actor_{actor:02d}/01-{rest}.mp4",
            f"Video_{what}_Actor_{actor:02d}/Actor_{actor:02d}/02-{rest}.mp4",
            f"Audio_{what}_Actors_01-24/Actor_{actor:02d}/03-{rest}.wav",
        ]
    return names


def test_all_that_is_published(tmp_path: Path) -> None:
    assert len(published(range(1, 25))) == 7356
    names = published((1, 14, 18, 24))
    assert len(names) == 3 * (4 * 60 + 3 * 44)
    listing = listed("ravdess", touch(tmp_path, *names))
    rows = listing.rows
    assert not faults(listing)
    assert not listing.remarks
    assert len(rows) == 4 * 60 + 3 * 44
    assert listing.left_out == {
        "one stream of a performance that is there with both": 2 * len(rows)
    }
    assert {row.path[-24:] for row in rows} == {n[-24:] for n in names if n[-24:-22] == "01"}
    assert len({row.speaker for row in rows}) == 4
    assert not shared_speakers((row.speaker, row.split) for row in rows)
    assert sorted(itertools.chain(*FOLDS)) == list(range(1, 25))
    assert {row.speaker: (row.group, row.split) for row in rows} == {
        "Actor_01": ("fold4", "test"),
        "Actor_14": ("fold0", "train"),
        "Actor_18": ("fold1", "train"),
        "Actor_24": ("fold3", "val"),
    }


def test_streams_by_modality(tmp_path: Path) -> None:
    """A cache of one performance with both streams, one with a picture and one with sound only."""
    both = head(15, 1280, 720), tone(0.5, 48000)
    folder = tmp_path / "root" / "Actor_12"
    folder.mkdir(parents=True)
    options = {"fps": NTSC, "rate": 48000}
    write_media(folder / "01-01-06-01-02-01-12.mp4", *both, **options)
    write_media(folder / "02-01-06-01-02-01-12.mp4", both[0], None, **options)
    write_media(folder / "02-02-03-02-01-02-12.mp4", both[0], None, **options)
    write_media(
        folder / "03-01-01-01-01-01-12.wav", None, both[1], rate=48000, audio_codec="pcm_s16le"
    )
    streams = {row.path[9:11]: row.streams for row in listed("ravdess", tmp_path / "root").rows}
    assert streams == {"01": ("audio", "video"), "02": ("video",), "03": ("audio",)}
    clips = prepared("ravdess", tmp_path / "root", tmp_path / "cache")
    assert {name: clip.label for name, clip in clips.items()} == {
        "Actor_12/01-01-06-01-02-01-12.mp4": "fearful",
        "Actor_12/02-02-03-02-01-02-12.mp4": "happy",
        "Actor_12/03-01-01-01-01-01-12.wav": "neutral",
    }
    assert {(clip.speaker, clip.group, clip.split) for clip in clips.values()} == {
        ("Actor_12", "fold2", "train")
    }


def test_damaged(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Actor_01/03-01-03-01-01-01-01.wav",
        "copy/Actor_01/03-01-03-01-01-01-01.wav",
        "Actor_01/03-01-09-01-01-01-01.wav",
        "Actor_01/01-01-04-01-01-01-02.MP4",
        "Actor_25/03-01-03-01-01-01-25.wav",
        "Actor_01/04-01-03-01-01-01-01.wav",
        "Actor_01/03-01-03-01-01-01.wav",
        "readme.txt",
        ".DS_Store",
    )
    listing = listed("ravdess", tmp_path)
    assert [(row.path, row.label) for row in listing.rows] == [
        ("Actor_01/03-01-03-01-01-01-01.wav", "happy"),
        ("copy/Actor_01/03-01-03-01-01-01-01.wav", "happy"),
        ("Actor_01/01-01-04-01-01-01-02.MP4", "sad"),
        ("Actor_01/03-01-09-01-01-01-01.wav", ""),
    ]
    assert faults(listing) == {
        "copy/Actor_01/03-01-03-01-01-01-01.wav": "duplicate",
        "Actor_01/03-01-09-01-01-01-01.wav": "no label",
    }
    assert listing.remarks[0].startswith("files that are no clips of the corpus: 4 (")
    with pytest.raises(ValueError, match=r"must have files named like 01-01-06-01-02-01-12\.mp4"):
        listed("ravdess", tmp_path / "Actor_25")
