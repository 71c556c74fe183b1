"""The share of attention in the expressive part of a clip: by hand, against integration, and of models."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avemo.data.cache import ClipCache
from avemo.evaluation.evaluate import evaluate
from avemo.evaluation.expressive import Share, Span, read_spans, share, within
from avemo.training import checkpoint
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache

HEADER = "path,duration_s,intensity,emphasis_start_s,emphasis_end_s\n"


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.1, 20),
)
def test_a_share_is_the_integral_over_the_span(
    weights: list[float], one: float, other: float, seconds: float
) -> None:
    span = Span(seconds * min(one, other), seconds * max(one, other))
    places = (np.arange(200_000) + 0.5) / 200_000
    frames = np.array(weights)[(places * len(weights)).astype(int)]
    inside = (places * seconds >= span.start) & (places * seconds < span.end)
    expected = (frames * inside).mean() * len(weights)
    assert within(np.array(weights), seconds, span) == pytest.approx(expected, abs=1e-3)


def test_shares_by_hand() -> None:
    """A clip of 2 s with two frames, one of 4 s with four; a third is neutral, a fourth attends to nothing."""
    attentions = {
        "a": np.array([0.25, 0.75]),
        "b": np.array([0.1, 0.2, 0.3, 0.4]),
        "neutral": np.array([1.0]),
        "blind": np.zeros(3),
    }
    seconds = {"a": 2.0, "b": 4.0, "neutral": 1.0, "blind": 3.0}
    spans = {"a": Span(1.0, 2.0), "b": Span(0.5, 2.0), "blind": Span(0.0, 1.0)}
    result = share(attentions, seconds, spans)
    assert result == Share(
        2,
        time=pytest.approx((0.5 + 0.375) / 2),
        attention=pytest.approx((0.75 + 0.25) / 2),
        ratio=pytest.approx(1 / 0.875),
    )
    assert share({"neutral": attentions["neutral"]}, seconds, spans) is None


@pytest.mark.parametrize("span", [Span(0.33, 1.57), Span(1.2, 2.4), Span(-0.3, 0.8), Span(-1, 3)])
def test_an_even_attention_has_its_share(span: Span) -> None:
    """Also where an emotion is said to show before the clip begins, or after it ends, as rounding may have it."""
    even = {"a": np.full(25, 1 / 25)}
    result = share(even, {"a": 2.0}, {"a": span})
    assert result is not None
    assert result.time == pytest.approx((min(span.end, 2) - max(span.start, 0)) / 2)
    assert result.ratio == pytest.approx(1)


def test_spans_are_those_of_the_corpus_and_neutral_clips_have_none(tmp_path: Path) -> None:
    file = tmp_path / "conditions.csv"
    file.write_text(HEADER + "x,2,0.8,0.3,1.1\ny,2,0,0.2,1.0\n", "utf-8")
    assert read_spans(file) == {"x": Span(0.3, 1.1)}
    file.write_text("path,intensity\nx,0.8\n", "utf-8")
    with pytest.raises(ValueError, match="missing: emphasis_start_s, emphasis_end_s"):
        read_spans(file)
    file.write_text(HEADER + "x,2,much,0.3,1.1\n", "utf-8")
    with pytest.raises(ValueError, match=r"conditions\.csv is damaged: could not convert"):
        read_spans(file)


@pytest.mark.parametrize("name", ["am_fbp", "audio"])
def test_evaluate_tells_the_shares_whatever_the_batch(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = write_cache(tmp_path / "cache")
    opened = ClipCache(cache)
    config = TrainConfig(DataConfig(Path("gone"), max_seconds=None), model=tiny_config(name))
    model = tmp_path / "run" / "best.safetensors"
    checkpoint.save(model, tiny_model(name), config, CLASSES, opened.features)
    rows = [f"{c.path},1,0.7,0.1,0.25\n" for c in opened.clips]
    (tmp_path / "conditions.csv").write_text(HEADER + "".join(rows), "utf-8")
    found = []
    for size in (1, 3, 7):
        evaluate(model, cache, batch_size=size, conditions=tmp_path / "conditions.csv")
        found.append(json.loads((model.parent / "evaluation-test" / "attention.json").read_text()))
    assert list(found[0]) == (["audio", "video"] if name == "am_fbp" else ["audio"])
    seconds = [c.seconds(opened.features) for c in opened.clips if c.split == "test"]
    for shares in found:
        assert shares["audio"]["clips"] == 7
        assert shares["audio"]["time"] == pytest.approx(np.mean([0.15 / s for s in seconds]))
        for stream, s in shares.items():
            assert s["attention"] == pytest.approx(found[0][stream]["attention"], rel=1e-4)
    assert f"{found[-1]['audio']['ratio']:.2f} times its share (7 clips)" in capsys.readouterr().out


def test_clips_that_are_cropped_do_not_count(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    opened = ClipCache(cache)
    seconds = {c.path: c.seconds(opened.features) for c in opened.clips if c.split == "test"}
    longest = sorted({*seconds.values()})[-2]  # the longest ones are cropped
    config = TrainConfig(DataConfig(Path("gone"), max_seconds=longest), model=tiny_config())
    model = tmp_path / "run" / "best.safetensors"
    checkpoint.save(model, tiny_model(), config, CLASSES, opened.features)
    rows = [f"{path},1,0.7,0.1,0.25\n" for path in seconds]
    (tmp_path / "conditions.csv").write_text(HEADER + "".join(rows), "utf-8")
    evaluate(model, cache, conditions=tmp_path / "conditions.csv")
    shares = json.loads((model.parent / "evaluation-test" / "attention.json").read_text())
    assert shares["video"]["clips"] == sum(s <= longest for s in seconds.values()) < len(seconds)
