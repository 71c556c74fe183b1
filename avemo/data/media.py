"""Reads any audio-video file as one stretch of mono sound and evenly spaced grey frames.

The picture decides what the clip is: it starts with the first frame and ends with the last one;
sound outside of that is cut and missing sound is silence. So both streams always span the same
time, which is what attention pooling over trunks takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHORTEST_SECONDS = 0.2
"""A clip below this holds too few frames for either encoder."""

LARGEST_JUMP_SECONDS = 10.0
"""A gap between timestamps above this is a fault of the container, not a pause in the recording."""

SMALLEST_GAP_SECONDS = 0.1
"""Gaps in the sound below this are jitter of the container's clock and are closed."""

TRUNCATED_SECONDS, TRUNCATED_SHARE = 0.3, 0.05
"""A file is truncated if more than both of these is missing of the duration that it declares."""

DAMAGED_SHARE = 0.2
"""A file is damaged if more than this share of a stream's packets cannot be decoded."""

SMALLEST_SIDE = 16
LARGEST_SKEW_SECONDS = 5.0


class MediaError(Exception):
    """A clip that cannot be used.

    The message is the reason, as `errors.csv` shows it: a category, or a category, a colon and
    details.
    """

    @property
    def category(self) -> str:
        """The reason without its details, for counting."""
        return str(self).split(":", 1)[0]


class Footage(NamedTuple):
    """A stretch of decoded media.

    Attributes:
        start: seconds from the clip's first frame.
        waveform: float32 (N,), mono, full scale is 1.
        frames: uint8 (T, H, W), grey, upright, square pixels.
    """

    start: float
    waveform: NDArray[np.float32]
    frames: NDArray[np.uint8]


def read_footage(
    path: Path,
    *,
    sample_rate: int,
    fps: float,
    largest_side: int = 640,
    window_seconds: float | None = None,
    max_seconds: float | None = None,
) -> Iterator[Footage]:
    """Decodes a media file in one pass, window by window.

    Args:
        path: a regular file in any container and codec that FFmpeg reads.
        sample_rate: of the waveform, in Hz.
        fps: frames per second to give. Frame n is the one shown at n / fps seconds, by the
            timestamps of the file, so a variable frame rate becomes an even one.
        largest_side: frames larger than this are scaled down while they are converted.
        window_seconds: the length of a window; None gives the whole file as one. A clip longer than
            a window is cut into equal windows no longer than this, as far as the container knows
            its duration.
        max_seconds: the longest clip to accept; bounds the memory when the file is read as a whole.

    Yields:
        The windows in order. Memory is bounded by one window.

    Raises:
        MediaError: the file is missing, no regular file, empty, no media file, truncated or
            damaged, lacks a stream, is too short or too long. Truncation shows at the end only,
            after the windows before it.
    """
    import av

    _check_file(path)
    try:
        # An open file with no protocols allowed: a playlist cannot make FFmpeg open another path or
        # a URL.
        with (
            path.open("rb") as file,
            av.open(file, options={"protocol_whitelist": "pipe"}) as container,
        ):
            yield from _read_streams(
                container,
                sample_rate=sample_rate,
                fps=fps,
                largest_side=largest_side,
                window_seconds=window_seconds,
                max_seconds=max_seconds,
            )
    except (av.FFmpegError, EOFError) as error:
        raise MediaError(_reason_unreadable(path, error)) from error
    except OSError as error:
        raise MediaError(f"unreadable file: {error.strerror or error}") from error


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise MediaError("no such file")
        if not path.is_file():  # a pipe or device would block
            raise MediaError("not a regular file")
        if path.stat().st_size == 0:
            raise MediaError("empty file")
    except (OSError, ValueError) as error:  # no permission, name too long, a null character
        raise MediaError(f"unreadable file: {error}") from error


def _reason_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return "truncated: an MP4 file without its index"
    return f"not a media file: {getattr(error, 'strerror', None) or error}"


def _read_streams(
    container: Any,
    *,
    sample_rate: int,
    fps: float,
    largest_side: int,
    window_seconds: float | None,
    max_seconds: float | None,
) -> Iterator[Footage]:
    video = next((s for s in container.streams.video if not _is_cover(s)), None)
    audio = container.streams.best("audio")
    if video is None:
        raise MediaError("no video stream")
    if audio is None:
        raise MediaError("no audio stream")
    declared = _declared_seconds(container, video, audio)
    window = _window_frames(fps, window_seconds, declared)
    for stream in (video, audio):
        # One thread: the cores belong to the workers, and the order of errors stays the same every
        # time.
        stream.codec_context.thread_count = 1
    picture = _Picture(video, fps, largest_side)
    sound = _Sound(sample_rate)
    packets = {video.index: 0, audio.index: 0}
    bad_packets = dict(packets)
    given = 0
    for packet in container.demux(video, audio):
        index = packet.stream.index
        packets[index] += 1
        try:
            frames = packet.decode()
        except Exception as error:
            if not _is_decoding_error(error):
                raise
            bad_packets[index] += 1
            continue
        for frame in frames:
            (picture if index == video.index else sound).add(frame)
        if max_seconds is not None and picture.end > max_seconds:
            raise MediaError(f"too long: more than {max_seconds:g} s")
        while (
            window is not None
            and picture.ready >= window
            and _sound_is_there(picture, sound, given + window, fps)
        ):
            yield _footage(picture, sound, given, window, fps, sample_rate)
            given += window
    sound.finish()
    picture.finish()
    _check_end(packets, bad_packets, declared, picture, sound, video.index, audio.index)
    while picture.ready:
        count = picture.ready if window is None else min(window, picture.ready)
        yield _footage(picture, sound, given, count, fps, sample_rate)
        given += count


def _is_cover(stream: Any) -> bool:
    import av.stream

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_decoding_error(error: Exception) -> bool:
    import av

    return isinstance(error, av.FFmpegError | EOFError | ValueError)


def _declared_seconds(container: Any, video: Any, audio: Any) -> float | None:
    known = [float(s.duration * s.time_base) for s in (video, audio) if s.duration and s.time_base]
    if len(known) == 2:
        return max(known)
    return container.duration / 1e6 if container.duration else None


def _window_frames(fps: float, window_seconds: float | None, declared: float | None) -> int | None:
    if window_seconds is None:
        return None
    pieces = max(1, math.ceil(declared / window_seconds - 0.01)) if declared else 1
    seconds = declared / pieces if declared else window_seconds
    return max(1, math.ceil(seconds * fps - 1e-6))


def _sound_is_there(picture: _Picture, sound: _Sound, upto: int, fps: float) -> bool:
    return sound.end >= picture.zero + upto / fps or picture.end > upto / fps + LARGEST_SKEW_SECONDS


def _footage(
    picture: _Picture, sound: _Sound, first: int, count: int, fps: float, sample_rate: int
) -> Footage:
    start = first / fps
    samples = round(count / fps * sample_rate)
    waveform = sound.take(picture.zero + start, samples)
    return Footage(start, waveform, np.stack(picture.take(count)))


def _check_end(
    packets: dict[int, int],
    bad_packets: dict[int, int],
    declared: float | None,
    picture: _Picture,
    sound: _Sound,
    video: int,
    audio: int,
) -> None:
    for name, index, empty in (
        ("video", video, not picture.seen),
        ("audio", audio, not sound.segments),
    ):
        if bad_packets[index] > DAMAGED_SHARE * packets[index]:
            raise MediaError(f"damaged {name}: {bad_packets[index]} of {packets[index]} packets")
        if (
            empty and declared and packets[index] <= 1
        ):  # the last packet is the empty one that flushes
            raise MediaError(f"truncated: no {name} in the file")
        if empty:
            raise MediaError(f"no {name} stream: it is empty")
    end = max(picture.end, sound.end - picture.zero)
    if declared and declared - end > max(TRUNCATED_SECONDS, TRUNCATED_SHARE * declared):
        raise MediaError(f"truncated: {end:.2f} s of {declared:.2f} s")
    if picture.end < SHORTEST_SECONDS:
        raise MediaError(f"too short: {picture.end:.2f} s of video")


@dataclass
class _Clock:
    """Makes one steady time line of a stream's timestamps, missing and odd ones included."""

    shift: float = 0.0
    expected: float | None = None  # where the next frame belongs if it has no timestamp

    def place(self, raw: float | None, duration: float) -> float:
        if self.expected is None:
            time = raw or 0.0
        elif raw is None:
            time = self.expected
        else:
            time = raw + self.shift
            if (
                abs(time - self.expected) > LARGEST_JUMP_SECONDS
                or time < self.expected - 2 * duration - 0.5
            ):
                self.shift += self.expected - time  # the stream's clock was reset: go on from here
                time = self.expected
        self.expected = time + duration
        return time


class _Picture:
    """Collects the frames shown at n / fps seconds after the first one."""

    def __init__(self, stream: Any, fps: float, largest_side: int) -> None:
        from av.video.reformatter import VideoReformatter

        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.period = 1 / rate if 1 <= rate <= 1000 else 1 / 25
        self.time_base = stream.time_base
        self.aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        self.fps = fps
        self.largest_side = largest_side
        self.reformatter = VideoReformatter()
        self.clock = _Clock()
        self.zero = 0.0
        self.end = 0.0  # seconds from the first frame to where the last one ends
        self.count = 0  # frames given out or waiting
        self.waiting: list[NDArray[np.uint8]] = []
        self.size: tuple[int, int] | None = None
        self.last: Any = None  # the frame on show, converted only if it is wanted
        self.seen = False

    @property
    def ready(self) -> int:
        return len(self.waiting)

    def add(self, frame: Any) -> None:
        pts = frame.pts if frame.pts is not None else frame.dts
        base = frame.time_base or self.time_base
        raw = float(pts * base) if pts is not None and base else None
        time = self.clock.place(raw, self.period)
        if not self.seen:
            self.zero, self.seen = time, True
        time -= self.zero
        self._show_until(time)
        self.last = frame
        self.end = max(self.end, time + self.period)

    def finish(self) -> None:
        self._show_until(self.end)
        if self.seen and self.count == 0:
            self._show_until(1 / self.fps)
        self.last = None

    def take(self, count: int) -> list[NDArray[np.uint8]]:
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def _show_until(self, time: float) -> None:
        # A millisecond of grace: containers that count in milliseconds round either way.
        grey: NDArray[np.uint8] | None = None
        while self.last is not None and self.count / self.fps < time - 1e-3:
            if grey is None:
                grey = self._grey(self.last)
            self.waiting.append(grey)
            self.count += 1

    def _grey(self, frame: Any) -> NDArray[np.uint8]:
        if self.size is None:
            width, height = (
                frame.width * max(self.aspect, 1.0),
                frame.height / min(self.aspect, 1.0),
            )
            scale = min(1.0, self.largest_side / max(width, height))
            self.size = (
                max(SMALLEST_SIDE, round(width * scale)),
                max(SMALLEST_SIDE, round(height * scale)),
            )
        rotation = frame.rotation
        grey = self.reformatter.reformat(frame, *self.size, format="gray").to_ndarray()
        # FFmpeg's display matrix: the angle by which the decoded picture turns counterclockwise to
        # stand upright.
        return np.ascontiguousarray(np.rot90(grey, round(rotation / 90) % 4))


@dataclass
class _Segment:
    start: float
    chunks: list[NDArray[np.float32]] = field(default_factory=list)
    samples: int = 0


class _Sound:
    """Collects mono sound at one sample rate and lays it out by its timestamps."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.clock = _Clock()
        self.segments: list[_Segment] = []
        self.resampler: Any = None
        self.input: tuple[Any, ...] | None = None
        self.until: float | None = None  # where the input so far ends

    @property
    def end(self) -> float:
        return (
            self.segments[-1].start + self.segments[-1].samples / self.sample_rate
            if self.segments
            else -math.inf
        )

    def add(self, frame: Any) -> None:
        import av

        duration = frame.samples / frame.sample_rate
        raw = (
            float(frame.pts * frame.time_base)
            if frame.pts is not None and frame.time_base
            else None
        )
        time = self.clock.place(raw, duration)
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        gap = self.until is not None and time - self.until > SMALLEST_GAP_SECONDS
        if kind != self.input or gap:
            start = time if gap or self.until is None else self.until
            self.finish()
            # Integers, as FFmpeg's downmix of floats to mono is louder than the channels are.
            self.resampler = av.AudioResampler(format="s32", layout="mono", rate=self.sample_rate)
            self.input = kind
            self.segments.append(_Segment(start))
        self.until = time + duration if gap or self.until is None else self.until + duration
        self.clock.expected = self.until
        frame.pts = None  # the layout is ours; the resampler must not pad or drop by timestamps
        self._keep(self.resampler.resample(frame))

    def finish(self) -> None:
        if self.resampler is not None:
            self._keep(self.resampler.resample(None))
            self.resampler = None

    def _keep(self, frames: list[Any]) -> None:
        segment = self.segments[-1]
        for frame in frames:
            chunk = (frame.to_ndarray().reshape(-1) * 2.0**-31).astype(np.float32)
            segment.chunks.append(chunk)
            segment.samples += chunk.size

    def take(self, start: float, samples: int) -> NDArray[np.float32]:
        """The sound of a stretch; sound before its end is forgotten."""
        waveform = np.zeros(samples, np.float32)
        kept = []
        for segment in self.segments:
            whole = np.concatenate(segment.chunks) if segment.chunks else np.zeros(0, np.float32)
            offset = round((segment.start - start) * self.sample_rate)
            first, last = max(0, offset), min(samples, offset + whole.size)
            if first < last:
                waveform[first:last] = whole[first - offset : last - offset]
            rest = min(max(0, samples - offset), whole.size)
            tail = whole[rest:]
            kept.append(_Segment(segment.start + rest / self.sample_rate, [tail], tail.size))
        self.segments = (
            kept[-1:] if kept and kept[-1].samples == 0 else [s for s in kept if s.samples]
        )
        return waveform
