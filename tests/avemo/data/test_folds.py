"""Folds: every speaker is tested once and is never on two sides, whatever the corpus."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avemo import cli
from avemo.data.cache import INDEX, ClipCache, ClipInfo
from avemo.data.datamodule import ClipDataModule
from avemo.data.folds import FoldConfig, deal, folded, folds
from avemo.evaluation.compare import compare
from avemo.evaluation.evaluate import evaluate
from avemo.evaluation.predictions import read_predictions
from tests.avemo.test_cli import TINY
from tests.avemo.tiny_cache import write_cache


def clip(number: int, speaker: str, label: str, group: str = "") -> ClipInfo:
    return ClipInfo(f"{number}.mp4", label, speaker, "train", "0", 0, 1, 0, 1, group)


CORPORA = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["calm", "glad", "odd"])), min_size=1, max_size=60
).map(lambda drawn: [clip(i, f"s{who}", label) for i, (who, label) in enumerate(drawn)])


@given(CORPORA, st.one_of(st.none(), st.integers(3, 6)), st.randoms())
@settings(deadline=None)
def test_every_speaker_is_tested_once_and_never_on_two_sides(corpus, count, random) -> None:  # type: ignore[no-untyped-def]
    speakers = {c.speaker for c in corpus}
    if len(speakers) < (count or 3):
        with pytest.raises(ValueError, match=f"need as many of them, got {len(speakers)}"):
            deal(corpus, "speaker", count)
        return
    parts = deal(corpus, "speaker", count)
    number = count or len(speakers)
    assert set(parts.values()) == set(range(number))
    tested: Counter[str] = Counter()
    for n in range(number):
        clips = folded(corpus, FoldConfig(n, count))
        assert [replace(c, split="train") for c in clips] == corpus
        where = {split: {c.speaker for c in clips if c.split == split}
                 for split in ("train", "val", "test")}  # fmt: skip
        assert all(where.values())
        assert sum(map(len, where.values())) == len(speakers)
        tested.update(where["test"])
    assert tested == Counter(speakers)
    shuffled = list(corpus)
    random.shuffle(shuffled)
    assert deal(shuffled, "speaker", count) == parts


def test_classes_are_dealt_evenly() -> None:
    corpus = [clip(0, f"{label}{i}", label) for label in ("calm", "glad", "odd") for i in range(5)]
    parts = deal(corpus, "speaker", 5)
    for part in range(5):
        assert sorted(name[:-1] for name, p in parts.items() if p == part) == [
            "calm",
            "glad",
            "odd",
        ]


def test_who_has_most_clips_is_dealt_first() -> None:
    of = {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "x": 3, "y": 3}
    corpus = [clip(0, speaker, "calm") for speaker, count in of.items() for _ in range(count)]
    parts = deal(corpus, "speaker", 4)
    sizes = Counter(parts[c.speaker] for c in corpus)
    assert sorted(sizes.values()) == [3, 3, 3, 3]  # dealt last, the two would make parts of 4 and 2


def test_groups_stay_together_whoever_speaks() -> None:
    corpus = [clip(i, f"s{i % 8}", "calm", f"session{i % 4}") for i in range(40)]
    for n in range(4):
        clips = folded(corpus, FoldConfig(n, by="group"))
        assert {c.group for c in clips if c.split == "test"} == {f"session{n}"}
        assert {c.group for c in clips if c.split == "val"} == {f"session{(n + 1) % 4}"}


def test_what_cannot_be_folded_is_told() -> None:
    corpus = [clip(0, "a", "x"), clip(1, "", "x")]
    with pytest.raises(
        ValueError, match=r"speaker of every clip; 1 of 2 have none, such as 1\.mp4"
    ):
        folded(corpus, FoldConfig(0))
    with pytest.raises(ValueError, match=r"folds by group need the group of every clip"):
        folded(corpus, FoldConfig(0, by="group"))
    three = [clip(i, f"{i}", "x") for i in range(3)]
    with pytest.raises(
        ValueError, match=r"fold\.number must be below 3, the number of folds, got 3"
    ):
        folded(three, FoldConfig(3))
    assert folded(corpus, FoldConfig()) == tuple(corpus)
    with pytest.raises(ValueError, match=r"fold\.count must be at least 3"):
        FoldConfig(count=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Six speakers, two in each split."""
    return write_cache(tmp_path / "cache", {"train": 12, "val": 8, "test": 8})


def rename(cache: Path, old: str, new: str) -> None:
    index = json.loads((cache / INDEX).read_text("utf-8"))
    for found in index["clips"]:
        found["speaker"] = new if found["speaker"] == old else found["speaker"]
    (cache / INDEX).write_text(json.dumps(index), "utf-8")


def test_training_names_the_speaker_in_two_splits(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename(cache, "test1", "train0")
    out = tmp_path / "run"
    options = ["train", "--data.cache", str(cache), "--out", str(out), *TINY]
    assert cli.main(options) == 2
    assert "the speaker 'train0' is in the splits train and test: " in capsys.readouterr().err
    assert not out.exists()
    ClipDataModule(cache, shared_speakers=True).train_dataloader()
    ClipDataModule(cache, fold=FoldConfig(1, 3)).train_dataloader()  # which parts no speaker
    rename(cache, "val1", "train1")
    with pytest.raises(
        ValueError, match="'train0' is in the splits train and test, and so are 1 ot"
    ):
        ClipDataModule(cache).train_dataloader()


def test_a_leak_within_a_fold_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were folds dealt wrongly, training would say so."""

    def wrong(clips, fold):  # type: ignore[no-untyped-def]
        return tuple(replace(c, split=("train", "val", "test")[i % 3]) for i, c in enumerate(clips))

    monkeypatch.setattr("avemo.data.datamodule.folded", wrong)
    with pytest.raises(ValueError, match="the speaker 'test0' is in the splits"):
        ClipDataModule(cache, fold=FoldConfig(0)).train_dataloader()


def test_folds_are_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = folds(cache, count=3)
    assert sum(int(row["clips"]) for row in rows) == 28
    assert capsys.readouterr().out.splitlines()[0].startswith("fold 0: ")
    assert len(folds(cache)) == 6


def test_every_clip_is_tested_once_over_the_folds(cache: Path, tmp_path: Path) -> None:
    """Trained and evaluated fold by fold, and compared as one system."""
    for number in range(3):
        run = tmp_path / "system" / f"fold{number}"
        fold = ["--data.fold.number", str(number), "--data.fold.count", "3"]
        cli.run(["train", "--data.cache", str(cache), "--out", str(run), *TINY, *fold])
        evaluate(run / "best.safetensors", cache)
        expected = folded(ClipCache(cache).clips, FoldConfig(number, 3))
        answers = read_predictions(run / "evaluation-test" / "predictions.csv").clips
        assert [a.path for a in answers] == [c.path for c in expected if c.split == "test"]
    (system,) = compare([tmp_path / "system"], out=tmp_path / "out", resamples=9).systems
    assert (system.runs, system.clips) == (1, 28)
