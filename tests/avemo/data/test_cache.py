"""Reading: memory-mapped, identical, and clear about what is wrong."""

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avemo.data.cache import CacheError, ClipCache, ClipInfo, index_json, shard_content
from avemo.data.features import Clip, FeatureConfig


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
        stored = [Clip(audio, video, valid.astype(bool)) for audio, video, valid in group]
        (tmp_path / f"{shard}.safetensors").write_bytes(shard_content(stored))
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


def test_clips_with_one_stream_are_told_apart(tmp_path: Path) -> None:
    """Clips that have no frames of a stream share a place in it, and it may be empty as a whole."""
    rng = np.random.default_rng(0)
    for name, lengths in (
        ("mixed", [(0, 3), (0, 2), (7, 0), (5, 0), (4, 2), (3, 0)]),
        ("sound", [(7, 0), (5, 0)]),
        ("picture", [(0, 2), (0, 3)]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        clips, infos, audio, video = [], [], 0, 0
        for number, (heard, seen) in enumerate(lengths):
            infos.append(
                ClipInfo(
                    f"{number}", "sad", "", "train", "0.safetensors", audio, heard, video, seen
                )
            )
            audio, video = audio + heard, video + seen
            sound = rng.integers(0, 256, (heard, 200), dtype=np.uint8)
            faces = rng.integers(0, 256, (seen, 64, 64), dtype=np.uint8)
            clips.append(Clip(sound, faces, rng.integers(0, 2, seen).astype(bool)))
        (folder / "0.safetensors").write_bytes(shard_content(clips))
        (folder / "index.json").write_text(index_json(FeatureConfig(), infos))
        cache = ClipCache(folder)
        for number, clip in enumerate(clips):
            for stored, made in zip(cache[number], clip, strict=True):
                np.testing.assert_array_equal(stored, made)
            assert cache.clips[number].streams == cache[number].streams == clip.streams


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
        ({"format": "avemo-cache-2"}, "got 'avemo-cache-2'; prepare the corpus into another"),
        ({"features": {"colour": 1}}, "unknown feature settings"),
        ({"clips": [{**index["clips"][0], "shard": "../secret"}]}, "outside of its folder"),
    ):
        (path / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(ValueError, match=words):
            ClipCache(path)


def _damage(file: Path, at: int, count: int) -> None:
    """Changes one bit of each of some bytes."""
    content = bytearray(file.read_bytes())
    for place in range(at, at + count):
        content[place] ^= 1
    file.write_bytes(content)


def test_every_changed_byte_of_a_clip_is_found(stored: tuple[Path, list]) -> None:
    path, clips = stored
    shard = path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for clip in clips[:2]:
        for array in clip:
            at = whole.index(array.tobytes(), header)
            for place in (at, at + array.size - 1):
                shard.write_bytes(whole)
                _damage(shard, place, 1)
                cache = ClipCache(path)
                sound = [_sound(cache, index) for index in range(3)]
                assert sound.count(False) == 1, (place, sound)
                assert sound[2]


def _sound(cache: ClipCache, index: int) -> bool:
    with contextlib.suppress(CacheError):
        cache[index]
        return True
    said = r"shard-00000.safetensors is damaged \(.*`avemo prepare`"
    with pytest.raises(CacheError, match=said):
        cache[index]
    return False


def test_a_shard_cut_short_missing_or_of_another_index_is_named(stored: tuple[Path, list]) -> None:
    path, _ = stored
    first, second = (path / f"shard-0000{i}.safetensors" for i in range(2))
    whole = first.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b""):
        first.write_bytes(content)
        with pytest.raises(
            CacheError, match=r"shard-00000.safetensors is damaged \(.*avemo prepare"
        ):
            ClipCache(path)[0]
    first.write_bytes(second.read_bytes())
    with pytest.raises(CacheError, match=r"shard-00000.safetensors is damaged"):
        ClipCache(path)[1]
    first.unlink()
    with pytest.raises(CacheError, match=r"shard-00000.safetensors is missing; `avemo prepare`"):
        ClipCache(path)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: [], "is damaged"),
        (lambda index: {}, "has no 'format'"),
        (lambda index: index | {"clips": [{"path": "a"}]}, "is damaged"),
        (lambda index: _first(index, label="none of them"), "label of 0.mp4 is 'none of them'"),
        (lambda index: _first(index, split="dev"), "split of 0.mp4 is 'dev'"),
        (lambda index: _first(index, audio_offset=-1), "places of 0.mp4"),
        (lambda index: _first(index, video_length="3"), "places of 0.mp4"),
        (
            lambda index: _first(index, audio_length=0, video_length=0),
            "0.mp4 has neither sound nor picture",
        ),
    ],
)
def test_a_damaged_index_is_named(change: Any, words: str, stored: tuple[Path, list]) -> None:
    file = stored[0] / "index.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(CacheError, match=words) as caught:
        ClipCache(stored[0])
    assert str(caught.value).startswith(f"{file} is damaged: ")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CacheError, match="is damaged"):
        ClipCache(stored[0])


def _first(index: dict[str, Any], **changes: Any) -> dict[str, Any]:
    first, *others = index["clips"]
    return index | {"clips": [first | changes, *others]}
