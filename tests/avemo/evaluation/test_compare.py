"""Systems compared by their files of predictions: seeds, folds, what does not fit, and what is written."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avemo import cli
from avemo.evaluation import metrics
from avemo.evaluation.compare import compare, compare_systems, find_predictions, save
from avemo.evaluation.predictions import (
    Prediction,
    Predictions,
    read_predictions,
    write_predictions,
)

CLASSES = ("calm", "glad", "odd")


def predictions(answers: str, first: int = 0, classes: tuple[str, ...] = CLASSES) -> Predictions:
    """One clip for each letter, of class number i modulo 3: `r` is right, others name a class."""
    clips = []
    for i, letter in enumerate(answers, start=first):
        label = i % 3
        said = label if letter == "r" else int(letter)
        sure = [0.1] * 3
        sure[said] = 0.8
        clips.append(Prediction(f"{i}.mp4", f"s{i // 4}", label, sure))
    return Predictions(classes, clips)


def write_runs(folder: Path, runs: Mapping[str, Predictions]) -> Path:
    for name, (classes, clips) in runs.items():
        write_predictions(folder / name / "evaluation-test", classes, clips)
    return folder


def test_predictions_come_back_to_the_bit(tmp_path: Path) -> None:
    clips = [
        Prediction('a "b", c.mp4', "Ann, O'", 1, [1 / 3, 0.1 + 0.2, 1e-30]),
        Prediction("ü\n.mp4", "", 0, [0.25, 0.25, 0.5]),
    ]
    assert read_predictions(write_predictions(tmp_path, CLASSES, clips)) == (CLASSES, clips)


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text("path,label,predicted,calm\n1,calm,calm,1.0\n", "utf-8")
    with pytest.raises(ValueError, match=r"must have the columns path, speaker, label, predicted"):
        read_predictions(file)
    file.write_text("path,speaker,label,predicted,calm\n1,a,odd,calm,1.0\n", "utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        read_predictions(file)
    file.write_text("path,speaker,label,predicted,calm\n" + "1,a,calm,calm,1.0\n" * 2, "utf-8")
    with pytest.raises(ValueError, match="has the clip 1 twice"):
        read_predictions(file)


def test_a_table_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twelve clips; the second system is right on five that the first is not, wrong on one it is."""
    for name, answers in {"base": "rrrrr1201202", "ours": "0rrrrrrrrr02"}.items():
        write_runs(tmp_path, {name: predictions(answers)})
    assert predictions("rrrrr1201202").clips[5].predicted == 1
    out = tmp_path / "out"
    result = compare([tmp_path / "base", tmp_path / "ours"], out=out, resamples=999)
    base, ours = result.systems
    assert (base.name, base.runs, base.clips) == ("base", 1, 12)
    right = [[p.predicted == p.label for p in predictions(a).clips] for a in
             ("rrrrr1201202", "0rrrrrrrrr02")]  # fmt: skip
    assert base.accuracies == [sum(right[0]) / 12]
    assert ours.measures["accuracy"].value == sum(right[1]) / 12
    (pair,) = result.pairs
    both = list(zip(right[1], right[0], strict=True))
    assert (pair.first, pair.second) == ("ours", "base")
    assert pair.only_first == [both.count((True, False))]
    assert pair.only_second == [both.count((False, True))]
    assert pair.mcnemar == pair.mcnemar_holm == metrics.mcnemar(both)
    assert sum(map(sum, ours.confusion)) == 12
    saved = json.loads((out / "comparison.json").read_text("utf-8"))
    assert saved["pairs"][0]["mcnemar"] == pair.mcnemar
    with (out / "systems.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["system"] for r in rows] == ["base", "ours"]
    assert float(rows[1]["accuracy"]) == ours.measures["accuracy"].value
    assert float(rows[1]["accuracy_low"]) == ours.measures["accuracy"].interval.low
    with (out / "pairs.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["p_bootstrap"]) == pair.difference.p_value
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("12 clips;")
    assert shown[3].startswith("ours")
    assert f"{pair.mcnemar:.2g}" in shown[3]


def test_the_same_answers_have_a_p_value_of_one() -> None:
    same = predictions("rr0r1r")
    (pair,) = compare_systems({"a": [same], "b": [same]}, resamples=99).pairs
    assert pair.mcnemar == pair.difference.p_value == 1


def test_seeds_are_paired_and_folds_are_put_together(tmp_path: Path) -> None:
    """Two seeds of two folds each, found in folders: twice eight clips, tests seed by seed."""
    answers = {"a": ("rrrr0r1r", "rrrrrr1r"), "b": ("0rr10r1r", "00rr0r10")}
    for name, seeds in answers.items():
        runs = {}
        for seed, said in enumerate(seeds):
            runs[f"seed{seed}/fold0"] = predictions(said[:4])
            runs[f"seed{seed}/fold1"] = predictions(said[4:], first=4)
        write_runs(tmp_path / name, runs)
    result = compare([tmp_path / "b", tmp_path / "a"], out=tmp_path / "out", resamples=99)
    rights = {
        name: [[p.predicted == p.label for p in predictions(said).clips] for said in seeds]
        for name, seeds in answers.items()
    }
    for system in result.systems:
        assert (system.runs, system.clips) == (2, 8)
        assert system.accuracies == [sum(right) / 8 for right in rights[system.name]]
        assert system.measures["accuracy"].value == pytest.approx(sum(system.accuracies) / 2)
        given = [c for said in answers[system.name] for c in predictions(said).clips]
        assert system.confusion == [
            [sum((c.label, c.predicted) == (true, said) for c in given) for said in range(3)]
            for true in range(3)
        ]
    with (tmp_path / "out" / "systems.csv").open(newline="", encoding="utf-8") as file:
        assert [(r["runs"], r["clips"]) for r in csv.DictReader(file)] == [("2", "8")] * 2
    (pair,) = result.pairs
    tests = [
        metrics.mcnemar(list(zip(a, b, strict=True)))
        for a, b in zip(rights["a"], rights["b"], strict=True)
    ]
    assert pair.mcnemar == metrics.combine(tests)
    whole = compare_systems(
        {n: [predictions(said) for said in seeds] for n, seeds in reversed(answers.items())},
        resamples=99,
    )
    assert whole == result


def test_one_run_is_held_against_every_seed() -> None:
    one, seeds = predictions("rr01"), [predictions("rrr1"), predictions("r0rr")]
    (pair,) = compare_systems({"one": [one], "seeds": seeds}, resamples=99).pairs
    assert len(pair.only_first) == 2
    with pytest.raises(ValueError, match=r"equally many runs on all clips, or one.*a 2, b 3"):
        compare_systems({"a": seeds, "b": [one, one, one]}, resamples=99)


def test_all_pairs_are_corrected_together() -> None:
    systems = {n: [predictions(a)] for n, a in
               {"a": "0" * 12, "b": "r" * 12, "c": "rrrrrr000000", "d": "r00000r00000"}.items()}  # fmt: skip
    first = compare_systems(systems, resamples=99)
    every = compare_systems(systems, resamples=99, pairs="all")
    assert [(p.first, p.second) for p in first.pairs] == [("b", "a"), ("c", "a"), ("d", "a")]
    assert len(every.pairs) == 6
    for result in (first, every):
        assert [p.mcnemar_holm for p in result.pairs] == metrics.holm(
            [p.mcnemar for p in result.pairs]
        )
        assert [p.bootstrap_holm for p in result.pairs] == metrics.holm(
            [p.difference.p_value for p in result.pairs]
        )
    assert every.pairs[0].mcnemar == first.pairs[0].mcnemar
    assert every.pairs[0].mcnemar_holm > first.pairs[0].mcnemar_holm


def test_every_value_is_in_the_column_of_its_name(tmp_path: Path) -> None:
    systems = {n: [predictions(a)] for n, a in
               {"a": "0" * 12, "b": "r" * 12, "c": "rrrrrr000000"}.items()}  # fmt: skip
    result = compare_systems(systems, resamples=999, pairs="all")
    save(tmp_path, result)
    with (tmp_path / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    different = 0
    for row, pair in zip(rows, result.pairs, strict=True):
        values = {
            "p_mcnemar": pair.mcnemar,
            "p_mcnemar_holm": pair.mcnemar_holm,
            "p_bootstrap": pair.difference.p_value,
            "p_bootstrap_holm": pair.bootstrap_holm,
        }
        assert {name: float(row[name]) for name in values} == values
        assert (row["first"], row["second"]) == (pair.first, pair.second)
        assert float(row["difference"]) == pair.difference.value
        different += len(set(values.values())) == 4
    assert different


def test_systems_of_one_folder_name_keep_their_paths(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        write_runs(tmp_path, {name: predictions("rr0r")})
    result = compare([tmp_path / "x/run", tmp_path / "y/run"], out=tmp_path / "o", resamples=9)
    assert [s.name for s in result.systems] == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]


def test_a_run_with_predictions_of_its_own_is_not_its_members(tmp_path: Path) -> None:
    """As an ensemble's folder has them, and those of its members below."""
    write_runs(
        tmp_path, {name: predictions("rr") for name in ("all", "all/0-audio", "all/1-video")}
    )
    own = tmp_path / "all" / "evaluation-test" / "predictions.csv"
    assert find_predictions(tmp_path / "all", "test") == [own]
    assert find_predictions(own.parent, "test") == [own]
    assert len(find_predictions(tmp_path, "test")) == 3


def test_a_class_that_one_system_alone_knows_counts_for_all() -> None:
    wider = (*CLASSES, "new")
    said = [c._replace(probabilities=[*c.probabilities, 0.0]) for c in predictions("rrr0").clips]
    said[1] = said[1]._replace(probabilities=[0.1, 0.1, 0.1, 0.7])
    result = compare_systems(
        {"a": [predictions("rr00")], "b": [Predictions(wider, said)]}, resamples=99
    )
    assert result.classes == wider
    a, b = (system.confusion for system in result.systems)
    assert a == [[2, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert b == [[2, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", [0, 3])
def test_bootstraps_are_of_the_seed_asked_for(seed: int) -> None:
    said = {"a": "rr0r1r01rrr0", "b": "r00r1r0rr1r0"}
    result = compare_systems(
        {n: [predictions(x)] for n, x in said.items()}, seed=seed, resamples=99
    )
    counts = {}
    for name, answers in said.items():
        counts[name] = torch.zeros(1, len(answers), 3, 3)
        for i, clip in enumerate(sorted(predictions(answers).clips)):  # as they are drawn
            counts[name][0, i, clip.label, clip.predicted] = 1
    drawn = {"resamples": 99, "seed": seed}
    for system in result.systems:
        for name, measure in metrics.MEASURES.items():
            expected = metrics.bootstrap(measure, counts[system.name], **drawn)
            assert system.measures[name] == expected
    (pair,) = result.pairs
    assert pair.difference == metrics.bootstrap(metrics.accuracy, counts["b"], counts["a"], **drawn)


def test_a_system_is_not_compared_with_itself(tmp_path: Path) -> None:
    write_runs(tmp_path, {"a": predictions("rr"), "b": predictions("r0")})
    runs = [tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a"]
    with pytest.raises(ValueError, match=r"each run once, got .*/a and .*/b/\.\./a"):
        compare(runs, out=tmp_path / "out", resamples=9)


def test_what_does_not_fit_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path, {"a": predictions("rrrr"), "b": predictions("rr")})
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err == (
        "avemo: error: systems must be compared on the same clips, but b lacks 2 that a has: "
        "2.mp4, 3.mp4\n"
    )
    with pytest.raises(ValueError, match="but a lacks 2 that b has"):
        compare_systems({"a": [predictions("rr")], "b": [predictions("rrrr")]})
    with pytest.raises(ValueError, match=r"a, run 2 lacks 1 that a, run 1 has: 0\.mp4"):
        compare_systems({"a": [predictions("rrr"), predictions("rr", first=1)]})
    other = Predictions(("glad", "calm", "odd"), predictions("rrr").clips)
    with pytest.raises(ValueError, match=r"label of 0\.mp4 is 'calm' for a, but 'glad' for b"):
        compare_systems({"a": [predictions("rrr")], "b": [other]})
    with pytest.raises(FileNotFoundError, match="no such folder: nowhere"):
        find_predictions(Path("nowhere"), "val")
    with pytest.raises(FileNotFoundError, match="no predictions of the split 'val'"):
        find_predictions(tmp_path / "a", "val")
    nameless = Predictions(CLASSES, [c._replace(speaker="") for c in predictions("rr").clips])
    with pytest.raises(ValueError, match=r"2 have none, such as 0\.mp4"):
        compare_systems({"a": [nameless]}, unit="speaker")


def test_speakers_are_drawn_whole() -> None:
    said = predictions("rrrr0120rrrr")  # the second of three speakers is never recognised
    clips = compare_systems({"a": [said]}).systems[0].measures["accuracy"]
    speakers = compare_systems({"a": [said]}, unit="speaker").systems[0].measures["accuracy"]
    assert speakers.value == clips.value
    assert speakers.interval.high - speakers.interval.low > clips.interval.high - clips.interval.low


@given(st.permutations(range(6)), st.text("r01", min_size=6, max_size=6))
@settings(deadline=None, max_examples=25)
def test_neither_the_order_of_clips_nor_of_classes_matters(order: list[int], said: str) -> None:
    plain = predictions(said)
    turned = Predictions(
        CLASSES[::-1],
        [
            c._replace(label=2 - c.label, probabilities=c.probabilities[::-1])
            for c in (plain.clips[i] for i in order)
        ],
    )
    result = compare_systems({"a": [plain], "b": [turned]}, resamples=49)
    assert result.systems[0].measures == result.systems[1].measures
    assert result.systems[0].confusion == result.systems[1].confusion
    assert result.pairs[0].mcnemar == 1
