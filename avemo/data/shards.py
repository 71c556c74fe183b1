"""A prepared corpus as tar files that training fetches while it runs, from a folder, an object store or a web server.

A shard is a tar file as WebDataset has them. Of each clip, whose number in the index is its key, it has
two members: KEY.safetensors, the clip as a cache has it, and KEY.json, its label, split, speaker and path. A shard
has clips of one split; those of training are dealt to shards at random, the others are in the manifest's order. The
index `shards.json` is that of a cache with, beyond it, the CRC-32 of each clip and the size and SHA-256 of each shard.

Which clip comes when is decided where batches are made (`avemo.data.datamodule`), not here: a clip is asked for by its
number, its shard is fetched if it is not there, and what will be asked for soon is fetched ahead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import mmap
import os
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avemo.data.cache import (
    INDEX,
    SPLITS,
    CacheError,
    ClipCache,
    ClipIndex,
    checksum,
    index_json,
    shard_content,
)
from avemo.data.features import Clip
from avemo.data.objects import Objects, open_objects
from avemo.storage import write

SHARDS = "shards.json"
_ORIGIN = "shards.url"
_FORMAT = "avemo-shards-1"
_OPEN = 64  # shards at once
_REMEDY = "`avemo shards` with the arguments of the first time puts it right"


@dataclass(frozen=True)
class ShardsReport:
    """What was written."""

    clips: int
    shards: int
    bytes: int
    out: str

    def __str__(self) -> str:
        return (
            f"{self.clips} clips in {self.shards} shards, {self.bytes / 1e6:,.1f} MB, in {self.out}"
        )


def shards(cache: Path, *, out: str, shard_mb: float = 32.0, seed: int = 0) -> ShardsReport:
    """Writes a prepared corpus as tar shards, which `avemo train --data.shards` reads from where they are.

    They are of the kind that WebDataset reads. The same cache gives the same bytes. The index is written last, so that
    what was interrupted is not taken for whole.

    Args:
        cache: folder that `avemo prepare` wrote.
        out: a folder, or a URL to write to: s3://BUCKET/PREFIX, gs:// or az://. AWS_ENDPOINT_URL and the other
            variables of the environment say where and as whom.
        shard_mb: about how large a shard is, MB.
        seed: of how clips of training are dealt to shards.

    Returns:
        The numbers, which are also printed.

    Raises:
        FileNotFoundError: there is no finished cache.
        FileExistsError: the place has shards of something else.
        CacheError: a clip cannot be read.
        WriteError: the place cannot be written to.
    """
    if not shard_mb > 0:
        raise ValueError(f"shard_mb must be positive, got {shard_mb}")
    clips, objects = ClipCache(cache), open_objects(out)
    if isinstance(there := _found(objects), bytes) and _origin(there) != clips.digest:
        raise FileExistsError(f"{objects} has the shards of another cache; choose another --out")
    if (Path(out) / INDEX).exists():
        raise FileExistsError(f"{objects} has a cache; choose another --out")
    infos, sums, total = list(clips.clips), [0] * len(clips), 0
    written: dict[str, dict[str, Any]] = {}
    for name, places in _dealt(clips, shard_mb * 1e6, seed):
        content = _tar(clips, places, sums)
        objects.write(name, content)
        total += len(content)
        written[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for place in places:
            infos[place] = replace(infos[place], shard=name, audio_offset=0, video_offset=0)
    index = index_json(
        clips.features, infos, _FORMAT, checksums=sums, shards=written, cache=clips.digest
    )
    objects.write(SHARDS, index.encode())
    report = ShardsReport(len(clips), len(written), total, str(objects))
    print(report)
    return report


def _found(objects: Objects) -> bytes | None:
    try:
        return objects.read(SHARDS)
    except FileNotFoundError:
        return None


def _origin(index: bytes) -> str | None:
    """The digest of the cache that shards were made of, if their index can be read."""
    try:
        return str(json.loads(index)["cache"])
    except (ValueError, LookupError, TypeError):
        return None


def _dealt(clips: ClipCache, size: float, seed: int) -> Iterator[tuple[str, list[int]]]:
    """The names of the shards, and the clips of each, by their places in the index."""
    for split in SPLITS:
        places = clips.select(split)
        if split == "train":
            places = np.random.default_rng(seed).permutation(places)
        ends = np.cumsum([_bytes(clips, int(place)) for place in places])
        pairs = zip((ends // size).astype(int).tolist(), places.tolist(), strict=True)
        for number, (_, group) in enumerate(groupby(pairs, lambda pair: pair[0])):
            yield f"{split}-{number:05d}.tar", [place for _, place in group]


def _bytes(clips: ClipCache, place: int) -> int:
    """About how much room a clip takes."""
    info, features = clips.clips[place], clips.features
    return info.audio_length * features.audio_features + info.video_length * features.face_size**2


def _tar(clips: ClipCache, places: list[int], sums: list[int]) -> bytes:
    """A shard; notes the checksums of its clips."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for place in places:
            clip, info = clips[place], clips.clips[place]
            sums[place] = checksum(clip)
            said = {"label": info.label, "split": info.split, "speaker": info.speaker}
            for kind, data in (
                ("json", json.dumps(said | {"path": info.path}).encode()),
                ("safetensors", shard_content([clip])),
            ):
                member = tarfile.TarInfo(f"{place:09d}.{kind}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return content.getvalue()


def open_clips(cache: Path, shards: str | None = None, most: int = 20 << 30) -> ClipIndex:
    """The clips that training and evaluation read.

    Args:
        cache: folder that `avemo prepare` wrote, or of shards; with `shards`, where copies of them are kept.
        shards: where they are, a folder or a URL.
        most: bytes that the copies may take.

    Raises:
        FileNotFoundError: there is no finished cache, or there are no shards.
        ValueError: the folder has something else.
        ObjectError: an object store or web server does not answer, or refuses.
    """
    cache = Path(cache)
    if shards is not None:
        _follow(cache, shards)
    return ShardedClips(cache, most) if (cache / SHARDS).is_file() else ClipCache(cache)


def _follow(folder: Path, place: str) -> None:
    """Makes a folder one of copies."""
    if (folder / INDEX).exists():
        raise ValueError(
            f"{folder} has a cache; data.cache must be another folder, to keep copies of the shards in"
        )
    objects, file = open_objects(place), folder / SHARDS
    index = _found(objects)
    if index is None:
        raise FileNotFoundError(f"no shards in {objects} ({SHARDS} is missing); run `avemo shards`")
    if file.is_file() and file.read_bytes() != index:
        raise ValueError(
            f"{folder} has copies of other shards than those of {objects}; remove it, or choose another data.cache"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _ORIGIN).is_file() or not file.is_file():  # else these are the shards themselves
        write(folder / _ORIGIN, str(objects))
        write(file, index)


class _Size(NamedTuple):
    """What a shard's file has to be."""

    length: int
    sha256: str

    def fault(self, content: bytes) -> str:
        """What is wrong with a file, or an empty string."""
        if len(content) != self.length:
            return f"it has {len(content)} bytes instead of {self.length}"
        same = hashlib.sha256(content).hexdigest() == self.sha256
        return "" if same else "its SHA-256 is not that of the index"


class _DamagedError(ValueError):
    """What a file of a shard holds is not what was written."""


class ShardedClips(ClipIndex):
    """The clips of shards, of which all processes of this machine keep copies in one folder.

    Args:
        folder: of the shards; or of the copies.
        most: bytes that the copies may take; those that were not used for longest go.

    Raises:
        CacheError: the index is damaged or of another format.
    """

    def __init__(self, folder: Path, most: int) -> None:
        file, origin = folder / SHARDS, folder / _ORIGIN
        super().__init__(folder, file.read_bytes(), str(file), _FORMAT, _REMEDY)
        remote = open_objects(origin.read_text("utf-8")) if origin.is_file() else None
        self._files = _Files(folder, remote, self.sizes, most)
        self._forget()

    def _take(self, index: dict[str, Any]) -> None:
        self.sizes = {
            name: _Size(int(s["bytes"]), str(s["sha256"])) for name, s in index["shards"].items()
        }
        for name in self.sizes:  # what is fetched is written under it, beside the index
            if Path(name).name != name or not name.endswith(".tar"):
                raise ValueError(f"a shard must be the name of a .tar file, got {name!r}")
        self.sums = [int(found) for found in index["checksums"]]
        if len(self.sums) != len(self.clips):
            raise ValueError(f"{len(self.sums)} checksums of {len(self.clips)} clips")
        numbers = {name: number for number, name in enumerate(self.sizes)}
        self.groups = np.array([numbers[clip.shard] for clip in self.clips], np.int64)

    def _forget(self) -> None:
        self._open = lru_cache(_OPEN)(lambda name: _Members(self._files.open(name)))

    def __getitem__(self, index: int) -> Clip:
        name = self.clips[index].shard
        again = False
        while True:
            try:
                return self._read(index)
            except _DamagedError as error:
                self._forget()
                if again or not self._files.drop(name):  # a copy that went bad here is fetched anew
                    raise CacheError(
                        f"{self._files.source(name)} is damaged ({error}); {_REMEDY}"
                    ) from error
                again = True

    def _read(self, index: int) -> Clip:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(self._open(self.clips[index].shard)[index])
            clip = Clip(arrays["audio"], arrays["video"], arrays["valid"].view(bool))
        except (SafetensorError, LookupError, tarfile.TarError, ValueError) as error:
            raise _DamagedError(" ".join(str(error).split())) from error
        if checksum(clip) != self.sums[index]:
            raise _DamagedError(
                f"the checksum of {self.clips[index].path} is not that of its bytes"
            )
        return clip

    @contextmanager
    def ahead(self, batches: Iterable[Sequence[int]]) -> Iterator[Callable[[], None]]:
        if not self._files.remote:
            yield lambda: None
            return
        fetching = _Ahead(self._files, ([self.clips[i].shard for i in b] for b in batches))
        fetching.start()
        try:
            yield fetching.reached
        finally:
            fetching.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


class _Members:
    """The clips of a shard, by their numbers in the index.

    Raises:
        tarfile.TarError, ValueError: it is no such file.
    """

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        with tarfile.open(fileobj=content, mode="r:") as file:
            self._places = {
                int(Path(member.name).stem): slice(
                    member.offset_data, member.offset_data + member.size
                )
                for member in file.getmembers()
                if member.name.endswith(".safetensors")
            }

    def __getitem__(self, index: int) -> bytes:
        return self._content[self._places[index]]


class _Files:
    """The files of shards in a folder, fetched from elsewhere where they are not there.

    Args:
        folder: of them.
        remote: where else they are; None where they are nowhere else.
        sizes: of all there are, by name.
        most: bytes that the folder's may take.
    """

    def __init__(
        self, folder: Path, remote: Objects | None, sizes: dict[str, _Size], most: int
    ) -> None:
        self.folder, self.remote, self.sizes, self.most = folder, remote, sizes, most

    def source(self, name: str) -> str:
        """Where a file comes from, for errors."""
        return f"{self.remote or self.folder}/{name}"

    def open(self, name: str) -> mmap.mmap:
        """A file in memory; it may be removed meanwhile.

        Raises:
            CacheError: it is missing, or damaged where it comes from.
            ValueError: it is empty.
        """
        with self._here(name) as file:
            os.utime(file)
            with file.open("rb") as opened:
                return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def fetch(self, name: str) -> None:
        """Makes sure that a file is there; raises as `open` does."""
        with self._here(name):
            pass

    def drop(self, name: str) -> bool:
        """Removes a copy; whether there is a place that it came from."""
        if self.remote:
            (self.folder / name).unlink(missing_ok=True)
        return self.remote is not None

    @contextmanager
    def _here(self, name: str) -> Iterator[Path]:
        file = self.folder / name
        if not self.remote:
            if not file.is_file():
                raise CacheError(f"{file} is missing; {_REMEDY}")
            yield file
            return
        # Not `lockf`, which does not keep the threads of a process apart.
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                content = self._fetched(name)
                self._make_room(len(content))
                write(file, content)
            yield file

    def _fetched(self, name: str) -> bytes:
        assert self.remote
        try:
            content = self.remote.read(name)
        except FileNotFoundError:
            raise CacheError(f"{self.source(name)} is missing; {_REMEDY}") from None
        if fault := self.sizes[name].fault(content):
            raise CacheError(f"{self.source(name)} is damaged ({fault}); {_REMEDY}")
        return content

    def _make_room(self, wanted: int) -> None:
        """Removes what was not used for longest. Who has it open keeps it, and who wants it again fetches it."""
        left = self.most - wanted
        for _, size, file in sorted(self._copies(), reverse=True):
            left -= size
            if left < 0:
                file.unlink(missing_ok=True)

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                found = file.stat()
                yield found.st_mtime, found.st_size, file


class _Ahead(threading.Thread):
    """Fetches shards in the order in which they will be wanted, as far ahead as half of their room.

    Args:
        files: that fetch.
        batches: the shards of each batch; used up by the thread.
    """

    def __init__(self, files: _Files, batches: Iterable[Iterable[str]]) -> None:
        super().__init__(daemon=True, name="avemo-shards")
        self._files, self._batches = files, batches
        self._changed = threading.Condition()
        self._number, self._stopped = 0, False

    def reached(self) -> None:
        """One more batch is wanted."""
        with self._changed:
            self._number += 1
            self._changed.notify()

    def stop(self) -> None:
        """Ends after the shard in hand."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        waiting: deque[tuple[int, int]] = deque()  # the first batch that wants a shard, its bytes
        seen: set[str] = set()
        for number, names in enumerate(self._batches):
            for name in sorted({*names} - seen):
                seen.add(name)
                waiting.append((number, self._files.sizes[name].length))
                if not self._room(waiting):
                    return
                # Whoever wants it meets the same error, and is the one to tell.
                with contextlib.suppress(OSError, ValueError):
                    self._files.fetch(name)

    def _room(self, waiting: deque[tuple[int, int]]) -> bool:
        """Waits until little enough is fetched that nobody has wanted yet; False where it is to end."""
        with self._changed:
            while not self._stopped:
                while waiting and waiting[0][0] < self._number:
                    waiting.popleft()
                if len(waiting) < 2 or sum(size for _, size in waiting) <= self._files.most / 2:
                    return True
                self._changed.wait()
        return False
