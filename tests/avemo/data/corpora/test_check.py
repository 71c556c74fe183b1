"""`avemo prepare CORPUS ROOT --check` counts, compares with what is published, and writes nothing."""

from pathlib import Path

import pytest

from avemo import cli
from avemo.data.corpora.check import CheckReport
from avemo.data.corpora.corpus import Published
from avemo.data.corpora.registry import CORPORA
from avemo.data.prepare import prepare
from tests.avemo.data.corpora.test_meld import TEST, write_list
from tests.avemo.data.corpora.trees import copy
from tests.avemo.data.media_files import tone, write_clip, write_media

TOTALS = {
    "afew": {"train": 773, "val": 383},
    "crema_d": {"any": 7442},
    "iemocap": {"any": 10039},
    "meld": {"train": 9989, "val": 1109, "test": 2610},
    "ravdess": {"any": 1440 + 1012},
}


@pytest.mark.parametrize("name", CORPORA)
def test_what_is_published_adds_up(name: str) -> None:
    clips = CORPORA[name].published.clips
    assert {split: sum(counts.values()) for split, counts in clips.items()} == TOTALS.get(name, {})


def test_published_numbers_of_chosen_labels() -> None:
    published = Published({"any": {"happy": 595, "excited": 1041, "sad": 1084}}, 10)
    merged = published.chosen({"excited": "happy"}, ("happy",))
    assert merged == Published({"any": {"happy": 595 + 1041}}, 10)
    assert published.chosen({}, ()) == published


def test_counts_of_a_corpus_that_is_not_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "MELD.Raw"
    write_list(root / "dev_sent_emo.csv", ("Joey", "joy", 0, 0), ("Ross", "anger", 0, 1))
    turns = [("Joey", "joy", 1, n) for n in range(5)] + [("Joey", "glee", 2, 0)]
    write_list(root / "test_sent_emo.csv", *turns)
    film = write_clip(tmp_path / "film.mp4")
    copy(film, root, "dev_splits_complete/dia0_utt0.mp4", f"{TEST}/dia1_utt0.mp4")
    copy(film, root, f"{TEST}/final_videos_testdia1_utt0.mp4", f"{TEST}/dia7_utt7.mp4")
    write_media(root / TEST / "dia1_utt1.mp4", None, tone(1.0))
    (root / TEST / "dia1_utt2.mp4").write_bytes(film.read_bytes()[:-3000])
    write_clip(root / TEST / "dia1_utt3.mp4", seconds=0.12)
    before = sorted(tmp_path.rglob("*"))
    report = prepare("meld", root, check=True, workers=1)
    assert isinstance(report, CheckReport)
    assert sorted(tmp_path.rglob("*")) == before
    assert report.clips == {("val", "joy"): 1, ("test", "joy"): 1}
    assert report.speakers == {("val", "Joey"): 1, ("test", "Joey"): 1}
    assert report.shared == {"Joey": ["val", "test"]}
    assert report.seconds == pytest.approx(2.0, abs=0.1)
    assert report.unusable == {
        "no such file": ["dev_splits_complete/dia0_utt1.mp4", f"{TEST}/dia1_utt4.mp4"],
        "no video stream": [f"{TEST}/dia1_utt1.mp4"],
        "truncated": [f"{TEST}/dia1_utt2.mp4"],
        "too short": [f"{TEST}/dia1_utt3.mp4"],
        "no label": [f"{TEST}/dia2_utt0.mp4"],
    }
    said = capsys.readouterr().out.splitlines()
    assert "2 clips can be used, 0.0 hours" in said
    (joy,) = [" ".join(line.split()) for line in said if line.startswith("joy")]
    assert joy == "joy 0 of 1743 1 of 163 1 of 402 2 of 2308"
    assert "speakers: 1 of 304" in said
    assert "  test: Joey 1" in said
    assert "left out: another film of a turn of the test split: 1" in said
    assert "lists missing: 1 (train_sent_emo.csv)" in said
    assert f"cannot be used: truncated: 1 ({TEST}/dia1_utt2.mp4)" in said
    assert f"files that are no clips of the corpus: 1 ({TEST}/dia7_utt7.mp4)" in said


def test_turns_of_one_film_are_counted_each(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", seconds=2.0)
    rows = ["path,label,split,start,end", "a.mp4,sad,train,0,1", "a.mp4,sad,train,1,2"]
    rows += ["a.mp4,happy,train,1.5,3", "a.mp4,happy,train,0.5,0.6", "a.mp4,happy,train,0,1.9"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    report = prepare("manifest", tmp_path, check=True, workers=1, max_seconds=1.5)
    assert report.clips == {("train", "sad"): 2}
    assert report.unusable == {
        "outside of the file": ["a.mp4#1.5-3"],
        "too short": ["a.mp4#0.5-0.6"],
        "too long": ["a.mp4#0-1.9"],
    }
    assert report.seconds == pytest.approx(2.0, abs=0.01)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "m.csv").write_text("path,label,split\na.mp4,sad,train\n")
    corpus = [str(tmp_path / "m.csv"), str(tmp_path)]
    assert cli.main(["prepare", *corpus, "--check", "--workers", "1"]) == 0
    assert "speakers: not known" in capsys.readouterr().out
    assert cli.main(["prepare", *corpus]) == 2
    assert "--out must be a folder for the cache" in capsys.readouterr().err
