"""Reading: memory-mapped, identical, and clear about what is wrong."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from avemo.data.cache import ClipCache, ClipInfo, index_json
from avemo.data.features import FeatureConfig


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, list[tuple[np.ndarray, ...]]]:
    """Two shards with three clips of random bytes."""
    rng = np.random.default_rng(0)
    clips, infos = [], []
    for shard, lengths in (("shard-00000", [(7, 3), (11, 2)]), ("shard-00001", [(5, 4)])):
        audio = video = 0
        group = []
        for audio_length, video_length in lengths:
            group.append(
                (
                    rng.integers(0, 256, (audio_length, 200), dtype=np.uint8),
                    rng.integers(0, 256, (video_length, 64, 64), dtype=np.uint8),
                    rng.integers(0, 2, video_length, dtype=np.uint8),
                )
            )
            split = ("train", "val", "train")[len(infos)]
            infos.append(
                ClipInfo(
                    f"{len(infos)}.mp4", f"c{2 - len(infos)}", "s", split, f"{shard}.safetensors",
                    audio, audio_length, video, video_length,
                )
            )  # fmt: skip
            audio, video = audio + audio_length, video + video_length
        arrays = [np.concatenate(a) for a in zip(*group, strict=True)]
        names = ("audio", "video", "valid")
        save_file(dict(zip(names, arrays, strict=True)), tmp_path / f"{shard}.safetensors")
        clips += group
    (tmp_path / "index.json").write_text(index_json(FeatureConfig(), infos))
    return tmp_path, clips


def test_reads_what_was_written(stored: tuple[Path, list]) -> None:
    path, clips = stored
    cache = ClipCache(path)
    for index in (2, 0, 1, 0):
        audio, video, valid = clips[index]
        clip = cache[index]
        np.testing.assert_array_equal(clip.audio, audio)
        np.testing.assert_array_equal(clip.video, video)
        np.testing.assert_array_equal(clip.valid, valid.astype(bool))
    assert cache.features == FeatureConfig()
    assert cache.classes == ("c0", "c1", "c2")
    assert [cache.label(i) for i in range(3)] == [2, 1, 0]
    assert cache.select("train").tolist() == [0, 2]
    assert cache.select("test").tolist() == []
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        cache.select("dev")
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again[1].audio, clips[1][0])


def test_is_memory_mapped(stored: tuple[Path, list]) -> None:
    path, _ = stored
    cache = ClipCache(path)
    cache[0]
    assert str(path / "shard-00000.safetensors") in Path("/proc/self/maps").read_text()


def test_unfinished_and_foreign(stored: tuple[Path, list], tmp_path: Path) -> None:
    path, _ = stored
    with pytest.raises(FileNotFoundError, match="run `avemo prepare`"):
        ClipCache(tmp_path / "none")
    index = json.loads((path / "index.json").read_text())
    for change, words in (
        ({"format": "other"}, "must have the format"),
        ({"features": {"colour": 1}}, "unknown feature settings"),
        ({"clips": [{**index["clips"][0], "shard": "../secret"}]}, "outside of its folder"),
    ):
        (path / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(ValueError, match=words):
            ClipCache(path)
