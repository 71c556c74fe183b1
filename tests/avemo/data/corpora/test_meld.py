"""MELD: official splits, Windows bytes, twins of test films, known bad ones; whole and damaged."""

import csv
import io
from pathlib import Path

import pytest

from tests.avemo.data.corpora.trees import Fraction, copy, faults, head, listed, prepared, touch
from tests.avemo.data.media_files import tone, write_media

COLUMNS = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
TRAIN, DEV, TEST = "train/train_splits", "dev_splits_complete", "output_repeated_splits_test"


def write_list(
    path: Path, *turns: tuple[str, str, object, object], encoding: str = "utf-8"
) -> None:
    """Writes a list of speakers, emotions, dialogues and utterances as the authors do."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(COLUMNS.split(","))
    for number, (speaker, emotion, dialogue, utterance) in enumerate(turns, start=1):
        said = "I don\u2019t know\u2026 \u2014 \u201cWell\u201d, she said"
        row = [number, said, speaker, emotion, "neutral", dialogue, utterance, 8, 21]
        table.writerow([*row, "00:16:16,059", "00:16:21,731"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_a_cache_of_the_three_splits(tmp_path: Path, encoding: str) -> None:
    root = tmp_path / "MELD.Raw"
    write_list(root / "train/train_sent_emo.csv", ("Chandler", "neutral", 0, 0), encoding=encoding)
    write_list(root / "dev_sent_emo.csv", ("Phoebe", "joy", 0, 0), encoding=encoding)
    write_list(root / "test_sent_emo.csv", ("Joey", "anger", 3, 1), encoding=encoding)
    names = [f"{TRAIN}/dia0_utt0.mp4", f"{DEV}/dia0_utt0.mp4", f"{TEST}/dia3_utt1.mp4"]
    if encoding != "utf-8":
        rows = listed("meld", touch(root, *names)).rows
        assert [row.path for row in rows] == names
        return
    film = write_media(
        tmp_path / "film.mp4",
        head(12, 1280, 720),
        tone(0.5, 48000)[:, None].repeat(2, 1),
        fps=Fraction(24000, 1001),
        rate=48000,
    )
    copy(film, root, *names)
    clips = prepared("meld", root, tmp_path / "cache")
    assert [(c.path, c.label, c.speaker, c.group, c.split) for c in clips.values()] == [
        (names[0], "neutral", "Chandler", "train-dia0", "train"),
        (names[1], "joy", "Phoebe", "val-dia0", "val"),
        (names[2], "anger", "Joey", "test-dia3", "test"),
    ]


def test_of_twins_the_second_film_is_the_clip(tmp_path: Path) -> None:
    write_list(tmp_path / "test_sent_emo.csv", ("Joey", "anger", 1, 0), ("Ross", "joy", 1, 1))
    names = ("dia1_utt0", "final_videos_testdia1_utt0", "dia1_utt1", "final_videos_testdia9_utt9")
    touch(tmp_path, *(f"{TEST}/{name}.mp4" for name in names))
    listing = listed("meld", tmp_path)
    assert [(row.path, row.label) for row in listing.rows] == [
        (f"{TEST}/final_videos_testdia1_utt0.mp4", "anger"),
        (f"{TEST}/dia1_utt1.mp4", "joy"),
    ]
    assert listing.left_out == {"another film of a turn of the test split": 1}
    stray = f"{TEST}/final_videos_testdia9_utt9.mp4"
    assert f"files that are no clips of the corpus: 1 ({stray})" in listing.remarks


def test_films_known_to_be_bad(tmp_path: Path) -> None:
    write_list(tmp_path / "train_sent_emo.csv", ("A", "neutral", 125, 3), ("A", "neutral", 38, 4))
    write_list(tmp_path / "test_sent_emo.csv", ("A", "joy", 38, 4), ("A", "joy", 220, 0))
    touch(tmp_path, *(f"train_splits/dia{t}.mp4" for t in ("125_utt3", "38_utt4")))
    touch(tmp_path, *(f"{TEST}/dia{t}.mp4" for t in ("38_utt4", "220_utt0")))
    assert faults(listed("meld", tmp_path)) == {
        "train_splits/dia125_utt3.mp4": "known to be bad",
        f"{TEST}/dia38_utt4.mp4": "known to be bad",
        f"{TEST}/dia220_utt0.mp4": "known to be bad",
    }


def test_damaged(tmp_path: Path) -> None:
    write_list(
        tmp_path / "train/train_sent_emo.csv",
        ("Joey", "Joy", 0, 0),
        ("Joey", "joy", 0, 0),
        ("Joey", "", 0, 1),
        ("Joey", "glee", 0, 2),
        ("Joey", "joy", "x", 3),
        ("Joey", "joy", 0, 4),
    )
    write_list(tmp_path / "train/old/train_sent_emo.csv", ("Joey", "joy", 7, 7))
    names = ("DIA0_utt0.MP4", "dia0_utt1.mp4", "dia0_utt2.mp4", "dia5_utt5.mp4", "clip.mp4")
    touch(tmp_path, *(f"{TRAIN}/{name}" for name in names), f"{TRAIN}/._dia0_utt4.mp4")
    listing = listed("meld", tmp_path)
    assert [(row.path, row.label, row.fault.split(":")[0]) for row in listing.rows] == [
        (f"{TRAIN}/DIA0_utt0.MP4", "joy", ""),
        (f"{TRAIN}/DIA0_utt0.MP4", "joy", "duplicate"),
        (f"{TRAIN}/dia0_utt1.mp4", "", "no label"),
        (f"{TRAIN}/dia0_utt2.mp4", "", "no label"),
        ("train/train_sent_emo.csv#6", "joy", "no path"),
        ("train_splits/dia0_utt4.mp4", "joy", ""),  # it is missing, which opening it tells
    ]
    assert listing.remarks == (
        "lists missing: 2 (dev_sent_emo.csv, test_sent_emo.csv)",
        "further copies of lists: 1 (train/old/train_sent_emo.csv)",
        f"files that are no clips of the corpus: 2 ({TRAIN}/clip.mp4, {TRAIN}/dia5_utt5.mp4)",
        f"files whose names are in another case than published: 1 ({TRAIN}/DIA0_utt0.MP4)",
    )


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\x00\xff\x81"])
def test_no_list_of_meld(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"must have train_sent_emo\.csv, dev_sent_emo\.csv"):
        listed("meld", tmp_path)
    (tmp_path / "test_sent_emo.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"test_sent_emo\.csv must "):
        listed("meld", tmp_path)
