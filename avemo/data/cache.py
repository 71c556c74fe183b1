"""The prepared corpus on disk: safetensors shards and one JSON index.

A shard holds the clips of consecutive rows of the manifest, end to end, in three tensors: `audio`
uint8 (sum of T_a, F), `video` uint8 (sum of T_v, S, S) and `valid` uint8 (sum of T_v); and for each
of its n clips `first` uint64 (n, 2), where it begins in `audio` and in `video`, and `checksum` uint32
(n), the CRC-32 of its three parts, which every read is checked against. The index has the features'
settings, the classes and, for each clip, its row of the manifest, shard, offsets and lengths; the
length of a stream that it lacks is 0.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avemo.data.features import Clip, FeatureConfig
from avemo.data.media import BOTH

INDEX = "index.json"
SPLITS = ("train", "val", "test")
FORMAT = "avemo-cache-3"
_OPEN_SHARDS = 256
_REMEDY = "`avemo prepare` with the arguments of the first time puts it right"


class CacheError(ValueError):
    """A file of a cache is damaged, is missing or does not belong to the others."""


@dataclass(frozen=True)
class ClipInfo:
    """One clip of the index.

    Attributes:
        path: as the corpus gives it; where a file has several clips, with the clip's name after a #.
        label: its class.
        speaker: who speaks, or an empty string.
        split: `train`, `val` or `test`.
        shard: file name of its shard.
        audio_offset: its first frame in `audio`.
        audio_length: its frames there; 0 if it has no sound.
        video_offset: its first frame in `video` and `valid`.
        video_length: its frames there; 0 if it has no picture.
        group: of clips that no split of the corpus may part, such as a session; or an empty string.
    """

    path: str
    label: str
    speaker: str
    split: str
    shard: str
    audio_offset: int
    audio_length: int
    video_offset: int
    video_length: int
    group: str = ""

    @property
    def streams(self) -> tuple[str, ...]:
        """What the clip has, of "audio" and "video"."""
        lengths = (self.audio_length, self.video_length)
        return tuple(name for name, length in zip(BOTH, lengths, strict=True) if length)

    def seconds(self, features: FeatureConfig) -> float:
        """How long the clip is."""
        if self.video_length:
            return self.video_length / features.fps
        return (self.audio_length - 1) / features.audio_fps


class Shards:
    """Reads clips from the shards of a folder; memory-mapped, so a clip costs a copy of its bytes and no decoding.

    Args:
        folder: of the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = lru_cache(_OPEN_SHARDS)(self._open_shard)

    def clip(self, info: ClipInfo) -> Clip:
        """A clip of the index.

        Raises:
            CacheError: its shard is missing or damaged, or is one of another index.
        """
        from safetensors import SafetensorError

        audio, video = (
            (info.audio_offset, info.audio_length),
            (info.video_offset, info.video_length),
        )
        try:
            shard, checksums = self._open(info.shard)
            clip = Clip(
                _rows(shard, "audio", *audio),
                _rows(shard, "video", *video),
                _rows(shard, "valid", *video).astype(bool),
            )
        except FileNotFoundError:
            raise CacheError(f"{self.folder / info.shard} is missing; {_REMEDY}") from None
        except (SafetensorError, IndexError, OSError) as error:
            raise self._damaged(info, str(error)) from error
        if checksums.get((info.audio_offset, info.video_offset)) != checksum(clip):
            raise self._damaged(info, f"the checksum of {info.path} is not that of its bytes")
        return clip

    def _open_shard(self, name: str) -> tuple[Any, dict[tuple[int, int], int]]:
        from safetensors import safe_open

        shard = safe_open(self.folder / name, framework="numpy")
        first, checksum = shard.get_tensor("first"), shard.get_tensor("checksum")
        places = map(tuple, first.tolist())
        return shard, dict(zip(places, checksum.tolist(), strict=True))

    def _damaged(self, info: ClipInfo, reason: str) -> CacheError:
        said = " ".join(reason.split())
        return CacheError(f"{self.folder / info.shard} is damaged ({said}); {_REMEDY}")


def _rows(shard: Any, name: str, first: int, count: int) -> NDArray[np.uint8]:
    """A stretch of one of a shard's tensors. Safetensors refuses an empty one at the end."""
    tensor = shard.get_slice(name)
    if not count:
        return np.zeros((0, *tensor.get_shape()[1:]), np.uint8)
    rows: NDArray[np.uint8] = tensor[first : first + count]
    return rows


def shard_content(clips: Sequence[Clip]) -> bytes:
    """What the file of a shard holds.

    Args:
        clips: at least one, all with the same settings.
    """
    from safetensors.numpy import save

    ends = np.cumsum([(len(clip.audio), len(clip.video)) for clip in clips], axis=0)
    arrays = {
        "audio": np.concatenate([clip.audio for clip in clips]),
        "video": np.concatenate([clip.video for clip in clips]),
        "valid": np.concatenate([clip.valid for clip in clips]).view(np.uint8),
        "first": np.concatenate([[(0, 0)], ends[:-1]]).astype(np.uint64),
        "checksum": np.array([checksum(clip) for clip in clips], np.uint32),
    }
    return bytes(save(arrays))


def checksum(clip: Clip) -> int:
    """CRC-32 of a clip's arrays, one after the other."""
    found = 0
    for array in clip:
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


class ClipIndex:
    """The clips of a corpus by their place in its index.

    Args:
        path: where they are.
        content: of the file of the index.
        file: its name, for errors.
        layout: the format that it must have.
        remedy: what puts a damaged one right.

    Attributes:
        path: as given.
        features: the settings that the clips were made with.
        classes: the labels, sorted; a clip's class index is its label's place here.
        clips: the index, in the manifest's order.
        digest: SHA-256 of the index.

    Raises:
        CacheError: the index is damaged or of another format.
    """

    groups: NDArray[np.int64] | None = None
    """By clip, the number of what has to be read as one; None where clips can be read in any order."""

    def __init__(self, path: Path, content: bytes, file: str, layout: str, remedy: str) -> None:
        self.path = path
        try:
            self.digest = hashlib.sha256(content).hexdigest()
            index = json.loads(content)
            found = index["format"]
            if found != layout:
                raise CacheError(
                    f"{file} must have the format {layout!r}, got {found!r}; "
                    "prepare the corpus into another folder"
                )
            self.features = FeatureConfig.from_dict(index["features"])
            self.classes: tuple[str, ...] = tuple(index["classes"])
            self.clips = tuple(ClipInfo(**clip) for clip in index["clips"])
            for clip in self.clips:
                _check(clip, self.classes)
            self._take(index)
        except CacheError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else error
            raise CacheError(f"{file} is damaged: {said}; {remedy}") from error
        self._class_of = {name: i for i, name in enumerate(self.classes)}

    def _take(self, index: dict[str, Any]) -> None:
        """What else an index of the format has."""

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        raise NotImplementedError

    @contextmanager
    def ahead(self, batches: Iterable[Sequence[int]]) -> Iterator[Callable[[], None]]:
        """Gets ready, within the context, what is wanted soon.

        Args:
            batches: the places of the clips of each batch, in the order in which they are wanted.

        Yields:
            What is to be called when the next batch is wanted.
        """
        yield lambda: None

    def label(self, index: int) -> int:
        """Class index of a clip."""
        return self._class_of[self.clips[index].label]

    def select(self, split: str) -> NDArray[np.int64]:
        """Indices of the clips of a split, in the manifest's order.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return np.array([i for i, clip in enumerate(self.clips) if clip.split == split], np.int64)


class ClipCache(ClipIndex):
    """A prepared corpus: its index, of whose files its digest does not have the checksums, and its clips.

    Args:
        path: the folder that `avemo prepare` wrote.

    Raises:
        FileNotFoundError: there is no finished cache.
        CacheError: the index is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        file = path / INDEX
        if not file.is_file():
            raise FileNotFoundError(
                f"no finished cache in {path} ({INDEX} is missing); run `avemo prepare`"
            )
        super().__init__(path, file.read_bytes(), str(file), FORMAT, _REMEDY)
        self._shards = Shards(path)

    def __getitem__(self, index: int) -> Clip:
        return self._shards.clip(self.clips[index])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # open files do not travel to worker processes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _check(clip: ClipInfo, classes: tuple[str, ...]) -> None:
    """Whether a clip of an index can be one.

    Raises:
        ValueError: it cannot.
    """
    if clip.label not in classes:
        raise ValueError(f"the label of {clip.path} is {clip.label!r}, expected one of {classes}")
    if clip.split not in SPLITS:
        raise ValueError(f"the split of {clip.path} is {clip.split!r}, expected one of {SPLITS}")
    if Path(clip.shard).name != clip.shard:
        raise ValueError(f"the shard of {clip.path} is outside of its folder: {clip.shard}")
    if not clip.streams:
        raise ValueError(f"{clip.path} has neither sound nor picture")
    places = (clip.audio_offset, clip.audio_length, clip.video_offset, clip.video_length)
    if not all(isinstance(place, int) and place >= 0 for place in places):
        raise ValueError(f"the places of {clip.path} must be whole numbers, got {places}")


def index_json(
    features: FeatureConfig, clips: list[ClipInfo], layout: str = FORMAT, **more: Any
) -> str:
    """The text of an index, with what else its format has; classes are the labels that occur."""
    index = {
        "format": layout,
        "features": features.to_dict(),
        "classes": sorted({clip.label for clip in clips}),
        "clips": [asdict(clip) for clip in clips],
        **more,
    }
    return json.dumps(index, indent=1, ensure_ascii=False) + "\n"
