"""Writes a prepared corpus of a few small random clips, in which each class leaves a mark in both streams."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from avemo.data.cache import INDEX, ClipInfo, index_json, shard_content
from avemo.data.features import Clip, FeatureConfig

CLASSES = ("angry", "happy", "neutral", "sad")
BINS, FACE_SIZE = 20, 16


def write_cache(
    folder: Path,
    clips: Mapping[str, int] | None = None,
    *,
    classes: tuple[str, ...] = CLASSES,
    frames: tuple[int, int] = (4, 9),
    sound: Literal["spectrogram", "waveform"] = "spectrogram",
) -> Path:
    """Writes `clips` of each split, labels in turn, of `frames` (from, below) video frames each."""
    features = FeatureConfig(bins=BINS, face_size=FACE_SIZE, sound=sound)
    clips = clips or {"train": 18, "val": 6, "test": 7}
    rng = np.random.default_rng(0)
    infos, stored = [], []
    heard = seen = 0
    for split, count in clips.items():
        for i in range(count):
            label = i % len(classes)
            seen_now = int(rng.integers(*frames))
            heard_now = 8 * seen_now + 1
            audio = rng.integers(40, 200, (heard_now, BINS), dtype=np.uint8)
            audio[:, 4 * label : 4 * label + 4] += 55
            if sound == "waveform":
                time = np.arange(heard_now * features.hop_length)
                tone = 9000 * np.sin(time * (0.1 + 0.2 * label)) + rng.normal(0, 900, len(time))
                audio = tone.astype(np.int16).reshape(heard_now, -1)
            faces = rng.integers(40, 200, (seen_now, FACE_SIZE, FACE_SIZE), dtype=np.uint8)
            faces[:, 4 * label : 4 * label + 4] += 55
            infos.append(
                ClipInfo(
                    path=f"{split}/{i}.mp4",
                    label=classes[label],
                    speaker=f"{split}{i % 2}",
                    split=split,
                    shard="0.safetensors",
                    audio_offset=heard,
                    audio_length=heard_now,
                    video_offset=seen,
                    video_length=seen_now,
                )
            )
            stored.append(Clip(audio, faces, np.ones(seen_now, bool)))
            heard, seen = heard + heard_now, seen + seen_now
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.safetensors").write_bytes(shard_content(stored))
    (folder / INDEX).write_text(index_json(features, infos), encoding="utf-8")
    return folder
