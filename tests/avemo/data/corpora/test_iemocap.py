"""IEMOCAP: turns cut out of the films of dialogs, labels by majority, sessions; whole and damaged."""

from pathlib import Path

import numpy as np
import pytest

from avemo.data.cache import ClipCache
from avemo.data.media import Cut
from tests.avemo.data.corpora.trees import NTSC, head, listed, prepared
from tests.avemo.data.media_files import tone, write_media

TURN = """[{start:.4f} - {end:.4f}]\t{turn}\t{code}\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-E3:\tNeutral;\t()
C-F1:\tNeutral; Sadness;\t(curious)
A-E3:\tval 3; act 2; dom  2;\t()
A-F1:\tval 3; act 2; dom  1;\t(curious)

"""


def dialog(root: Path, session: int, name: str, *turns: tuple[str, float, float, str]) -> Path:
    """Writes the evaluation of a dialog; gives the path that its film is to have."""
    folder = root / f"Session{session}" / "dialog"
    (folder / "EmoEvaluation" / "Categorical").mkdir(parents=True, exist_ok=True)
    (folder / "avi" / "DivX").mkdir(parents=True, exist_ok=True)
    said = "".join(
        TURN.format(turn=f"{name}_{turn}", start=start, end=end, code=code)
        for turn, start, end, code in turns
    )
    head_line = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    (folder / "EmoEvaluation" / f"{name}.txt").write_text(head_line + said, encoding="latin-1")
    (folder / "EmoEvaluation" / "Categorical" / f"{name}_e2_cat.txt").write_text(
        f"{name}_F000 :Neutral state; ()\n"
    )
    return folder / "avi" / "DivX" / f"{name}.avi"


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate([left, right], axis=2)


def test_turns_are_cut_out_of_the_dialog(tmp_path: Path) -> None:
    """The woman speaks from 0.5 to 1.3 s and has a face then only; so does the man from 1.3 to 2.1 s.

    Whoever wears the markers is on the left. Each turn has a tone of its own.
    """
    root = tmp_path / "IEMOCAP_full_release"
    count = [15, 24, 24, 6]  # frames before, of the one, of the other, after
    times = np.cumsum(count) * 1001 / 30000
    empty = [np.full((n, 480, 360, 3), 90, np.uint8) for n in count]
    face = head(24, 360, 480)
    woman = np.concatenate([empty[0], face, *empty[2:]])
    man = np.concatenate([*empty[:2], face, empty[3]])
    sound = np.concatenate(
        [
            tone(n * 1001 / 30000, 44100, hertz)
            for n, hertz in zip(count, (150, 450, 850, 150), strict=True)
        ]
    )
    codecs = {"video_codec": "mpeg4", "audio_codec": "libmp3lame", "fps": NTSC, "rate": 44100}
    for session, name, films in (
        (1, "Ses01F_impro01", (woman, man)),
        (5, "Ses05M_script01_1b", (man, woman)),
    ):
        film = dialog(
            root,
            session,
            name,
            ("F000", times[0], times[1], "ang" if session == 1 else "exc"),
            ("M000", times[1], times[2], "neu"),
            ("M001", times[1], times[2], "xxx"),
        )
        write_media(film, side_by_side(*films), sound, **codecs)
    out = tmp_path / "cache"
    clips = prepared("iemocap", tmp_path, out, merge="excited=happy")
    avi = "IEMOCAP_full_release/Session{0}/dialog/avi/DivX/{1}.avi#{1}_{2}"
    assert {(c.path, c.label, c.speaker, c.group, c.split) for c in clips.values()} == {
        (avi.format(1, "Ses01F_impro01", "F000"), "angry", "Ses01F", "Session1", "train"),
        (avi.format(1, "Ses01F_impro01", "M000"), "neutral", "Ses01M", "Session1", "train"),
        (avi.format(5, "Ses05M_script01_1b", "F000"), "happy", "Ses05F", "Session5", "test"),
        (avi.format(5, "Ses05M_script01_1b", "M000"), "neutral", "Ses05M", "Session5", "test"),
    }
    cache = ClipCache(out)
    for index, clip in enumerate(cache.clips):
        arrays = cache[index]
        assert len(arrays.video) == 10  # 0.8 s
        assert arrays.valid.all()
        loudest = arrays.audio[4:-4].astype(float).mean(axis=0).argmax()  # bins of 200 Hz
        assert loudest == (2 if "_F000" in clip.path else 4)


def test_labels_and_classes(tmp_path: Path) -> None:
    codes = ("ang", "hap", "sad", "neu", "exc", "fru", "fea", "sur", "dis", "oth", "xxx")
    for session in range(1, 6):
        turns = [(f"F{i:03d}", i, i + 1.0, code) for i, code in enumerate(codes)]
        dialog(tmp_path, session, f"Ses0{session}M_impro02", *turns)
    listing = listed("iemocap", tmp_path)
    assert {row.label for row in listing.rows} == {"angry", "happy", "neutral", "sad"}
    assert listing.rows[0].cut == Cut(0.0, 1.0, "right")
    assert listing.left_out["label undecided"] == listing.left_out["label frustrated"] == 5
    assert {row.split for row in listing.rows if row.group == "Session4"} == {"val"}
    merged = listed("iemocap", tmp_path, merge={"excited": "happy"})
    assert sum(row.label == "happy" for row in merged.rows) == 10
    chosen = listed("iemocap", tmp_path, classes=("fearful", "surprised"))
    assert {row.label for row in chosen.rows} == {"fearful", "surprised"}
    with pytest.raises(
        ValueError, match="classes must name labels of the corpus, got joy; it has angry, "
    ):
        listed("iemocap", tmp_path, classes=("joy",))
    with pytest.raises(
        ValueError, match="merge must name labels of the corpus, got exited; it has "
    ):
        listed("iemocap", tmp_path, merge={"exited": "happy"})


def test_damaged(tmp_path: Path) -> None:
    films = [
        dialog(tmp_path, 1, "Ses01F_impro01", ("F000", 1, 2, "ang"), ("F000", 1, 2, "ang")),
        dialog(tmp_path, 2, "Ses02F_impro01", ("F000", 2, 1, "ang"), ("M000", 1, 2, "hpy")),
        dialog(tmp_path, 3, "Ses03F_impro01", ("M000", 1, 2, "sad")),
    ]
    with (tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").open("a") as file:
        file.write("[1.0 - soon]\tSes01F_impro01_F001\tang\t[1, 1, 1]\n")
        file.write("[1.0 - 2.0]\tSes01F_impro01\tang\t[1, 1, 1]\n")
    for film in (
        films[0],
        films[1].with_name("SES02f_impro01.AVI"),
        films[1].with_name("other.avi"),
    ):
        film.write_text(film.name)
    (tmp_path / "Session3").rename(tmp_path / "session3")
    listing = listed("iemocap", tmp_path)
    avi = "Session{0}/dialog/avi/DivX/{1}.avi#Ses0{0}F_impro01_{2}"
    assert [row.name for row in listing.rows] == [
        avi.format(1, "Ses01F_impro01", "F000"),
        avi.format(1, "Ses01F_impro01", "F000"),
        avi.format(2, "SES02f_impro01", "F000").replace(".avi", ".AVI"),
        avi.format(2, "SES02f_impro01", "M000").replace(".avi", ".AVI"),
        avi.format(3, "Ses03F_impro01", "M000").replace("Session3", "session3"),
    ]
    assert [row.fault.split(":")[0] for row in listing.rows] == [
        "",
        "duplicate",
        "no such stretch",
        "no label",
        "",  # its film is missing, which opening it tells
    ]
    film = "Session2/dialog/avi/DivX/SES02f_impro01.AVI"
    assert listing.remarks == (
        "sessions without turns: 2 (Session4, Session5)",
        "films without an evaluation: 1 (Session2/dialog/avi/DivX/other.avi)",
        "evaluations with lines that cannot be read: "
        "1 (Session1/dialog/EmoEvaluation/Ses01F_impro01.txt: 2)",
        f"files whose names are in another case than published: 1 ({film})",
    )
    with pytest.raises(ValueError, match=r"must have Session1/dialog/EmoEvaluation/\*\.txt"):
        listed("iemocap", tmp_path / "Session1")
