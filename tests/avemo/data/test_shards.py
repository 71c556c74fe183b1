"""Tar shards: from a folder, an object store and a web server, every clip once, the same after an interruption."""

import json
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from avemo.data.augment import AugmentConfig
from avemo.data.cache import CacheError, ClipCache
from avemo.data.datamodule import BatchLoader, ClipDataModule, EpochSampler, Share, SharedBatches
from avemo.data.objects import ObjectError, open_objects
from avemo.data.shards import ShardedClips, open_clips, shards
from avemo.storage import WriteError
from profiling.object_store import object_store
from tests.avemo.tiny_cache import write_cache

AUGMENT = AugmentConfig(flip=0.5, shift=0.2, gain_db=6.0, time_mask=0.3, modality_dropout=0.3)
CLIPS = {"train": 23, "val": 6, "test": 7}
SMALL_MB = 0.02  # a few clips


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache"), CLIPS)


@pytest.fixture(scope="module")
def store(cache: Path) -> Iterator[str]:
    """A place in an object store."""
    with object_store() as bucket:
        shards(cache, out=f"{bucket}/a/b", shard_mb=SMALL_MB)
        yield f"{bucket}/a/b"


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "of"
    shards(cache, out=str(out), shard_mb=SMALL_MB)
    return out


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    """A web server that has the folder."""
    handler = partial(_Silent, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{folder.name}"
        server.shutdown()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _equal(clip: object, other: object) -> None:
    for a, b in zip(clip, other, strict=True):  # type: ignore[call-overload]
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _same(a: list, b: list) -> bool:
    return len(a) == len(b) and all(
        x.names == y.names and torch.equal(x.audio, y.audio) and torch.equal(x.video, y.video)
        for x, y in zip(a, b, strict=True)
    )


def _module(place: Path | str, kept: Path, **more: object) -> ClipDataModule:
    settings = {"batch_size": 4, "seed": 3, "augment": AUGMENT, "shards_mixed": 2} | more
    return ClipDataModule(kept, shards=str(place), **settings)  # type: ignore[arg-type]


def _epoch(module: ClipDataModule, epoch: int) -> list:
    loader = module.train_dataloader()
    loader.set_epoch(epoch)
    return list(loader)


def test_every_clip_is_the_caches_wherever_the_shards_are(
    cache: Path, folder: Path, store: str, web: str, tmp_path: Path
) -> None:
    whole = ClipCache(cache)
    places = (str(folder), store, web)
    for number, place in enumerate(places):
        found = open_clips(tmp_path / str(number), place)
        assert len(found) == len(whole)
        for index in (*range(len(whole)), 0):
            _equal(found[index], whole[index])
            assert found.label(index) == whole.label(index)
            assert found.clips[index].path == whole.clips[index].path
        assert (found.features, found.classes) == (whole.features, whole.classes)
    _equal(open_clips(folder)[5], whole[5])  # the shards themselves, without a copy
    assert not [*folder.glob("*.lock")]


def test_the_same_cache_gives_the_same_bytes_and_splits_do_not_mix(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    report = shards(cache, out=str(tmp_path), shard_mb=SMALL_MB)
    names = sorted(file.name for file in folder.iterdir())
    assert names == sorted(file.name for file in tmp_path.iterdir())
    assert all((folder / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)
    assert report.shards == len(names) - 1 >= 6
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.tar"))
    for clip in ShardedClips(folder, 1).clips:
        assert clip.shard.startswith(clip.split)
    shards(cache, out=str(tmp_path), shard_mb=SMALL_MB)  # again is no error
    other = write_cache(tmp_path / "other", {"train": 5, "val": 1})
    with pytest.raises(FileExistsError, match="shards of another cache"):
        shards(other, out=str(tmp_path))
    with pytest.raises(FileExistsError, match="has a cache"):
        shards(cache, out=str(cache))


def test_webdataset_reads_them(cache: Path, folder: Path) -> None:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    whole, seen = ClipCache(cache), set()
    for sample in webdataset.WebDataset(files, shardshuffle=False):
        index, said = int(sample["__key__"]), json.loads(sample["json"])
        info = whole.clips[index]
        assert said == {n: getattr(info, n) for n in ("label", "split", "speaker", "path")}
        np.testing.assert_array_equal(load(sample["safetensors"])["audio"], whole[index].audio)
        seen.add(index)
    assert seen == set(range(len(whole)))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("mixed", [1, 2, 100])
@pytest.mark.parametrize("count", [1, 4, 23])
def test_an_epoch_has_each_clip_once_for_any_number_of_processes_and_shards(
    processes: int, mixed: int, count: int
) -> None:
    """And the batches of all together are the same; no more than a few shards are wanted at once."""
    indices = np.arange(100, 123)
    groups = np.arange(23) % count
    for epoch in range(3):
        order = EpochSampler(indices, 7, None, groups, mixed)
        order.set_epoch(epoch)
        whole = list(SharedBatches(order, 4, False, Share()))
        shares = [
            list(SharedBatches(order, 4, False, Share(n, processes))) for n in range(processes)
        ]
        assert len({len(share) for share in shares}) == 1
        for number, batch in enumerate(whole):
            together = [key for share in shares for key in share[number]]
            assert sorted(together) == sorted(batch)
        came = [key[1] for batch in whole for key in batch]
        assert sorted(came) == indices.tolist()
        turns = [groups[place - 100] for place in came]
        runs = 1 + sum(len({*turns[:i]} & {*turns[i:]}) == 0 for i in range(1, 23))
        assert runs >= -(-count // mixed)
        if count <= mixed:
            plain = EpochSampler(indices, 7)
            plain.set_epoch(epoch)
            assert came == [key[1] for key in plain]


def test_shards_come_in_another_order_in_every_epoch() -> None:
    groups = np.arange(40) // 5
    order = EpochSampler(np.arange(40), 7, None, groups, mixed=1)

    def turns(epoch: int) -> tuple[int, ...]:
        order.set_epoch(epoch)
        return tuple(dict.fromkeys(int(groups[place]) for _, place, _ in order))

    assert len({turns(epoch) for epoch in range(4)}) == 4
    assert turns(0) == turns(0)


def test_batches_are_those_of_the_cache_where_all_shards_are_mixed(
    cache: Path, store: str, tmp_path: Path
) -> None:
    mapped = ClipDataModule(cache, batch_size=4, seed=3, augment=AUGMENT)
    streamed = _module(store, tmp_path, shards_mixed=99)
    assert _same(_epoch(mapped, 1), _epoch(streamed, 1))
    assert _same(list(mapped.val_dataloader()), list(streamed.val_dataloader()))
    few = _epoch(_module(store, tmp_path), 1)
    assert not _same(few, _epoch(mapped, 1))
    names = [name for batch in few for name in batch.names]
    assert sorted(names) == sorted(f"train/{i}.mp4" for i in range(CLIPS["train"]))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_middle_of_an_epoch_goes_on_where_it_was(
    workers: int, store: str, web: str, tmp_path: Path
) -> None:
    """Clips and what was changed in them at random, with another folder and number of processes that read ahead."""
    unbroken = _epoch(_module(store, tmp_path / "a"), 2)
    loader = _module(store, tmp_path / "b").train_dataloader()
    loader.set_epoch(2)
    begun = iter(loader)
    before = [next(begun) for _ in range(3)]
    state = loader.state_dict()
    begun.close()  # type: ignore[attr-defined]
    other: BatchLoader = _module(web, tmp_path / "c", num_workers=workers).train_dataloader()
    other.load_state_dict(state)
    other.set_epoch(2)
    assert _same(before + list(other), unbroken)


def test_copies_take_no_more_room_than_they_may_and_go_when_they_are_old(
    folder: Path, tmp_path: Path
) -> None:
    sizes = [file.stat().st_size for file in folder.glob("*.tar")]
    room = 2 * max(sizes)
    module = _module(folder, tmp_path, shards_gb=room / 1e9)
    for epoch in range(2):
        names = [n for batch in _epoch(module, epoch) for n in batch.names]
        assert len({*names}) == len(names) == CLIPS["train"]
        kept = [file.stat().st_size for file in tmp_path.glob("*.tar")]
        assert kept
        assert sum(kept) <= room < sum(sizes)


def test_what_was_read_last_stays(folder: Path, tmp_path: Path) -> None:
    """Whenever it was fetched."""
    clips = open_clips(tmp_path, str(folder))
    assert isinstance(clips, ShardedClips)
    files, (first, second, third) = clips._files, list(clips.sizes)[:3]
    files.most = sum(clips.sizes[name].length for name in (first, second, third)) - 1
    for name in (first, second, first, third):
        files.open(name)
        time.sleep(0.02)  # files have the time of a tick of the clock
    assert {file.name for file in tmp_path.glob("*.tar")} == {first, third}


def test_what_is_wanted_soon_is_fetched_ahead(folder: Path, tmp_path: Path) -> None:
    """Within half of the room; and once for all."""
    clips = open_clips(tmp_path, str(folder))
    assert isinstance(clips, ShardedClips)
    fetched: list[str] = []
    read = clips._files.remote.read  # type: ignore[union-attr]
    clips._files.remote.read = lambda name: fetched.append(name) or read(name)  # type: ignore
    wanted = [[i] for i in clips.select("train").tolist()]
    names = list(dict.fromkeys(clips.clips[i].shard for (i,) in wanted))
    with clips.ahead(wanted):
        _until(lambda: len(fetched) >= len(names))
        assert fetched == names
    for (index,) in wanted:
        clips[index]
    assert fetched == names
    few = open_clips(
        tmp_path / "few", str(folder), most=2 * max(s.length for s in clips.sizes.values())
    )
    assert isinstance(few, ShardedClips)
    few._files.remote.read = clips._files.remote.read  # type: ignore[union-attr, method-assign]
    fetched.clear()
    with few.ahead(wanted) as reached:
        _until(lambda: bool(fetched))
        time.sleep(0.3)
        assert fetched == names[:1]  # the second would be more than half
        for _ in wanted:
            reached()
        _until(lambda: len(fetched) >= len(names))
    assert fetched == names


def _until(seen: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not seen() and time.monotonic() < until:
        time.sleep(0.02)


def _damage(file: Path, at: int = -2000) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_copy_that_went_bad_is_fetched_anew(cache: Path, folder: Path, tmp_path: Path) -> None:
    clips, whole = open_clips(tmp_path, str(folder)), ClipCache(cache)
    for index in range(len(clips)):
        clips[index]
    for file in tmp_path.glob("*.tar"):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
        for member in members:
            if member.name.endswith(".safetensors"):
                _damage(file, member.offset_data + member.size - 1)
    again = open_clips(tmp_path, str(folder))
    for index in range(len(clips)):
        _equal(again[index], whole[index])
    (tmp_path / "train-00000.tar").write_bytes(b"")
    (tmp_path / "train-00001.tar").write_bytes(b"no tar" * 1000)
    for index in range(len(clips)):
        _equal(open_clips(tmp_path, str(folder))[index], whole[index])


@pytest.mark.parametrize("fetched", [True, False])
def test_a_missing_or_damaged_shard_is_named(fetched: bool, folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "shards"))
    index = 0  # a clip of training
    name = ShardedClips(place, 1).clips[index].shard

    def said() -> str:
        kept = tmp_path / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        with pytest.raises(CacheError) as caught:
            (open_clips(kept, str(place)) if fetched else open_clips(place))[index]
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{place / name} is ")
        assert line.endswith("`avemo shards` with the arguments of the first time puts it right")
        return line

    whole = (place / name).read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"",
        whole[:-1] if fetched else whole[:600],
        b"x" * 9999,
    ):
        (place / name).write_bytes(content)
        assert "is damaged (" in said()
    (place / name).write_bytes(whole)
    with tarfile.open(place / name) as tar:
        member = tar.getmember(f"{index:09d}.safetensors")
    _damage(place / name, member.offset_data + member.size - 1)
    assert ("SHA-256" if fetched else "the checksum of train/0.mp4") in said()
    (place / name).unlink()
    assert "is missing; " in said()
    loader = _module(place, tmp_path / "kept2").train_dataloader()
    with pytest.raises(CacheError, match=f"{name} is missing"):
        list(loader)


def test_what_is_no_place_of_shards_is_told(
    cache: Path, folder: Path, store: str, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (str(tmp_path / "none"), f"{store}/none", f"{web}/none", "s3://none/x"):
        with pytest.raises(FileNotFoundError, match=r"no shards in .*none.*run `avemo shards`"):
            open_clips(tmp_path / "kept", place)
    with pytest.raises(ValueError, match=r"ftp://a/b cannot be read from"):
        open_clips(tmp_path / "kept", "ftp://a/b")
    with pytest.raises(ValueError, match=r"data\.cache must be another folder"):
        open_clips(cache, str(folder))
    kept = tmp_path / "of other shards"
    open_clips(kept, str(folder))
    other = tmp_path / "other"
    shards(write_cache(tmp_path / "c", {"train": 5, "val": 1}), out=str(other))
    with pytest.raises(ValueError, match="copies of other shards"):
        open_clips(kept, str(other))
    monkeypatch.setattr(
        "avemo.data.objects._RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    )
    with pytest.raises(ObjectError, match=r"cannot read http://127\.0\.0\.1:1/shards\.json"):
        open_clips(tmp_path / "k", "http://127.0.0.1:1")
    with pytest.raises(WriteError, match=f"cannot write {web}/q/a"):
        open_objects(f"{web}/q").write("a", b"1")
    index = json.loads((folder / "shards.json").read_text())
    size = next(iter(index["shards"].values()))
    for change, words in (
        ({"checksums": []}, "0 checksums of 36 clips"),
        ({"shards": {}}, "is damaged: it has no"),
        ({"shards": {"shards.url": size}}, "name of a .tar file, got 'shards.url'"),
        ({"shards": {"../a.tar": size}}, "name of a .tar file, got '../a.tar'"),
        ({"format": "avemo-cache-3"}, "must have the format 'avemo-shards-1'"),
    ):
        (other / "shards.json").write_text(json.dumps(index | change))
        with pytest.raises(CacheError, match=words):
            open_clips(other)
