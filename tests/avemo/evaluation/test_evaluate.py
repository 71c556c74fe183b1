"""Scores against hand computation, and the files that evaluation leaves."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from avemo.data.features import FeatureConfig
from avemo.evaluation import metrics
from avemo.evaluation.evaluate import evaluate, report, score
from avemo.evaluation.predictions import Prediction
from avemo.training import checkpoint
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import BINS, FACE_SIZE, tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache

# Rows the truth: class a 3 of 4 right, b 1 of 2, c never there (but named once), d 0 of 1.
CONFUSION = torch.tensor([[3, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])


def test_measures_by_hand() -> None:
    assert metrics.accuracy(CONFUSION).item() == pytest.approx(4 / 7)
    assert metrics.unweighted_accuracy(CONFUSION).item() == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    recalls = metrics.recalls(CONFUSION).tolist()
    assert recalls[:2] == [0.75, 0.5]
    assert math.isnan(recalls[2])
    assert recalls[3] == 0


def test_scores_by_hand() -> None:
    result = metrics.scores(CONFUSION, ("a", "b", "c", "d"))
    assert result.clips == 7
    assert result.chance == pytest.approx(4 / 7)
    assert result.recalls == {"a": 0.75, "b": 0.5, "c": None, "d": 0.0}
    assert result.confusion == CONFUSION.tolist()
    # At least 4 of 7 right by guessing with 4/7: one minus the binomial's terms for 0 to 3.
    tail = 1 - sum(math.comb(7, k) * (4 / 7) ** k * (3 / 7) ** (7 - k) for k in range(4))
    assert result.p_value == pytest.approx(tail)
    # Wilson's interval, z = 1.96 for 95 percent.
    n, p, z = 7, 4 / 7, 1.959963984540054
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert result.accuracy_interval == pytest.approx((middle - half, middle + half))


def test_mcnemar_by_hand() -> None:
    # 6 clips only the first recognises, 1 only the second; what both or neither do is no evidence.
    right = [(True, False)] * 6 + [(False, True)] + [(True, True)] * 5 + [(False, False)] * 3
    assert metrics.mcnemar(right) == pytest.approx(2 * (1 + 7) / 2**7)
    assert metrics.mcnemar([(True, True), (False, False)]) == 1.0


def test_the_metric_counts_rows_as_truth() -> None:
    counter = metrics.confusion_matrix(3)
    counter.update(torch.tensor([2, 2]), torch.tensor([0, 0]))
    counter.update(torch.tensor([1]), torch.tensor([1]))
    assert counter.compute().tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_score_takes_the_most_probable_class() -> None:
    predictions = [
        Prediction("1", "", 0, [0.4, 0.35, 0.25]),
        Prediction("2", "", 0, [0.3, 0.6, 0.1]),
        Prediction("3", "", 2, [0.0, 0.1, 0.9]),
    ]
    assert score(predictions, ("a", "b", "c")).confusion == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_report_shows_every_number() -> None:
    text = report(metrics.scores(CONFUSION, ("a", "b", "c", "d")), ("a", "b", "c", "d"))
    lines = text.splitlines()
    assert any("accuracy" in line and "57.1%" in line for line in lines)
    assert any("unweighted" in line and "41.7%" in line for line in lines)
    assert lines[-4].split() == ["a", "3", "0", "1", "0", "75.0%"]
    assert lines[-2].split() == ["c", "0", "0", "0", "0", "-"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    config = TrainConfig(DataConfig(Path("gone")), model=tiny_config())
    features = FeatureConfig(bins=BINS, face_size=FACE_SIZE)
    checkpoint.save(tmp_path / "run" / "best.safetensors", tiny_model(), config, CLASSES, features)
    return tmp_path / "run" / "best.safetensors"


def test_evaluate_counts_what_the_model_says(trained: Path, tmp_path: Path) -> None:
    """Printed and saved scores are those of the saved predictions, whatever the batch size."""
    cache = write_cache(tmp_path / "cache")
    result = evaluate(trained, cache, batch_size=3)
    folder = trained.parent / "evaluation-test"
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((folder / "scores.json").read_text("utf-8"))
    assert saved["confusion"] == result.confusion
    assert saved["clips"] == result.clips == 7
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"test/{i}.mp4" for i in range(7)]
    assert [row["label"] for row in rows] == [CLASSES[i % 4] for i in range(7)]
    confusion = [[0] * 4 for _ in CLASSES]
    for row in rows:
        probabilities = [float(row[name]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["speaker"] == f"test{rows.index(row) % 2}"
        assert row["predicted"] == CLASSES[probabilities.index(max(probabilities))]
        confusion[CLASSES.index(row["label"])][CLASSES.index(row["predicted"])] += 1
    assert confusion == result.confusion
    assert evaluate(trained, cache, batch_size=7, out=tmp_path / "again") == result
    assert evaluate(trained, cache, split="val", out=tmp_path / "val").clips == 6


def test_a_cache_with_fewer_classes_keeps_the_model_s_order(trained: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", classes=("happy", "sad"))
    result = evaluate(trained, cache)
    assert [sum(row) for row in result.confusion] == [0, 4, 0, 3]


def test_caches_that_do_not_fit_are_refused(trained: Path, tmp_path: Path) -> None:
    foreign = write_cache(tmp_path / "foreign", classes=("calm", "sad"))
    with pytest.raises(ValueError, match="does not know: calm; it knows angry, happy"):
        evaluate(trained, foreign)
    config = TrainConfig(DataConfig(Path("gone")), model=tiny_config())
    features = FeatureConfig(bins=BINS, face_size=FACE_SIZE, hop_ms=20.0)
    checkpoint.save(tmp_path / "b.safetensors", tiny_model(), config, CLASSES, features)
    with pytest.raises(ValueError, match=r"hop_ms: 10\.0 instead of 20\.0"):
        evaluate(tmp_path / "b.safetensors", write_cache(tmp_path / "cache"))
    with pytest.raises(ValueError, match="split must be one of train, val, test"):
        evaluate(trained, tmp_path / "cache", split="exam")
