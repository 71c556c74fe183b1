"""What the figures of attention are drawn from."""

from pathlib import Path

import numpy as np
import pytest

from avemo.data.cache import ClipCache
from avemo.data.features import Clip, FeatureConfig
from avemo.evaluation.figures import (
    AttendedClip,
    attend,
    draw_attended_clip,
    draw_curves,
    sound_level,
)
from avemo.training.checkpoint import Checkpoint
from avemo.training.config import DataConfig, TrainConfig
from tests.avemo.models.tiny_model import tiny_config, tiny_model
from tests.avemo.tiny_cache import CLASSES, write_cache


def attended(tmp_path: Path) -> tuple[Clip, AttendedClip]:
    cache = ClipCache(write_cache(tmp_path))
    clip = cache[0]
    clip.valid[1] = False
    config = TrainConfig(DataConfig(tmp_path), model=tiny_config())
    trained = Checkpoint(tiny_model(), config, CLASSES, cache.features)
    return clip, attend(trained, clip, 2.0)


def test_attention_is_the_model_s_and_none_goes_to_a_missing_face(tmp_path: Path) -> None:
    clip, result = attended(tmp_path)
    for weights in result.attention.values():
        assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert len(result.attention["video"]) == len(clip.video)
    assert result.attention["video"][1] == 0
    assert (result.attention["video"][[0, 2]] > 0).all()


def test_the_outline_is_that_of_the_power(tmp_path: Path) -> None:
    features = FeatureConfig(db_min=-100.0, db_max=0.0)
    levels = np.zeros((3, 2), np.uint8)
    levels[1], levels[2] = 255, 204  # 0 dB and -20 dB in both bins
    clip = Clip(levels, np.zeros((1, 8, 8), np.uint8), np.ones(1, bool))
    assert sound_level(clip, features) == pytest.approx(np.sqrt(2) * np.array([1e-5, 1, 0.1]))
    wave = clip._replace(audio=np.array([[3, 4], [0, -2]], np.int16))
    assert sound_level(wave, features) == pytest.approx([5, 2])


def test_figures_show_what_they_are_given(tmp_path: Path) -> None:
    _, result = attended(tmp_path)
    faces, look, sound, listen = draw_attended_clip("a clip", result).axes
    weights = result.attention["video"]
    assert look.patches[0].get_data().values == pytest.approx(weights * len(weights))
    heard = result.attention["audio"]
    assert listen.patches[0].get_data().values == pytest.approx(heard * len(heard))
    assert len(faces.images) == min(10, len(result.faces))
    assert sound.collections
    spans = [patch.get_extents().transformed(look.transData.inverted()) for patch in look.patches]
    frame = result.seconds / len(weights)
    assert [(s.x0, s.x1) for s in spans[1:]] == [pytest.approx((frame, 2 * frame))]  # no face there
    runs = {"one": [[0.1, 0.4], [0.3, 0.2]], "two": [[0.5, 0.6, 0.7]]}
    lines = draw_curves("curves", runs).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [
        [0.1, 0.4],
        [0.3, 0.2],
        pytest.approx([0.2, 0.3]),
        [0.5, 0.6, 0.7],
    ]
    assert [line.get_xdata().tolist() for line in lines] == [[1, 2], [1, 2], [1, 2], [1, 2, 3]]


def test_the_frames_of_the_highest_attention_are_marked_at_their_times() -> None:
    weights = np.array([1, 5, 2, 4, 3, 0], float) / 15
    clip = AttendedClip(
        seconds=3.0,
        faces=np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8),
        seen=np.ones(6, bool),
        level=np.ones(4),
        attention={"video": weights, "audio": np.full(4, 0.25)},
    )
    faces = draw_attended_clip("a clip", clip).axes[0]
    assert [int(image.get_array()[0, 0]) for image in faces.images] == [0, 1, 2, 3, 4, 5]
    frames = faces.patches
    assert [patch.get_linewidth() > 1 for patch in frames] == [
        False, True, False, True, True, False,
    ]  # fmt: skip
    times = [line.get_xdata()[0] for line in faces.lines]
    assert times == pytest.approx([0.25, 0.75, 1.25, 1.75, 2.25, 2.75])
