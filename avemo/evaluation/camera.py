"""What a model says of a camera, as it goes: bars in the terminal.

A camera has no microphone here. What a model that listens hears comes from the machine's own, by the package
sounddevice; where that is not there, such a model is refused, for what it would say of silence means nothing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from avemo.data.faces import load_detector
from avemo.data.features import FeatureConfig
from avemo.data.media import BOTH, Footage
from avemo.data.reasons import MediaError
from avemo.evaluation.decoding import Windows, piece_of
from avemo.evaluation.output import bars
from avemo.training.description import Wanted

WINDOW_SECONDS, HOP_SECONDS = 3.0, 1.0
"""Where none are asked for."""

_LARGEST_SIDE = 640


class CameraError(ValueError):
    """The camera cannot be used, or not for this model."""


class _Shown(NamedTuple):
    """A frame of the camera: seconds, and grey, uint8 (H, W)."""

    time: float
    frame: NDArray[np.uint8]


class Microphone:
    """The last seconds of the machine's sound, mono.

    Args:
        rate: samples per second.
        seconds: that are kept.
    """

    def __init__(self, rate: int, seconds: float) -> None:
        import sounddevice

        self._rate = rate
        self._kept: deque[NDArray[np.float32]] = deque()
        self._most = round(seconds * rate)
        self._held = 0
        self._stream = sounddevice.InputStream(
            samplerate=rate, channels=1, dtype="float32", callback=self._take
        )

    def __enter__(self) -> Microphone:
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def last(self, samples: int) -> NDArray[np.float32]:
        """So many samples up to now; silence before it was heard."""
        heard = np.concatenate([np.zeros(samples, np.float32), *list(self._kept)])
        return np.asarray(heard[len(heard) - samples :])

    def _take(self, block: NDArray[np.float32], *_: object) -> None:
        self._kept.append(block[:, 0].copy())
        self._held += len(block)
        while self._held - len(self._kept[0]) >= self._most:
            self._held -= len(self._kept.popleft())


def watch(
    checkpoint: Path,
    model: Wanted,
    camera: str,
    windows: Windows,
    seconds: float | None,
    detector: Path | None,
    out: TextIO | None = None,
) -> int:
    """Shows what a model says of the last window of a camera, every hop, until Ctrl-C.

    Args:
        checkpoint: the model.
        model: what it wants.
        camera: its number, or what else OpenCV can open.
        windows: how long the model looks, and how often.
        seconds: after which to end; None goes on until Ctrl-C or the camera's end.
        detector: a YuNet model, or None.
        out: where the bars go; standard output by default.

    Returns:
        How many times the model was asked.

    Raises:
        CameraError: the camera cannot be opened, or the model listens and there is no microphone.
    """
    from avemo.evaluation.answers import Asker
    from avemo.models import needed_streams
    from avemo.training.checkpoint import load

    if windows.hop is None:
        length = min(WINDOW_SECONDS, windows.seconds)
        windows = Windows(length, min(HOP_SECONDS, length))
    assert windows.hop is not None
    ears = _ears(model, windows)
    with _opened(camera) as frames, ears as microphone:
        trained = load(checkpoint).model
        asker = Asker(trained, model.features, needed_streams(trained))
        finder = load_detector(detector)
        asked = 0
        try:
            for footage in _windows(frames, model.features, windows, seconds, microphone):
                piece = piece_of(footage, model.features, finder, model.needs)
                if isinstance(piece.clip, MediaError):
                    lines = [str(piece.clip)]
                else:
                    values = asker(piece.clip).probabilities.tolist()
                    ranked = sorted(zip(model.classes, values, strict=True), key=lambda v: -v[1])
                    lines = bars(dict(ranked))
                _show(
                    [f"{footage.start + piece.duration:6.1f} s", *lines], asked, out or sys.stdout
                )
                asked += 1
        except KeyboardInterrupt:
            pass
    if not asked:
        raise CameraError(f"camera {camera} gave less than a window of {windows.seconds:g} s")
    return asked


def _ears(model: Wanted, windows: Windows) -> AbstractContextManager[Microphone | None]:
    """The microphone of a model that listens."""
    if "audio" not in model.needs:
        return nullcontext()
    try:
        return Microphone(model.features.sample_rate, windows.seconds)
    except (ImportError, OSError) as error:  # OSError: it is there, but PortAudio is not
        raise CameraError(
            "this model listens, and a camera has no sound: install sounddevice and PortAudio for the microphone "
            f"(pip install sounddevice), or take a model that only looks ({error})"
        ) from error
    except Exception as error:  # of PortAudio: no device, or none that can do that
        raise CameraError(
            f"this model listens, and the microphone cannot be used: {error}"
        ) from error


@contextmanager
def _opened(camera: str) -> Iterator[Iterator[_Shown]]:
    """The frames of a camera as they come."""
    import cv2

    live = camera.isdecimal()
    source = cv2.VideoCapture(int(camera) if live else camera)
    try:
        if not source.isOpened():
            raise CameraError(f"camera {camera} cannot be opened")
        yield _frames(source, time.monotonic if live else partial(_position, source))
    finally:
        source.release()


def _position(source: Any) -> float:
    """Seconds by the clock of a stream, which a file has."""
    import cv2

    return float(source.get(cv2.CAP_PROP_POS_MSEC)) / 1000


def _frames(source: Any, clock: Callable[[], float]) -> Iterator[_Shown]:
    import cv2

    start: float | None = None
    while True:
        there, frame = source.read()
        if not there:
            return
        now = clock()
        start = now if start is None else start
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if frame.ndim == 3 else frame
        scale = _LARGEST_SIDE / max(grey.shape)
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield _Shown(now - start, grey)


def _windows(
    frames: Iterator[_Shown],
    features: FeatureConfig,
    windows: Windows,
    seconds: float | None,
    microphone: Microphone | None,
) -> Iterator[Footage]:
    """The last window, every hop, in even steps of time whatever the camera's pace.

    What comes while the model thinks waits in the camera; where that keeps only a few frames, the others are lost, and
    the window shows the frame before for as long.
    """
    assert windows.hop is not None
    count = max(1, round(windows.seconds * features.fps))
    held: deque[_Shown] = deque()
    due = windows.seconds
    for shown in frames:
        held.append(shown)
        while len(held) > 1 and held[1].time <= shown.time - windows.seconds:
            held.popleft()
        if shown.time >= due:
            start = shown.time - windows.seconds
            times = start + (np.arange(count) + 1) * windows.seconds / count
            latest = np.searchsorted([h.time for h in held], times + 1e-9, "right") - 1
            chosen = np.stack([held[max(0, int(i))].frame for i in latest])
            samples = round(count / features.fps * features.sample_rate)
            heard = (
                np.zeros(samples, np.float32) if microphone is None else microphone.last(samples)
            )
            streams = ("video",) if microphone is None else BOTH
            yield Footage(start, heard, chosen, float(np.abs(heard).max(initial=0.0)), streams)
            due = max(due + windows.hop, shown.time)
        if seconds is not None and shown.time >= seconds:
            return


def _show(lines: list[str], before: int, out: TextIO) -> None:
    """In the place of the ones before, where that is a terminal."""
    if out.isatty():
        out.write("\x1b[H\x1b[J" if before else "\x1b[2J\x1b[H")
    out.write("\n".join(lines) + "\n")
    out.flush()
