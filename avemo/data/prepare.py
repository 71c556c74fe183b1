"""Turns a corpus of media files into a cache that training reads without decoding.

Work is done in groups of consecutive rows of the corpus, one shard each. Every finished clip is a
file of its own until its group is complete and becomes the shard; then the shard's part of the
index is written, and in the end all parts become one index. So an interruption costs the clips in
hand, and what comes out depends on the corpus, its media and the settings alone.

A folder that is whole is looked at all the same when it is prepared again: what is damaged, or was
made of a media file that has changed since, is prepared anew, and nothing else.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from avemo.data.cache import (
    FORMAT,
    INDEX,
    CacheError,
    ClipCache,
    ClipInfo,
    Shards,
    index_json,
    shard_content,
)
from avemo.data.corpora.check import CheckReport, count_clips
from avemo.data.corpora.listing import Listing, Row, locate, shared_speakers
from avemo.data.corpora.registry import find_corpus, list_clips
from avemo.data.engines import ENGINES, Engine, EngineName
from avemo.data.features import Clip, FeatureConfig, extract
from avemo.data.limits import LONGEST_SECONDS, LONGEST_WORK_SECONDS, MOST_MEMORY
from avemo.data.reasons import category_of, reason, refusal
from avemo.data.worker import WorkerDeath, ended, warm_up
from avemo.storage import WriteError, one_writer, write
from avemo.text import items, pairs

ERRORS = "errors.csv"
_SETTINGS = "settings.json"
_MEDIA = "media.json"
_PARTS = "parts"
_JOBS = "jobs"  # folders of those that do a share of the work
_SHARD_ROWS = 128
_LINKED = reason("path outside of the root", "by a link")

Settled = ClipInfo | str
"""What a row came to: a clip in the cache, or the reason why there is none."""


class PrepareError(ValueError):
    """The corpus as a whole cannot be prepared."""


@dataclass(frozen=True)
class PrepareReport:
    """What came of a run.

    Attributes:
        done: clips in the cache.
        alone: how many of them have one stream alone, by its name.
        resumed: rows (clips and errors) that earlier runs had settled.
        errors: number of clips that are not in the cache, by the category of the reason.
        seconds: that this run took.
    """

    done: int
    alone: dict[str, int]
    resumed: int
    errors: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        failed = ", ".join(f"{reason} {count}" for reason, count in sorted(self.errors.items()))
        total = sum(self.errors.values())
        kept = f" ({self.resumed} rows were settled before)" if self.resumed else ""
        alone = "".join(
            f", {count} of them {name} alone" for name, count in sorted(self.alone.items())
        )
        return (
            f"prepared {self.done} clips{alone} in {self.seconds:.1f} s{kept}, "
            f"{total} errors{': ' + failed if failed else ''}"
        )


def prepare(
    corpus: str,
    root: Path,
    *,
    out: Path | None = None,
    check: bool = False,
    merge: str = "",
    classes: str = "",
    workers: int = 2,
    engine: EngineName = "local",
    shard: str = "",
    bins: int = FeatureConfig.bins,
    fps: float = FeatureConfig.fps,
    face_size: int = FeatureConfig.face_size,
    face_margin: float = FeatureConfig.face_margin,
    face_detector: Path | None = None,
    max_seconds: float = LONGEST_SECONDS,
    sound: Literal["spectrogram", "waveform"] = "spectrogram",
) -> PrepareReport | CheckReport:
    """Decodes the clips of a corpus, finds the faces and writes a cache for training.

    A file that has only sound or only a picture becomes a clip with that stream alone, for systems
    that need no other.

    A clip that cannot be used is listed in `errors.csv` with the reason, and never stops the run.
    A run that was interrupted goes on where it stopped when it is started again. Clips that an
    earlier run made stay as they are, unless their shard is damaged or their file is another one
    now (by its size and time): those are prepared anew.

    Args:
        corpus: afew, crema_d, iemocap, meld or ravdess; folders (one for each class); manifest (the file
            manifest.csv in the root, with the columns path, label, split and speaker); or the path of such
            a file elsewhere.
        root: folder of the corpus.
        out: folder of the cache; made if needed.
        check: only count what the corpus has, and say what is missing and what cannot be read.
        merge: labels to take for others, such as excited=happy,calm=neutral.
        classes: the labels to take, after that, such as happy,sad; by default what is usual for the corpus.
        workers: number of processes.
        engine: what they are: of this machine, or of the Ray cluster that RAY_ADDRESS names, whose nodes have root and
            out under the same paths. The cache is the same.
        shard: 3/8 does the third eighth of the work alone, for job arrays, into a folder of its own in `out`; when all
            have ended, the same command without it puts the parts together, and does what is missing.
        bins: frequency bins of the spectrogram, a divisor of 200.
        fps: face frames per second.
        face_size: side of the face crops, pixels.
        face_margin: added to each side of the detected face, as a share of its side.
        face_detector: a YuNet model (.onnx) to find faces with; by default OpenCV's Haar cascade. The cache
            records which: its name and checksum.
        max_seconds: longer clips are errors; cut them up first.
        sound: keep a spectrogram of it, or the waveform, which speech models of transformers hear.

    Returns:
        The numbers of the run, which are also printed.

    Raises:
        FileNotFoundError: there is no such root, or no manifest.
        ValueError: a setting or the manifest is wrong, the root is no such corpus, or the folder has a
            cache with other settings.
        PrepareError: no clip at all could be used.
        FolderInUseError: another process is writing into the folder.
        WriteError: the disk is full, or cannot be written to.
    """
    from avemo.data.faces import load_detector

    start = time.monotonic()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if max_seconds <= 0:
        raise ValueError(f"max_seconds must be positive, got {max_seconds}")
    warm_up()
    features = FeatureConfig(
        bins=bins,
        fps=fps,
        face_size=face_size,
        face_margin=face_margin,
        detector=load_detector(face_detector).name,
        sound=sound,
    )
    known, renamed, chosen = find_corpus(corpus), pairs("merge", merge), items(classes)
    listing = list_clips(known, root, renamed, chosen)
    if check:
        published = known.published.chosen(renamed, chosen or known.classes)
        counts = count_clips(listing, root, published, max_seconds=max_seconds, workers=workers)
        print(counts)
        return counts
    if out is None:
        raise ValueError("--out must be a folder for the cache; only --check does without")
    speakers = [*shared_speakers((r.speaker, r.split) for r in listing.rows if not r.fault)]
    if speakers:
        some = ", ".join(speakers[:5]) + (", ..." if len(speakers) > 5 else "")
        print(f"warning: speakers in more than one split: {some}", file=sys.stderr)
    job = parse_job(shard) if shard else None
    folder = out / _JOBS / job.folder if job else out
    with one_writer(folder, "avemo prepare"):
        work = _Work(folder, listing, features, max_seconds, job or Job())
        if not job:
            work.gather()
        resumed = work.run(root, face_detector, workers, ENGINES[engine], finish=not job)
        report = work.report(resumed, time.monotonic() - start)
    print(report)
    if not report.done and not job:
        raise PrepareError(
            f"none of the {len(listing.rows)} clips could be used; see {out / ERRORS}"
        )
    return report


@dataclass(frozen=True)
class Job:
    """A share of the work: of every `count` shards one, beginning with number `number`."""

    number: int = 0
    count: int = 1

    @property
    def folder(self) -> str:
        """Where it works, within the folder of the cache."""
        return f"{self.number + 1}-of-{self.count}"


def parse_job(text: str) -> Job:
    """The job that 3/8 means.

    Raises:
        ValueError: it means none.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard must be like 3/8, from 1/8 to 8/8, got {text!r}")
    return Job(int(number) - 1, int(count))


class _Work:
    """The folder of a cache while it is made, or of a job's share of it."""

    def __init__(
        self,
        out: Path,
        listing: Listing,
        features: FeatureConfig,
        max_seconds: float,
        job: Job,
    ) -> None:
        self.out = out
        self.parts = out / _PARTS
        self.rows = listing.rows
        self.features = features
        self.max_seconds = max_seconds
        groups = [
            range(first, min(first + _SHARD_ROWS, len(self.rows)))
            for first in range(0, len(self.rows), _SHARD_ROWS)
        ]
        self.groups = dict(islice(enumerate(groups), job.number, None, job.count))
        self.settings = {
            "format": FORMAT,
            **features.to_dict(),
            "max_seconds": max_seconds,
            "shard_rows": _SHARD_ROWS,
            "clips": listing.digest,
        }
        self._claim(out)

    def _claim(self, folder: Path) -> None:
        """Makes a folder ours, or checks that what it holds was made with the same settings."""
        file, settings = folder / _SETTINGS, self.settings
        if not (folder / INDEX).exists() and not any(folder.glob(f"{_PARTS}/*")):
            write(file, json.dumps(settings, indent=1) + "\n")
            return
        if not file.is_file():
            raise ValueError(f"{folder} has a cache without its {_SETTINGS}; choose another folder")
        try:
            there = dict(json.loads(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CacheError(
                f"{file} is damaged ({error}); choose another folder or remove this one"
            ) from error
        differing = [
            f"{name} is {there.get(name)!r} there and {settings.get(name)!r} now"
            for name in sorted({*there, *settings})
            if there.get(name) != settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"{folder} has a cache made with other settings: {'; '.join(differing)}. "
                "Choose another folder or remove this one."
            )

    def gather(self) -> None:
        """Takes over what jobs have done, finished or not.

        Raises:
            FolderInUseError: one of them still works.
            ValueError: one has other settings.
        """
        for folder in sorted((self.out / _JOBS).glob("*-of-*")):
            with one_writer(folder, "avemo prepare"):
                self._claim(folder)
                theirs = self._media_before(folder)
                kinds = (".json", ".safetensors", ".error")
                parts = sorted(f for f in folder.glob(f"{_PARTS}/*") if f.suffix in kinds)
                own = {row for number in _numbers(parts) for row in self.groups[number]}
                media = [
                    theirs[row] if row in own else ours
                    for row, ours in enumerate(self._media_before(self.out))
                ]
                write(self.out / _MEDIA, json.dumps(media, indent=0) + "\n")
                # A shard before its part of the index: what is killed in between is taken over by the next call.
                self.parts.mkdir(exist_ok=True)
                for file in sorted(folder.glob("*.safetensors")):
                    file.replace(self.out / file.name)
                for file in parts:
                    file.replace(self.parts / file.name)
                shutil.rmtree(folder / _PARTS, ignore_errors=True)
                for name in (_SETTINGS, _MEDIA):
                    (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.out / _JOBS).rmdir()

    def run(
        self, root: Path, detector: Path | None, workers: int, engine: Engine, *, finish: bool
    ) -> int:
        """Does what is missing; gives the number of rows that were settled before."""
        from tqdm import tqdm

        self.parts.mkdir(exist_ok=True)
        self._open_again(root)
        if (self.out / INDEX).is_file():
            self._tidy()
            return len(self.rows)
        left = {number: self._open_rows(number) for number in self.groups}
        total = sum(map(len, self.groups.values()))
        resumed = total - sum(map(len, left.values()))
        for number, rows in left.items():
            if not rows:
                self._pack(number)
        todo = [row for rows in left.values() for row in sorted(rows)]
        arguments = (root, self.features, detector, self.max_seconds, self.parts)
        with tqdm(total=total, initial=resumed, unit="clip", desc="prepare") as bar:
            for row, reason in self._process(root, todo, arguments, workers, engine):
                if isinstance(reason, WriteError):
                    raise reason
                if reason is not None:
                    write(_error_part(self.parts, row), reason)
                group = left[row // _SHARD_ROWS]
                group.remove(row)
                if not group:
                    self._pack(row // _SHARD_ROWS)
                bar.update()
        if finish:
            self._finish()
        return resumed

    def _open_again(self, root: Path) -> None:
        """Takes back what earlier runs settled where it is damaged or was made of other media files.

        What can be read stays: it goes back from the shard into parts. The index goes before the media are noted, so
        that whoever is killed in between finds out again what has changed.
        """
        before = self._media_before(self.out)
        now = [_stamp(root, row) or then for row, then in zip(self.rows, before, strict=True)]
        changed = {row for row in range(len(now)) if now[row] != before[row]}
        finished = self._finished()
        settled = self._packed() if finished is None else finished
        shards, stale = Shards(self.out), {}
        for number, rows in self.groups.items():
            if finished is None and not self._part_index(number).is_file():
                continue
            kept = {r: settled[r] for r in rows if r in settled and r not in changed}
            kept = {r: what for r, what in kept.items() if _readable(shards, what)}
            if len(kept) < len(rows):
                stale[number] = kept
        if finished is not None and not stale:
            return
        for number, rows in self.groups.items():
            if number in stale:
                print(
                    f"warning: {len(rows) - len(stale[number])} of the {len(rows)} clips of {self._shard(number)} are "
                    "prepared anew: they are damaged, or their files have changed",
                    file=sys.stderr,
                )
                self._unpack(shards, stale[number])
                self._part_index(number).unlink(missing_ok=True)
            elif finished is not None:
                self._write_part_index(number, {row: finished[row] for row in rows})
        for row in changed:
            _clip_part(self.parts, row).unlink(missing_ok=True)
            _error_part(self.parts, row).unlink(missing_ok=True)
        (self.out / INDEX).unlink(missing_ok=True)
        write(self.out / _MEDIA, json.dumps(now, indent=0) + "\n")

    def _media_before(self, folder: Path) -> list[str]:
        """The stamps of the media files that the rows were made of, as far as that is known."""
        try:
            stamps = [str(stamp) for stamp in json.loads((folder / _MEDIA).read_bytes())]
        except (FileNotFoundError, ValueError, TypeError):
            stamps = []
        return stamps if len(stamps) == len(self.rows) else [""] * len(self.rows)

    def _finished(self) -> dict[int, Settled] | None:
        """What a finished cache has for each row, as far as it can be told; None where there is no finished one."""
        if not (self.out / INDEX).is_file():
            return None
        try:
            clips = ClipCache(self.out).clips
        except CacheError as error:
            print(f"warning: all clips are prepared anew: {error}", file=sys.stderr)
            (self.out / INDEX).unlink()
            return None
        return self._by_row(range(len(self.rows)), clips, self._errors())

    def _packed(self) -> dict[int, Settled]:
        """What the packed groups have for each row, as far as it can be told."""
        found: dict[int, Settled] = {}
        for number, rows in self.groups.items():
            with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
                part = json.loads(self._part_index(number).read_bytes())
                clips = [ClipInfo(**info) for info in part["clips"]]
                found |= self._by_row(rows, clips, part["errors"])
        return found

    def _by_row(
        self, rows: Iterable[int], clips: Iterable[ClipInfo], errors: Iterable[tuple[str, str]]
    ) -> dict[int, Settled]:
        """Clips and errors, each in the order of the rows, by their rows."""
        clips, errors = deque(clips), deque(errors)
        found: dict[int, Settled] = {}
        for row in rows:
            path = self.rows[row].name
            if clips and clips[0].path == path:
                found[row] = clips.popleft()
            elif errors and errors[0][0] == path:
                found[row] = errors.popleft()[1]
        return found

    def _unpack(self, shards: Shards, kept: dict[int, Settled]) -> None:
        """Puts what a group has for its rows back into parts."""
        for row, what in kept.items():
            if isinstance(what, ClipInfo):
                _save_clips(_clip_part(self.parts, row), [shards.clip(what)])
            else:
                write(_error_part(self.parts, row), what)

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
        self,
        root: Path,
        todo: list[int],
        arguments: tuple[Any, ...],
        workers: int,
        engine: Engine,
    ) -> Iterator[tuple[int, str | WriteError | None]]:
        good = []
        for row in todo:
            fault = self.rows[row].fault
            if fault:
                yield row, fault
            elif locate(root, self.rows[row].path) is None:
                yield row, _LINKED
            else:
                good.append((row, self.rows[row]))
        for (row, _), result in engine(
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
        shard = self._shard(number)
        clips: list[Clip] = []
        settled: dict[int, Settled] = {}
        audio = video = 0
        for index in self.groups[number]:
            part = _clip_part(self.parts, index)
            if not part.is_file():
                settled[index] = _error_part(self.parts, index).read_text(encoding="utf-8")
                continue
            clip = _load_part(part)
            info = _info(self.rows[index], shard, audio, video, clip)
            audio, video = audio + info.audio_length, video + info.video_length
            clips.append(clip)
            settled[index] = info
        if clips:
            _save_clips(self.out / shard, clips)
        self._write_part_index(number, settled)
        for index in self.groups[number]:
            _clip_part(self.parts, index).unlink(missing_ok=True)
            _error_part(self.parts, index).unlink(missing_ok=True)

    @staticmethod
    def _shard(number: int) -> str:
        return f"shard-{number:05d}.safetensors"

    def _part_index(self, number: int) -> Path:
        return self.parts / f"shard-{number:05d}.json"

    def _write_part_index(self, number: int, settled: dict[int, Settled]) -> None:
        clips, errors = self._sorted_out(settled)
        part = {"clips": [asdict(clip) for clip in clips], "errors": errors}
        write(self._part_index(number), json.dumps(part))

    def _sorted_out(
        self, settled: dict[int, Settled]
    ) -> tuple[list[ClipInfo], list[tuple[str, str]]]:
        """The clips, and the errors with their paths; `_by_row` puts them together again."""
        clips = [what for what in settled.values() if isinstance(what, ClipInfo)]
        errors = [
            (self.rows[row].name, what) for row, what in settled.items() if isinstance(what, str)
        ]
        return clips, errors

    def _finish(self) -> None:
        clips, errors = self._sorted_out(self._packed())
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows([["path", "reason"], *errors])
        write(self.out / ERRORS, table.getvalue())
        if clips:
            write(self.out / INDEX, index_json(self.features, clips))
        else:  # nothing to keep: most likely a wrong root, and the next try starts afresh
            (self.out / _SETTINGS).unlink()
            (self.out / _MEDIA).unlink()
        self._tidy()

    def _tidy(self) -> None:
        """Removes what is needed while the cache is made only."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def _errors(self) -> list[tuple[str, str]]:
        """Paths and reasons of the clips that could not be used, as far as the table can be read."""
        try:
            text = (self.out / ERRORS).read_bytes().decode()
            whole = text[: text.rfind("\n") + 1]  # a last line that was cut short is none
            return [(row["path"], row["reason"]) for row in csv.DictReader(io.StringIO(whole, ""))]
        except (FileNotFoundError, ValueError, LookupError, csv.Error):
            return []

    def report(self, resumed: int, seconds: float) -> PrepareReport:
        """The numbers of a finished cache, or of a job's share."""
        if (self.out / INDEX).is_file():
            clips, errors = [*ClipCache(self.out).clips], self._errors()
        else:  # of a job, or of a corpus of which nothing could be used
            clips, errors = self._sorted_out(self._packed())
            errors = errors or self._errors()
        categories = Counter(category_of(why) for _, why in errors)
        alone = Counter(clip.streams[0] for clip in clips if len(clip.streams) == 1)
        return PrepareReport(len(clips), dict(alone), resumed, dict(categories), seconds)


def _numbers(parts: Iterable[Path]) -> set[int]:
    """Of the groups of which there are parts."""
    return {
        int(file.stem.removeprefix("shard-"))
        if file.suffix == ".json"
        else int(file.stem) // _SHARD_ROWS
        for file in parts
    }


def _stamp(root: Path, row: Row) -> str:
    """Size and time of a row's media file, or an empty string where there is none to look at."""
    if row.fault:
        return ""
    try:
        found = (root / row.path).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


def _readable(shards: Shards, what: Settled) -> bool:
    """Whether a clip is in its shard as it was written; a reason is."""
    try:
        if isinstance(what, ClipInfo):
            shards.clip(what)
    except CacheError:
        return False
    return True


def _worker_setup(
    root: Path, features: FeatureConfig, detector: Path | None, max_seconds: float, parts: Path
) -> Callable[[tuple[int, Row]], str | WriteError | None]:
    import cv2

    from avemo.data.faces import load_detector
    from avemo.training.memory import keep_freed_memory

    cv2.setNumThreads(1)  # the workers share the cores among themselves
    keep_freed_memory()  # the next clip takes as much, and each new page costs more than a pixel's work
    return partial(
        _prepare_clip,
        root=root,
        features=features,
        detector=load_detector(detector),
        max_seconds=max_seconds,
        parts=parts,
    )


def _prepare_clip(
    item: tuple[int, Row],
    *,
    root: Path,
    features: FeatureConfig,
    detector: Any,
    max_seconds: float,
    parts: Path,
) -> str | WriteError | None:
    """Puts a clip's arrays into its part; gives the reason if it has none."""
    number, row = item
    path = locate(root, row.path)
    if path is None:
        return _LINKED
    try:
        clip = extract(
            path,
            features,
            detector,
            max_seconds=max_seconds,
            needs=row.streams or None,
            cut=row.cut,
        )
    except Exception as error:
        return str(refusal(error))
    try:
        _save_clips(_clip_part(parts, number), [clip])
    except WriteError as error:  # no fault of the clip: the run ends with it
        return error
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
        row.name,
        row.label,
        row.speaker,
        row.split,
        shard,
        audio_offset=audio,
        audio_length=len(clip.audio),
        video_offset=video,
        video_length=len(clip.video),
        group=row.group,
    )


def _save_clips(path: Path, clips: list[Clip]) -> None:
    """Writes clips end to end; a reader sees the whole file or none."""
    write(path, shard_content(clips))
