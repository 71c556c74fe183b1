"""AFEW: folders of the EmotiW challenges and lists of the baseline kit; whole and damaged."""

from pathlib import Path

import pytest

from avemo.data.corpora.afew import CORPUS, EMOTIONS
from tests.avemo.data.corpora.trees import copy, faults, head, listed, prepared, touch
from tests.avemo.data.media_files import tone, write_media

CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


def test_all_that_is_published(tmp_path: Path) -> None:
    for folder, split in (("Train_AFEW", "train"), ("Val_AFEW", "val")):
        for label in CLASSES:
            count = CORPUS.published.clips[split][label.lower()]
            touch(tmp_path, *(f"{folder}/{label}/{i:09d}.avi" for i in range(0, 40 * count, 40)))
    touch(tmp_path, *(f"Test_vid_Distribute/{i:09d}.avi" for i in range(3)))
    touch(tmp_path, "Train_AFEW/AlignedFaces_LBPTOP_Points/Faces/000000040/001.jpg")
    listing = listed("afew", tmp_path)
    assert [sum(row.split == split for row in listing.rows) for split in ("train", "val")] == [
        773,
        383,
    ]
    assert {row.label for row in listing.rows} == set(EMOTIONS)
    assert not faults(listing)
    assert listing.left_out == {"test clip, whose label is not public": 3}
    assert not listing.remarks


@pytest.mark.parametrize("kit", [False, True])
def test_a_cache_of_folders_and_of_lists(tmp_path: Path, kit: bool) -> None:
    """Names repeat in splits; lists say labels by name or number, with or without folder and ending."""
    film = write_media(
        tmp_path / "film.avi",
        head(20, 720, 576),
        tone(0.8, 48000),
        video_codec="mpeg4",
        audio_codec="libmp3lame",
        rate=48000,
    )
    root = tmp_path / "root"
    names = ["Train_AFEW/Happy/000046280.avi", "Train_AFEW/Sad/010135638.avi"]
    names += ["Val_AFEW/Angry/000046280.avi", "Val_AFEW/Surprise/011400800.avi"]
    copy(film, root, *names)
    if kit:
        (root / "afew_train.txt").write_text("Happy/000046280 Happy\n010135638.avi 5\n")
        (root / "afew_eval.txt").write_text(
            "Angry/000046280.avi 0\r\nSurprise/011400800 Surprise\r\n"
        )
    clips = prepared("afew", root, tmp_path / "cache")
    assert sorted((c.path, c.label, c.split) for c in clips.values()) == [
        (names[0], "happy", "train"),
        (names[1], "sad", "train"),
        (names[2], "angry", "val"),
        (names[3], "surprise", "val"),
    ]


def test_damaged_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Train_AFEW/happy/1.AVI",
        "Train_AFEW/Joy/2.avi",
        "Train_AFEW/3.avi",
        "other/Happy/4.avi",
        "Train_AFEW/Happy/notes.txt",
    )
    (tmp_path / "Train_AFEW/Happy/5.avi").symlink_to(tmp_path / "Train_AFEW/happy/1.AVI")
    listing = listed("afew", tmp_path)
    assert [(row.path, row.label, row.fault.split(":")[0]) for row in listing.rows] == [
        ("Train_AFEW/3.avi", "", "no label"),
        ("Train_AFEW/Happy/5.avi", "happy", ""),
        ("Train_AFEW/Joy/2.avi", "", "no label"),
        ("Train_AFEW/happy/1.AVI", "happy", "duplicate"),
    ]
    assert listing.remarks == (
        "splits without clips: 1 (val)",
        "files that are no clips of the corpus: 1 (other/Happy/4.avi)",
    )
    with pytest.raises(ValueError, match="must have folders like Train_AFEW/Angry, or lists"):
        listed("afew", tmp_path / "other")


def test_damaged_lists(tmp_path: Path) -> None:
    touch(tmp_path, "Train/Happy/1.avi", "Train/Happy/2.avi", "Train/Sad/3.avi")
    lines = ["Happy/1 Happy", "Happy/1.avi Happy", "Happy/2 Joy", "Happy/9 Happy", "Happy/2", ""]
    lines += ["../secret Happy", "/etc/passwd Happy", "a b c", "..\\secret 3", "../3 Sad"]
    (tmp_path / "list_train.txt").write_text("\n".join(lines))
    listing = listed("afew", tmp_path)
    assert [(row.path, row.fault.split(":")[0]) for row in listing.rows] == [
        ("Train/Happy/1.avi", ""),
        ("Train/Happy/1.avi", "duplicate"),
        ("Train/Happy/2.avi", "no label"),
        ("Happy/9", ""),  # it is missing, which opening it tells
        ("../secret", "path outside of the root"),
        ("/etc/passwd", "path outside of the root"),
        ("..\\secret", "path outside of the root"),
        ("../3", "path outside of the root"),
    ]
    assert listing.left_out == {"in no list": 1}
    assert "lists with lines that cannot be read: 1 (list_train.txt: 2)" in listing.remarks


def test_numbers_in_another_order_are_no_labels(tmp_path: Path) -> None:
    """Lists of others count neutral last, as FER does: the folders of the clips show it."""
    fer = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
    touch(tmp_path, *(f"Train_AFEW/{label}/{i}.avi" for i, label in enumerate(fer)), "Val/9.avi")
    (tmp_path / "train.txt").write_text("".join(f"{i}.avi {i}\n" for i in range(7)))
    (tmp_path / "val.txt").write_text("9 6\nSad/8 4\n")
    found = {row.path: (row.label, row.fault) for row in listed("afew", tmp_path).rows}
    same = ("Angry", "Disgust", "Fear", "Happy")
    assert found["Val/9.avi"] == ("surprise", "")
    for i, label in enumerate(fer):
        path = f"Train_AFEW/{label}/{i}.avi"
        assert found[path][0] == (label.lower() if label in same else "")
    order = "no label: 4 is neutral in alphabetical order, its folder is sad;"
    assert found["Train_AFEW/Sad/4.avi"][1].startswith(order)
    assert found["Sad/8"][1].startswith(order)
