"""What `avemo predict` reads of media files, in processes of their own: a decoder that dies costs its clip alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avemo.data.features import Clip, FeatureConfig, features_of
from avemo.data.limits import (
    LONGEST_WORK_SECONDS,
    MOST_MEMORY,
    SHORTEST_SECONDS,
    WINDOW_SECONDS,
)
from avemo.data.media import Footage, read_footage
from avemo.data.reasons import MediaError, refusal
from avemo.data.worker import WorkerDeath, ended, process_all

PEAKS_PER_SECOND = 50
FRAME_HEIGHT = 90
SHORTEST_HOP_SECONDS = (
    0.01  # windows begin at frames: what is far less than one brings nothing, and takes for ever
)
_AHEAD = 8  # windows that wait for the model at most


class Windows(NamedTuple):
    """How a clip is cut.

    Attributes:
        seconds: of a window at most, or, where there is a hop, exactly, if the clip is as long.
        hop: seconds from the start of a window to that of the next; None for equal windows, end to end.
    """

    seconds: float
    hop: float | None = None


def windows_of(longest: float | None, window: float | None, hop: float | None) -> Windows:
    """How clips are cut for a model.

    Args:
        longest: seconds of the longest clips that it was trained with; None where they were not cropped.
        window: seconds of a window that the user has asked for.
        hop: from window to window.

    Raises:
        ValueError: a window is shorter than a clip may be, or longer than those of training; or a hop without a window.
    """
    longest = longest or WINDOW_SECONDS
    if window is None:
        if hop is not None:
            raise ValueError(f"hop needs a window, got hop={hop:g} alone")
        return Windows(longest)
    if not SHORTEST_SECONDS <= window <= longest:
        raise ValueError(
            f"window must lie in {SHORTEST_SECONDS:g}..{longest:g} seconds, the lengths that the model knows, "
            f"got {window:g}"
        )
    hop = window if hop is None else hop
    if not SHORTEST_HOP_SECONDS <= hop <= window:
        raise ValueError(
            f"hop must lie in {SHORTEST_HOP_SECONDS:g}..{window:g} seconds, up to the window's length, got {hop:g}"
        )
    return Windows(window, hop)


@dataclass(frozen=True)
class Piece:
    """A window of a clip.

    Attributes:
        start: seconds.
        duration: seconds.
        clip: what the model takes of it, or why there is nothing.
        peaks: the loudest of the waveform in each 1 / `PEAKS_PER_SECOND` second, float32 (N,).
        frame: the picture in its middle, uint8 (`FRAME_HEIGHT`, W); None without one.
    """

    start: float
    duration: float
    clip: Clip | MediaError
    peaks: NDArray[np.float32]
    frame: NDArray[np.uint8] | None


class Finished(NamedTuple):
    """Follows the last window of a clip.

    Attributes:
        error: why the file as a whole cannot be used, or None.
    """

    error: MediaError | None


def decoded(
    clips: Sequence[Path],
    features: FeatureConfig,
    detector: Path | None,
    windows: Windows,
    needs: tuple[str, ...],
    workers: int,
) -> AbstractContextManager[Iterator[tuple[int, Piece | Finished]]]:
    """The windows of clips, each with the clip's number, those of a clip in order; clips may be mixed.

    They are read ahead from when the context is entered: what else has to be got ready can be meanwhile.

    Args:
        clips: media files.
        features: that they must be extracted with.
        detector: the YuNet model, or None for the Haar cascade.
        windows: how they are cut.
        needs: the streams that have to be there.
        workers: processes.
    """
    results = process_all(
        enumerate(clips),
        decoder,
        (features, detector, windows, needs),
        workers=min(workers, len(clips)),
        timeout=LONGEST_WORK_SECONDS,
        memory=MOST_MEMORY,
    )
    return _ahead(results)


def decoder(
    features: FeatureConfig, detector: Path | None, windows: Windows, needs: tuple[str, ...]
) -> Callable[[tuple[int, Path]], Iterator[Piece | Finished]]:
    """What a process does with a clip."""
    from avemo.data.faces import load_detector

    finder = cache(load_detector)

    def decode(item: tuple[int, Path]) -> Iterator[Piece | Finished]:
        try:
            for footage in footage_of(item[1], features, windows, needs):
                yield piece_of(footage, features, finder(detector), needs)
            yield Finished(None)
        except Exception as error:
            yield Finished(refusal(error))

    return decode


def footage_of(
    path: Path, features: FeatureConfig, windows: Windows, needs: tuple[str, ...]
) -> Iterator[Footage]:
    """The windows of a file, undone of their coding."""
    read = read_footage(
        path,
        sample_rate=features.sample_rate,
        fps=features.fps,
        window_seconds=windows.seconds,
        needs=needs,
    )
    return read if windows.hop is None else sliding(read, features, windows)


def sliding(
    footages: Iterator[Footage], features: FeatureConfig, windows: Windows
) -> Iterator[Footage]:
    """Windows that overlap, of windows end to end.

    A clip shorter than a window is one. Where the last window does not end with the clip, one more does.
    """
    assert windows.hop is not None
    size = max(1, int(windows.seconds * features.fps + 1e-6))
    starts = (round(number * windows.hop * features.fps) for number in itertools.count())
    held: Footage | None = None
    first = given_to = 0  # frames: where what is held begins, and where the last window ended
    start = next(starts)
    for footage in footages:
        held = footage if held is None else _joined(held, footage)
        while start + size <= first + len(held.frames):
            yield _cut(held, features, start - first, size)
            given_to = start + size
            start = next(s for s in starts if s > start)
        spare = min(start, first + len(held.frames) - size) - first
        if spare > 0:
            held = _cut(held, features, spare, len(held.frames) - spare)
            first += spare
    if held is not None and first + len(held.frames) > given_to:
        count = min(size, len(held.frames))
        yield _cut(held, features, len(held.frames) - count, count)


def _joined(before: Footage, after: Footage) -> Footage:
    return after._replace(
        start=before.start,
        waveform=np.concatenate([before.waveform, after.waveform]),
        frames=np.concatenate([before.frames, after.frames]),
    )


def _cut(footage: Footage, features: FeatureConfig, first: int, count: int) -> Footage:
    per_frame = features.sample_rate / features.fps
    before = round(
        footage.start * features.fps
    )  # frames; samples are counted from the clip's first
    edges = [round((before + frame) * per_frame) for frame in (0, first, first + count)]
    samples = slice(edges[1] - edges[0], edges[2] - edges[0])
    return footage._replace(
        start=footage.start + first / features.fps,
        waveform=footage.waveform[samples],
        frames=footage.frames[first : first + count],
    )


def piece_of(
    footage: Footage, features: FeatureConfig, finder: Any, needs: tuple[str, ...]
) -> Piece:
    """What the model takes of a window, and what a picture shows of it."""
    clip: Clip | MediaError
    try:
        clip = features_of(footage, features, finder, needs)
    except MediaError as error:
        clip = error
    return Piece(
        footage.start,
        len(footage.frames) / features.fps,
        clip,
        _peaks(footage.waveform, features.sample_rate),
        _thumbnail(footage.frames),
    )


def _peaks(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if not len(waveform):
        return np.zeros(0, np.float32)
    starts = np.arange(0, len(waveform), rate // PEAKS_PER_SECOND)
    return np.maximum.reduceat(np.abs(waveform), starts)


def _thumbnail(frames: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    import cv2

    if not frames.size:
        return None
    frame = frames[len(frames) // 2]
    width = max(1, round(frame.shape[1] * FRAME_HEIGHT / frame.shape[0]))
    small = cv2.resize(frame, (width, FRAME_HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


@contextmanager
def _ahead(
    results: Iterator[tuple[tuple[int, Path], Any]],
) -> Iterator[Iterator[tuple[int, Piece | Finished]]]:
    """Takes results in a thread from now on, a bounded number of them; after an error the next one is its last."""
    waiting: Queue[Any] = Queue(_AHEAD)
    stop = Event()
    Thread(target=_take, args=(results, waiting, stop), daemon=True).start()

    def give() -> Iterator[tuple[int, Piece | Finished]]:
        while (taken := waiting.get()) is not None:
            if isinstance(taken, BaseException):
                raise taken
            (number, _), result = taken
            yield number, Finished(ended(result)) if isinstance(result, WorkerDeath) else result

    try:
        yield give()
    finally:
        stop.set()


def _take(results: Iterator[Any], waiting: Queue[Any], stop: Event) -> None:
    end: BaseException | None = None
    try:
        for result in results:
            if not _put(result, waiting, stop):
                break
    except BaseException as error:  # told where the results are awaited
        end = error
    finally:
        results.close()  # type: ignore[attr-defined]
    _put(end, waiting, stop)


def _put(item: Any, waiting: Queue[Any], stop: Event) -> bool:
    """Waits for a place, unless no one takes items any longer."""
    while not stop.is_set():
        with suppress(Full):
            waiting.put(item, timeout=0.2)
            return True
    return False
