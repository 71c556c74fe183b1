"""The prepared corpus on disk: safetensors shards and one JSON index.

A shard holds the clips of consecutive rows of the manifest, end to end, in three tensors: `audio`
uint8 (sum of T_a, F), `video` uint8 (sum of T_v, S, S) and `valid` uint8 (sum of T_v). The index
has the features' settings, the classes and, for each clip, its row of the manifest, shard, offsets
and lengths.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avemo.data.features import Clip, FeatureConfig

INDEX = "index.json"
SPLITS = ("train", "val", "test")
_FORMAT = "avemo-cache-1"
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class ClipInfo:
    """One clip of the index.

    Attributes:
        path: as the manifest gives it.
        label: its class.
        speaker: who speaks, or an empty string.
        split: `train`, `val` or `test`.
        shard: file name of its shard.
        audio_offset: its first frame in `audio`.
        audio_length: its frames there.
        video_offset: its first frame in `video` and `valid`.
        video_length: its frames there.
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


class ClipCache:
    """Reads a prepared corpus; memory-mapped, so a clip costs a copy of its bytes and no decoding.

    Args:
        path: the folder that `avemo prepare` wrote.

    Attributes:
        features: the settings that the clips were made with.
        classes: the labels, sorted; a clip's class index is its label's place here.
        clips: the index, in the manifest's order.

    Raises:
        FileNotFoundError: there is no finished cache.
        ValueError: the index is of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        file = self.path / INDEX
        if not file.is_file():
            raise FileNotFoundError(
                f"no finished cache in {self.path} ({INDEX} is missing); run `avemo prepare`"
            )
        index = json.loads(file.read_text(encoding="utf-8"))
        if index.get("format") != _FORMAT:
            raise ValueError(
                f"{file} must have the format {_FORMAT!r}, got {index.get('format')!r}"
            )
        self.features = FeatureConfig.from_dict(index["features"])
        self.classes: tuple[str, ...] = tuple(index["classes"])
        self.clips = tuple(ClipInfo(**clip) for clip in index["clips"])
        if any(Path(c.shard).name != c.shard for c in self.clips):
            raise ValueError(f"{file} names shards outside of its folder")
        self._class_of = {name: i for i, name in enumerate(self.classes)}
        self._open = lru_cache(_OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        info = self.clips[index]
        shard = self._open(info.shard)
        audio = slice(info.audio_offset, info.audio_offset + info.audio_length)
        video = slice(info.video_offset, info.video_offset + info.video_length)
        return Clip(
            shard.get_slice("audio")[audio],
            shard.get_slice("video")[video],
            shard.get_slice("valid")[video].astype(bool),
        )

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

    def _open_shard(self, name: str) -> Any:
        from safetensors import safe_open

        return safe_open(self.path / name, framework="numpy")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # open files do not travel to worker processes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def index_json(features: FeatureConfig, clips: list[ClipInfo]) -> str:
    """The text of an index; classes are the labels that occur."""
    index = {
        "format": _FORMAT,
        "features": features.to_dict(),
        "classes": sorted({clip.label for clip in clips}),
        "clips": [asdict(clip) for clip in clips],
    }
    return json.dumps(index, indent=1, ensure_ascii=False) + "\n"
