"""What networks are given, and how training clips are changed."""

import numpy as np
import pytest
import torch

from avemo.data.augment import AugmentConfig, augment
from avemo.data.features import Clip, FeatureConfig
from avemo.data.inputs import Sample, collate, to_sample

CONFIG = FeatureConfig()


def random_clip(audio: int, video: int, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return Clip(
        rng.integers(0, 256, (audio, 200), dtype=np.uint8),
        rng.integers(0, 256, (video, 64, 64), dtype=np.uint8),
        np.ones(video, bool),
    )


def test_values_are_affine() -> None:
    clip = Clip(
        np.array([[0] * 200, [255] * 200], np.uint8),
        np.full((1, 64, 64), 176, np.uint8),
        np.ones(1, bool),
    )
    sample = to_sample(clip, CONFIG, 2, "a.mp4")
    np.testing.assert_allclose(sample.audio[:, 0], (-100 + 65) / 20, rtol=1e-6)
    np.testing.assert_allclose(sample.audio[:, 1], 65 / 20, rtol=1e-5)
    np.testing.assert_allclose(sample.video, 1.0)
    assert (sample.audio.shape, sample.audio.dtype) == ((200, 2), np.float32)
    assert (sample.label, sample.name) == (2, "a.mp4")


def test_frames_without_a_face_are_zero_and_stay_so() -> None:
    clip = random_clip(30, 5)
    missing = [1, 4]
    clip.valid[missing] = False
    before = clip.video.copy()
    sample = to_sample(clip, CONFIG)
    assert not sample.video[missing].any()
    assert sample.video[[0, 2, 3]].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(clip.video, before)  # the stored clip is not touched
    settings = {"flip": 1.0, "shift": 0.2, "contrast": 0.5, "face_mask": 0.3}
    changed = augment(sample, AugmentConfig(**settings), np.random.default_rng(1))
    assert not changed.video[missing].any()
    assert not np.array_equal(changed.video, sample.video)


def test_collate_pads_with_zeros() -> None:
    clips = [random_clip(30, 4, 0), random_clip(7, 9, 1)]
    samples = [to_sample(c, CONFIG, i, f"{i}") for i, c in enumerate(clips)]
    batch = collate(samples)
    assert batch.audio.shape == (2, 200, 30)
    assert batch.video.shape == (2, 9, 64, 64)
    assert batch.audio_lengths.tolist() == [30, 7]
    assert batch.video_lengths.tolist() == [4, 9]
    assert batch.labels.tolist() == [0, 1]
    assert batch.labels.dtype == batch.audio_lengths.dtype == torch.int64
    assert batch.names == ["0", "1"]
    assert not batch.audio[1, :, 7:].any()
    assert not batch.video[0, 4:].any()
    np.testing.assert_array_equal(batch.audio[1, :, :7], samples[1].audio)
    np.testing.assert_array_equal(batch.video[0, :4], samples[0].video)
    np.testing.assert_array_equal(batch.heard, torch.arange(30) < batch.audio_lengths[:, None])
    np.testing.assert_array_equal(batch.seen, torch.arange(9) < batch.video_lengths[:, None])


def one_stream(clip: Clip, lost: str) -> Clip:
    if lost == "audio":
        return clip._replace(audio=clip.audio[:0])
    return clip._replace(video=clip.video[:0], valid=clip.valid[:0])


@pytest.mark.parametrize(("lost", "kept"), [("audio", "video"), ("video", "audio")])
def test_a_missing_stream_is_zeros_that_nobody_hears_or_sees(lost: str, kept: str) -> None:
    whole = random_clip(81, 10)
    assert whole.streams == ("audio", "video")
    clip = one_stream(whole, lost)
    assert clip.streams == (kept,)
    sample, both = (to_sample(c, CONFIG) for c in (clip, whole))
    assert sample.audio.shape == both.audio.shape  # as long as the other stream
    assert sample.video.shape == both.video.shape
    np.testing.assert_array_equal(getattr(sample, kept), getattr(both, kept))
    assert not getattr(sample, lost).any()
    assert (sample.heard.any(), sample.seen.any()) == (lost != "audio", lost != "video")
    batch = collate([sample, both])
    assert batch.heard.all(1).tolist() == [lost != "audio", True]
    assert batch.seen.all(1).tolist() == [lost != "video", True]


def test_frames_without_a_face_are_not_seen() -> None:
    clip = random_clip(81, 10)._replace(valid=np.arange(10) % 3 > 0)
    batch = collate([to_sample(clip, CONFIG), to_sample(random_clip(7, 4), CONFIG)])
    assert batch.seen.tolist() == [clip.valid.tolist(), [True] * 4 + [False] * 6]


def test_what_is_done_to_a_batch_is_done_to_all_tensors() -> None:
    batch = collate([to_sample(random_clip(81, 10), CONFIG, 3, "a")])
    mapped = batch.map(lambda tensor: tensor.double() + 1)
    assert mapped.names == ["a"]
    for before, after in zip(batch, mapped, strict=True):
        if isinstance(before, torch.Tensor):
            np.testing.assert_array_equal(after, before.double() + 1)


def changed(seed: int = 0, **settings: float) -> tuple[Sample, Sample]:
    sample = to_sample(random_clip(100, 8), CONFIG)
    before = sample._replace(audio=sample.audio.copy(), video=sample.video.copy())
    after = augment(sample, AugmentConfig(**settings), np.random.default_rng(seed))
    np.testing.assert_array_equal(sample.audio, before.audio)  # the input is not touched
    np.testing.assert_array_equal(sample.video, before.video)
    return before, after


def test_nothing_changes_by_default() -> None:
    before, after = changed()
    np.testing.assert_array_equal(after.audio, before.audio)
    np.testing.assert_array_equal(after.video, before.video)


def test_flip() -> None:
    before, after = changed(flip=1.0)
    np.testing.assert_array_equal(after.video, before.video[:, :, ::-1])


def test_gain_is_in_decibels() -> None:
    shifts = []
    for seed in range(50):
        before, after = changed(seed, gain_db=6.0)
        shift = (after.audio - before.audio) * 20
        np.testing.assert_allclose(shift, shift.mean(), atol=1e-4)
        shifts.append(float(shift.mean()))
    assert -6 <= min(shifts) < -4
    assert 4 < max(shifts) <= 6


def test_contrast_and_brightness() -> None:
    before, after = changed(contrast=0.2)
    slope, offset = np.polyfit(before.video.ravel(), after.video.ravel(), 1)
    np.testing.assert_allclose(after.video, slope * before.video + offset, atol=1e-5)
    assert 0 < abs(slope - 1) <= 0.2
    assert 0 < abs(offset) <= 0.2


def test_shift_moves_all_frames_alike() -> None:
    moved = set()
    for seed in range(20):
        before, after = changed(seed, shift=0.1)
        places = [
            (dy, dx)
            for dy in range(-6, 7)
            for dx in range(-6, 7)
            if np.array_equal(
                after.video[:, 6:58, 6:58],
                before.video[:, 6 - dy : 58 - dy, 6 - dx : 58 - dx],
            )
        ]
        assert len(places) == 1
        moved.add(places[0])
    assert len(moved) > 10


@pytest.mark.parametrize(("name", "axis", "size"), [("time_mask", 0, 100), ("bin_mask", 1, 200)])
def test_masks_are_one_stretch(name: str, axis: int, size: int) -> None:
    widths = []
    for seed in range(60):
        before, after = changed(seed, **{name: 0.2})
        lines = np.flatnonzero((after.audio == 0).all(axis=axis))
        widths.append(len(lines))
        assert not len(lines) or lines[-1] - lines[0] == len(lines) - 1
        kept = np.setdiff1d(np.arange(size), lines)
        np.testing.assert_array_equal(
            np.take(after.audio, kept, 1 - axis), np.take(before.audio, kept, 1 - axis)
        )
    assert 0.15 * size < max(widths) <= 0.2 * size


def test_face_mask_is_one_square_in_all_frames() -> None:
    before, after = changed(3, face_mask=0.5)
    blank = (after.video == 0).all(axis=0)
    rows, columns = np.flatnonzero(blank.any(axis=1)), np.flatnonzero(blank.any(axis=0))
    assert 0 < len(rows) == len(columns) <= 32
    assert blank.sum() == len(rows) ** 2
    np.testing.assert_array_equal(after.video[:, ~blank], before.video[:, ~blank])


def test_modality_dropout_takes_one_stream_at_most() -> None:
    lost = {"audio": 0, "video": 0, "both": 0, "none": 0}
    for seed in range(200):
        _, after = changed(seed, modality_dropout=0.5)
        audio, video = after.audio.any(), after.video.any()
        assert (after.heard.all(), after.seen.all()) == (audio, video)
        assert (after.heard.any(), after.seen.any()) == (audio, video)
        lost[("both" if not video else "audio") if not audio else "none" if video else "video"] += 1
    assert lost["both"] == 0
    assert 60 < lost["none"] < 140
    assert lost["audio"] > 20
    assert lost["video"] > 20


@pytest.mark.parametrize("lost", ["audio", "video"])
def test_the_only_stream_of_a_clip_is_not_dropped_and_the_missing_one_stays_empty(
    lost: str,
) -> None:
    sample = to_sample(one_stream(random_clip(100, 8), lost), CONFIG)
    settings = AugmentConfig(modality_dropout=1.0, gain_db=6.0, contrast=0.5)
    for seed in range(20):
        after = augment(sample, settings, np.random.default_rng(seed))
        assert (after.audio.any(), after.video.any()) == (lost != "audio", lost != "video")
        assert (after.heard.any(), after.seen.any()) == (lost != "audio", lost != "video")


@pytest.mark.parametrize("settings", [{"flip": 1.5}, {"time_mask": -0.1}, {"gain_db": -1.0}])
def test_bad_settings(settings: dict) -> None:
    with pytest.raises(ValueError, match=f"augment.{next(iter(settings))}"):
        AugmentConfig(**settings)
