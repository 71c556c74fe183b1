"""Turns a corpus of media files into a cache that training reads without decoding.

Work is done in groups of consecutive rows of the manifest, one shard each. Every finished clip is a
file of its own until its group is complete and becomes the shard; then the shard's part of the
index is written, and in the end all parts become one index. So an interruption costs the clips in
hand, and what comes out depends on the manifest and the settings alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from avemo.data.cache import INDEX, ClipInfo, index_json
from avemo.data.features import Clip, FeatureConfig, extract
from avemo.data.limits import LONGEST_SECONDS, LONGEST_WORK_SECONDS, MOST_MEMORY
from avemo.data.manifest import Manifest, Row, locate, read_manifest, refuse_same_files
from avemo.data.reasons import category_of, reason, refusal
from avemo.data.worker import WorkerDeath, ended, process_all

ERRORS = "errors.csv"
_SETTINGS = "settings.json"
_PARTS = "parts"
_SHARD_ROWS = 128
_LINKED = reason("path outside of the root", "by a link")


class PrepareError(ValueError):
    """The corpus as a whole cannot be prepared."""


@dataclass(frozen=True)
class PrepareReport:
    """What came of a run.

    Attributes:
        done: clips in the cache.
        resumed: rows (clips and errors) that earlier runs had settled.
        errors: number of clips that are not in the cache, by the category of the reason.
        seconds: that this run took.
    """

    done: int
    resumed: int
    errors: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        failed = ", ".join(f"{reason} {count}" for reason, count in sorted(self.errors.items()))
        total = sum(self.errors.values())
        kept = f" ({self.resumed} rows were settled before)" if self.resumed else ""
        return (
            f"prepared {self.done} clips in {self.seconds:.1f} s{kept}, "
            f"{total} errors{': ' + failed if failed else ''}"
        )


def prepare(
    manifest: Path,
    *,
    out: Path,
    root: Path | None = None,
    workers: int = 2,
    bins: int = FeatureConfig.bins,
    fps: float = FeatureConfig.fps,
    face_size: int = FeatureConfig.face_size,
    face_margin: float = FeatureConfig.face_margin,
    detector: Path | None = None,
    max_seconds: float = LONGEST_SECONDS,
) -> PrepareReport:
    """Decodes the clips of a corpus, finds the faces and writes a cache for training.

    A clip that cannot be used is listed in `errors.csv` with the reason, and never stops the run.
    A run that was interrupted goes on where it stopped when it is started again.

    Args:
        manifest: CSV file with the columns path, label, split (train, val or test) and speaker.
        out: folder of the cache; made if needed.
        root: folder that the paths are relative to; by default the manifest's.
        workers: number of processes.
        bins: frequency bins of the spectrogram, a divisor of 200.
        fps: face frames per second.
        face_size: side of the face crops, pixels.
        face_margin: added to each side of the detected face, as a share of its side.
        detector: a YuNet model (.onnx) to find faces with; by default OpenCV's Haar cascade.
        max_seconds: longer clips are errors; cut them up first.

    Returns:
        The numbers of the run, which are also printed.

    Raises:
        FileNotFoundError: there is no manifest, or no such root.
        ValueError: a setting or the manifest is wrong, or the folder has a cache with other
            settings.
        PrepareError: no clip at all could be used.
    """
    from avemo.data.faces import load_detector

    start = time.monotonic()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if max_seconds <= 0:
        raise ValueError(f"max_seconds must be positive, got {max_seconds}")
    root = manifest.parent if root is None else root
    features = FeatureConfig(
        bins=bins,
        fps=fps,
        face_size=face_size,
        face_margin=face_margin,
        detector=load_detector(detector).name,
    )
    rows = read_manifest(manifest)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}")
    rows = refuse_same_files(rows, root)
    work = _Work(out, rows, features, max_seconds)
    speakers = rows.shared_speakers()
    if speakers:
        some = ", ".join(speakers[:5]) + (", ..." if len(speakers) > 5 else "")
        print(f"warning: speakers in more than one split: {some}", file=sys.stderr)
    resumed = work.finished() if work.complete else work.run(root, detector, workers)
    report = PrepareReport(work.done, resumed, work.error_counts(), time.monotonic() - start)
    print(report)
    if not report.done:
        raise PrepareError(f"none of the {len(rows.rows)} clips could be used; see {out / ERRORS}")
    return report


class _Work:
    """The folder of a cache while it is made."""

    def __init__(
        self, out: Path, manifest: Manifest, features: FeatureConfig, max_seconds: float
    ) -> None:
        self.out = out
        self.parts = out / _PARTS
        self.rows = manifest.rows
        self.features = features
        self.max_seconds = max_seconds
        self.groups = [
            range(first, min(first + _SHARD_ROWS, len(self.rows)))
            for first in range(0, len(self.rows), _SHARD_ROWS)
        ]
        self._claim(
            {
                **features.to_dict(),
                "max_seconds": max_seconds,
                "shard_rows": _SHARD_ROWS,
                "manifest": manifest.digest,
            }
        )
        self.complete = (out / INDEX).is_file()

    def _claim(self, settings: dict[str, Any]) -> None:
        """Makes the folder ours, or checks that it was made with the same settings."""
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / _SETTINGS
        if not file.is_file():
            if (self.out / INDEX).exists() or any(self.out.glob(f"{_PARTS}/*")):
                raise ValueError(
                    f"{self.out} has a cache without its {_SETTINGS}; choose another folder"
                )
            _write(file, json.dumps(settings, indent=1) + "\n")
            return
        there = json.loads(file.read_text(encoding="utf-8"))
        differing = [
            f"{name} is {there.get(name)!r} there and {settings.get(name)!r} now"
            for name in sorted({*there, *settings})
            if there.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.out} has a cache made with other settings: {'; '.join(differing)}. "
                "Choose another folder or remove this one."
            )

    def run(self, root: Path, detector: Path | None, workers: int) -> int:
        """Does what is missing; gives the number of rows that were settled before."""
        from tqdm import tqdm

        self.parts.mkdir(exist_ok=True)
        left = {number: self._open_rows(number) for number in range(len(self.groups))}
        resumed = len(self.rows) - sum(map(len, left.values()))
        for number, rows in left.items():
            if not rows:
                self._pack(number)
        todo = [row for rows in left.values() for row in sorted(rows)]
        arguments = (root, self.features, detector, self.max_seconds, self.parts)
        with tqdm(total=len(self.rows), initial=resumed, unit="clip", desc="prepare") as bar:
            for row, reason in self._process(root, todo, arguments, workers):
                if reason is not None:
                    _write(_error_part(self.parts, row), reason)
                group = left[row // _SHARD_ROWS]
                group.remove(row)
                if not group:
                    self._pack(row // _SHARD_ROWS)
                bar.update()
        self._finish()
        return resumed

    def _open_rows(self, number: int) -> set[int]:
        if self._part_index(number).is_file():
            return set()
        return {
            row
            for row in self.groups[number]
            if not _clip_part(self.parts, row).is_file()
            and not _error_part(self.parts, row).is_file()
        }

    def _process(
        self, root: Path, todo: list[int], arguments: tuple[Any, ...], workers: int
    ) -> Iterator[tuple[int, str | None]]:
        good = []
        for row in todo:
            fault = self.rows[row].fault
            if fault:
                yield row, fault
            elif locate(root, self.rows[row].path) is None:
                yield row, _LINKED
            else:
                good.append((row, self.rows[row].path))
        for (row, _), result in process_all(
            good,
            _worker_setup,
            arguments,
            workers=min(workers, max(1, len(good))),
            timeout=LONGEST_WORK_SECONDS,
            memory=MOST_MEMORY,
        ):
            yield row, str(ended(result)) if isinstance(result, WorkerDeath) else result

    def _pack(self, number: int) -> None:
        """Makes a shard of a finished group, and its part of the index."""
        if self._part_index(number).is_file():
            return
        shard = f"shard-{number:05d}.safetensors"
        clips, errors, infos = [], [], []
        audio = video = 0
        for index in self.groups[number]:
            row, part = self.rows[index], _clip_part(self.parts, index)
            if not part.is_file():
                reason = _error_part(self.parts, index).read_text(encoding="utf-8")
                errors.append([row.path, reason])
                continue
            clip = _load_part(part)
            info = _info(row, shard, audio, video, clip)
            audio, video = audio + info.audio_length, video + info.video_length
            clips.append(clip)
            infos.append(asdict(info))
        if clips:
            _save_clips(self.out / shard, clips)
        _write(self._part_index(number), json.dumps({"clips": infos, "errors": errors}))
        for index in self.groups[number]:
            _clip_part(self.parts, index).unlink(missing_ok=True)
            _error_part(self.parts, index).unlink(missing_ok=True)

    def _part_index(self, number: int) -> Path:
        return self.parts / f"shard-{number:05d}.json"

    def _finish(self) -> None:
        clips, errors = [], []
        for number in range(len(self.groups)):
            part = json.loads(self._part_index(number).read_text(encoding="utf-8"))
            clips += [ClipInfo(**info) for info in part["clips"]]
            errors += part["errors"]
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows([["path", "reason"], *errors])
        _write(self.out / ERRORS, table.getvalue())
        if clips:
            _write(self.out / INDEX, index_json(self.features, clips))
        else:  # nothing to keep: most likely a wrong root, and the next try starts afresh
            (self.out / _SETTINGS).unlink()
        self.done = len(clips)
        self._tidy()

    def finished(self) -> int:
        """Reads the numbers of a cache that was complete before; gives its number of rows."""
        index = json.loads((self.out / INDEX).read_text(encoding="utf-8"))
        self.done = len(index["clips"])
        self._tidy()
        return len(self.rows)

    def _tidy(self) -> None:
        """Removes what is needed while the cache is made only."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for unfinished in self.out.glob("*.part"):
            unfinished.unlink()

    def error_counts(self) -> dict[str, int]:
        """Errors by the category of their reason."""
        with (self.out / ERRORS).open(newline="", encoding="utf-8") as file:
            return dict(Counter(category_of(e["reason"]) for e in csv.DictReader(file)))


def _worker_setup(
    root: Path, features: FeatureConfig, detector: Path | None, max_seconds: float, parts: Path
) -> Callable[[tuple[int, str]], str | None]:
    import cv2

    from avemo.data.faces import load_detector

    cv2.setNumThreads(1)  # the workers share the cores among themselves
    return partial(
        _prepare_clip,
        root=root,
        features=features,
        detector=load_detector(detector),
        max_seconds=max_seconds,
        parts=parts,
    )


def _prepare_clip(
    item: tuple[int, str],
    *,
    root: Path,
    features: FeatureConfig,
    detector: Any,
    max_seconds: float,
    parts: Path,
) -> str | None:
    """Puts a clip's arrays into its part; gives the reason if it has none."""
    row, name = item
    path = locate(root, name)
    if path is None:
        return _LINKED
    try:
        clip = extract(path, features, detector, max_seconds=max_seconds)
    except Exception as error:
        return str(refusal(error))
    _save_clips(_clip_part(parts, row), [clip])
    return None


def _clip_part(parts: Path, row: int) -> Path:
    return parts / f"{row:09d}.safetensors"


def _error_part(parts: Path, row: int) -> Path:
    return parts / f"{row:09d}.error"


def _load_part(path: Path) -> Clip:
    from safetensors.numpy import load_file

    arrays = load_file(path)
    return Clip(arrays["audio"], arrays["video"], arrays["valid"].view(bool))


def _info(row: Row, shard: str, audio: int, video: int, clip: Clip) -> ClipInfo:
    return ClipInfo(
        row.path,
        row.label,
        row.speaker,
        row.split,
        shard,
        audio_offset=audio,
        audio_length=len(clip.audio),
        video_offset=video,
        video_length=len(clip.video),
    )


def _save_clips(path: Path, clips: list[Clip]) -> None:
    """Writes clips end to end; a reader sees the whole file or none."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {
        "audio": np.concatenate([clip.audio for clip in clips]),
        "video": np.concatenate([clip.video for clip in clips]),
        "valid": np.concatenate([clip.valid for clip in clips]).view("uint8"),
    }
    _write(path, save(arrays))


def _write(path: Path, content: bytes | str) -> None:
    # Named by process: a worker of a killed run may still be writing its last clip.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, path)
