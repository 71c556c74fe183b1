"""Reads any audio-video file as one stretch of mono sound and evenly spaced grey frames.

The picture decides what the clip is: it starts with the first frame and ends with the last one;
sound outside of that is cut and missing sound is silence. So both streams always span the same
time, which is what attention pooling over trunks takes for granted. docs/clips.md says what is done
with clocks that are odd.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avemo.data.limits import KEPT_BYTES, LARGEST_PIXELS, SHORTEST_SECONDS
from avemo.data.luma import grey_of
from avemo.data.reasons import MediaError
from avemo.data.survey import LONGEST_REST_SECONDS, Survey, Track, seconds_of, survey

BOTH = ("audio", "video")

HALVES = ("left", "right")

LARGEST_GAP_SECONDS = 0.1
"""Sound that is further from its timestamp than this is laid where the timestamp says."""

SMALLEST_GAP_SECONDS, GAP_FRAMES = 0.012, 8
"""So is sound that is further than this for as many frames; less is jitter of the container's clock."""

DAMAGED_SHARE = 0.2
"""A file is damaged if more than this share of a stream's packets cannot be decoded."""

SMALLEST_SIDE = 16

GRACE_SECONDS = 1e-3
"""A picture may come this much late: containers that count in milliseconds round either way."""

SKIPPING = ("h264", "hevc")
"""Codecs whose decoders leave out, when told to, what no other picture is made from."""

KNOWN_FILES = 4

MISSING_SECONDS = 0.5
"""A cut may end this much after its file: times in lists are rounded, and of one of the two streams."""

PQ, PQ_WHITE, PQ_PEAK = 16, 203.0, 1000.0
"""The code of SMPTE 2084 (HDR10), and its levels of paper white and of the brightest light that is told
from brighter, cd/m2 (ITU-R BT.2408)."""


class Cut(NamedTuple):
    """What of a file is a clip.

    Attributes:
        start: seconds from the first picture.
        end: seconds from the first picture; None is the end of the file.
        half: "left" or "right" if it is one half of the upright picture, an empty string if it is all.
    """

    start: float = 0.0
    end: float | None = None
    half: str = ""


WHOLE = Cut()


class Footage(NamedTuple):
    """A stretch of decoded media.

    Attributes:
        start: seconds from the clip's first frame.
        waveform: float32 (N,), mono, full scale is 1.
        frames: uint8 (T, H, W), grey, upright, square pixels; (T, 0, 0) if the file has no picture.
        loudest: level of the loudest channel so far, which the waveform, a mean, may not reach.
        streams: those that the file has, of "audio" and "video".
    """

    start: float
    waveform: NDArray[np.float32]
    frames: NDArray[np.uint8]
    loudest: float
    streams: tuple[str, ...] = BOTH


def read_footage(
    path: Path,
    *,
    sample_rate: int,
    fps: float,
    largest_side: int = 640,
    window_seconds: float | None = None,
    max_seconds: float | None = None,
    needs: Collection[str] = BOTH,
    cut: Cut = WHOLE,
) -> Iterator[Footage]:
    """Decodes a media file, window by window.

    Args:
        path: a regular file in any container and codec that FFmpeg reads.
        sample_rate: of the waveform, in Hz.
        fps: frames per second to give. Frame n is the one shown at n / fps seconds, by the
            timestamps of the file, so a variable frame rate becomes an even one.
        largest_side: frames larger than this are scaled down while they are converted.
        window_seconds: the length of a window; None gives the whole file as one. A clip longer than
            a window is cut into equal windows no longer than this.
        max_seconds: the longest clip to accept; bounds the memory when the file is read as a whole.
        needs: the streams that the file must have, of "audio" and "video"; one at least it must have
            in any case. A file without pictures begins and ends with its sound.
        cut: what of the file to read. Pictures and sound before it are not decoded, but for what the
            decoders have to know of them.

    Yields:
        The windows in order. Memory is bounded by one window, however the streams are interleaved.

    Raises:
        MediaError: the file is missing, no regular file, empty, no media file, truncated or
            damaged, lacks a stream, is too short, too long or too large, or ends before the cut.
            Damage shows at the end only, after the windows before it.
    """
    with ExitStack() as stack:
        found, places, kept = _look(path, needs, stack)
        there = zip(BOTH, reversed(places), strict=True)
        streams = tuple(name for name, place in there if place is not None)
        length = cut_seconds(found.seconds, cut)
        if max_seconds is not None and length > max_seconds:
            raise MediaError("too long", f"{length:.1f} s of at most {max_seconds:g} s")
        window = _window_frames(fps, window_seconds, length)
        shifts: list[float] = []
        picture: _Picture | _NoPicture = _NoPicture(found, fps, cut)
        sound: _Sound | _NoSound = _NoSound()
        if found.picture is not None and places[0] is not None:
            resume = found.picture.resume(found.first + cut.start)
            packets = _Packets(*_packets_of(path, places[0], kept, stack), "video", resume)
            pictures = stack.enter_context(closing(packets))
            clock = _Clock(found.picture, found.sound, shifts)
            picture = _Picture(pictures, found, clock, fps, largest_side, cut)
        if found.sound is not None and places[1] is not None:
            resume = found.sound.resume(found.first + cut.start)
            packets = _Packets(*_packets_of(path, places[1], kept, stack), "audio", resume)
            sounds = stack.enter_context(closing(packets))
            sound = _Sound(sounds, found, _Clock(found.sound, found.picture, shifts), sample_rate)
        given = 0
        while picture.read(window, max_seconds):
            count = picture.ready if window is None else min(window, picture.ready)
            start, samples = given / fps, round(count / fps * sample_rate)
            waveform = sound.read(picture.zero + start, samples)
            yield Footage(start, waveform, np.stack(picture.take(count)), sound.loudest, streams)
            given += count


def file_seconds(path: Path, needs: Collection[str] = ()) -> float:
    """About how long a file is, by its packets; nothing is decoded.

    Raises:
        MediaError: the file cannot be used, as far as that can be told without decoding it.
    """
    with ExitStack() as stack:
        return _look(path, needs, stack).found.seconds


def cut_seconds(seconds: float, cut: Cut) -> float:
    """How long a cut of a file is.

    Args:
        seconds: how long the file is.
        cut: what of it.

    Raises:
        MediaError: the file ends before the cut.
    """
    end = seconds if cut.end is None else cut.end
    if end > seconds + MISSING_SECONDS or cut.start > max(0.0, seconds - SHORTEST_SECONDS):
        raise MediaError(
            "outside of the file", f"{cut.start:g} to {end:g} s of a file of {seconds:.1f} s"
        )
    return min(end, seconds) - cut.start


class _Kept(NamedTuple):
    """An open file and all packets that were read of it, in order."""

    container: Any
    packets: list[Any]


class _Look(NamedTuple):
    """What a file's packets say, which are its streams of pictures and of sound, and the packets if they were
    kept."""

    found: Survey
    places: tuple[int | None, int | None]
    kept: _Kept | None


_looks: dict[tuple[Any, ...], _Look] = {}
"""Of the last files, in one state each: a film's clips come one after the other."""


def _look(path: Path, needs: Collection[str], stack: ExitStack) -> _Look:
    """Reads a file's packets, and keeps them as long as the stack is open where they are few."""
    _check_file(path)
    status = path.stat()
    key = (path, tuple(needs), status.st_mtime_ns, status.st_size)
    if key in _looks:
        return _looks[key]
    with ExitStack() as own:
        container = own.enter_context(_open(path))
        streams = _streams(container, needs)
        packets: list[Any] = []
        found = survey(container, *streams, _keep(container.demux(*filter(None, streams)), packets))
        video, audio = (None if stream is None else stream.index for stream in streams)
        while len(_looks) >= KNOWN_FILES:
            del _looks[next(iter(_looks))]
        _looks[key] = _Look(found, (video, audio), None)
        if not packets:
            return _looks[key]
        stack.push(own.pop_all())
        return _looks[key]._replace(kept=_Kept(container, packets))


def _keep(packets: Iterable[Any], kept: list[Any]) -> Iterator[Any]:
    """Passes packets on, and puts them into a list, which is empty in the end if they were too many to keep."""
    size = 0
    for packet in packets:
        size += packet.size
        if size <= KEPT_BYTES:
            kept.append(packet)
        else:
            kept.clear()
        yield packet


def _packets_of(
    path: Path, index: int, kept: _Kept | None, stack: ExitStack
) -> tuple[Any, Iterator[Any]]:
    """A stream and its packets: those that were kept, or by a reader of its own, so that no stream waits in
    memory for the other."""
    if kept is not None:
        ours = (packet for packet in kept.packets if packet.stream.index == index)
        return kept.container.streams[index], ours
    container = stack.enter_context(_open(path))
    stream = container.streams[index]
    return stream, container.demux(stream)


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise MediaError("no such file")
        if not path.is_file():  # a pipe or device would block
            raise MediaError("not a regular file")
        if path.stat().st_size == 0:
            raise MediaError("empty file")
    except (OSError, ValueError) as error:  # no permission, name too long, a null character
        raise MediaError("unreadable file", str(error)) from error


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """An open container; errors of reading it become reasons."""
    import av

    try:
        with path.open("rb") as file:
            try:
                # An open file with no protocols allowed: a playlist cannot make FFmpeg open another
                # path or a URL. Options of the container alone: up to PyAV 16 those that are for streams
                # too crash where a format finds its streams late (MPEG-PS, FLV).
                container = av.open(
                    file,
                    container_options={"protocol_whitelist": "pipe"},
                    metadata_errors="replace",
                )
            except (av.FFmpegError, EOFError, ValueError) as error:
                if isinstance(error, MemoryError):
                    raise
                raise _reason_unreadable(path, error) from error
            with container:
                yield container
    except MemoryError:
        raise
    except (av.FFmpegError, OSError) as error:
        raise MediaError("unreadable file", error.strerror or str(error)) from error


_PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<smil", b"<mpd", b"<asx", b"<?xml")


def _reason_unreadable(path: Path, error: Exception) -> MediaError:
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp":
        return MediaError("truncated", "an MP4 file without its index")
    if head.startswith(b"version https://git-lfs"):
        return MediaError("Git LFS pointer")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PLAYLISTS):
        return MediaError("playlist")
    return MediaError("not a media file", getattr(error, "strerror", None) or str(error))


def _streams(container: Any, needs: Collection[str]) -> tuple[Any, Any]:
    """The streams to read: the first of pictures, and of sound the one that FFmpeg thinks best; None
    for one that is not there and not needed."""
    video = next((s for s in container.streams.video if not _is_cover(s)), None)
    audio = container.streams.best("audio")
    for kind, stream in (("video", video), ("audio", audio)):
        if stream is None and (kind in needs or video is audio):
            raise MediaError(f"no {kind} stream")
        if stream is not None and stream.codec_context is None:
            raise MediaError("no decoder", f"FFmpeg knows none for the {kind} stream")
    if video is not None:
        _check_size(video.codec_context)
    return video, audio


def _check_size(picture: Any) -> None:
    if picture.width * picture.height > LARGEST_PIXELS:
        raise MediaError(
            "too large",
            f"{picture.width} x {picture.height} pixels of at most {LARGEST_PIXELS:,} in all",
        )


def _is_cover(stream: Any) -> bool:
    import av.stream

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _window_frames(fps: float, window_seconds: float | None, length: float) -> int | None:
    if window_seconds is None:
        return None
    pieces = max(1, math.ceil(length / window_seconds - 0.01))
    return max(1, math.ceil((length / pieces or window_seconds) * fps - 1e-6))


class _Packets:
    """Decodes one stream.

    Args:
        stream: PyAV's.
        packets: all of it.
        name: of the stream, for errors.
        resume: number of the packet from which on it is decoded; before it only the first picture is,
            whose time all others are told from.

    Attributes:
        jumped: the last frame is the first one after packets that were not decoded.
        unshown: times, seconds, of frames that need not be given.
    """

    def __init__(self, stream: Any, packets: Iterator[Any], name: str, resume: int = 0) -> None:
        self.stream, self._packets = stream, packets
        # One thread: the cores belong to the workers, and the order of errors stays the same every
        # time.
        self.stream.codec_context.thread_count = 1
        self._name, self._resume = name, resume
        self.jumped = False
        self.unshown: frozenset[float] = frozenset()
        self._total = self._bad = self._frames = 0
        self._decoded = self._decode()

    def close(self) -> None:
        """Lets go of packets and decoder at once: a generator that has not ended and this refer to each other."""
        self._decoded.close()

    def next(self) -> Any:
        """The next frame in order of display, or None at the end."""
        return next(self._decoded, None)

    def check(self) -> None:
        """Raises a `MediaError` if too much so far could not be decoded."""
        if self._bad > DAMAGED_SHARE * self._total or (self._total and not self._frames):
            raise MediaError(f"damaged {self._name}", f"{self._bad} of {self._total} packets")

    def _decode(self) -> Generator[Any, None, None]:
        import av

        context, skipped = self.stream.codec_context, False
        for number, packet in enumerate(self._packets):
            if number < self._resume and (self._frames or self._name == "audio"):
                skipped = True
                continue
            if skipped:
                context.flush_buffers()
                skipped, self.jumped = False, True
            if self.unshown:
                unshown = seconds_of(packet.pts, packet) in self.unshown
                context.skip_frame = "NONREF" if unshown else "DEFAULT"
            self._total += 1
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except (av.FFmpegError, EOFError, ValueError):
                self._bad += 1
                continue
            self._frames += len(frames)
            for frame in frames:
                yield frame
                self.jumped = False


class _Clock:
    """Makes one steady time line of a stream's timestamps, missing and odd ones included.

    Args:
        own: the stream's track.
        other: that of the stream beside it.
        shifts: by which the clocks of both were put right; the second to meet a fault of the
            container's clock follows the first, or they would part.
        steady: timestamps off by less than this are taken for even ones, seconds.
    """

    def __init__(
        self, own: Track | None, other: Track | None, shifts: list[float], steady: float = 0.0
    ) -> None:
        self.own, self.other, self.shifts, self.steady = own, other, shifts, steady
        self.shift, self.used = 0.0, 0
        self.expected: float | None = None  # where the next frame belongs if it has no timestamp

    def place(self, raw: float | None, duration: float) -> float:
        if self.expected is None:
            time = raw or 0.0
        elif raw is None or abs(raw + self.shift - self.expected) < self.steady:
            time = self.expected
        else:
            if self._is_fault(raw, self.shift, duration):
                self._shift_for(raw, duration)
            time = raw + self.shift
        self.expected = time + duration
        return time

    def _is_fault(self, raw: float, shift: float, duration: float) -> bool:
        assert self.expected is not None
        ahead = raw + shift - self.expected
        if ahead > LONGEST_REST_SECONDS:
            return not (self.other and self.other.goes_on(self.expected - shift, raw))
        return ahead < -2 * duration - 0.5

    def _shift_for(self, raw: float, duration: float) -> None:
        """Goes on from here: by the other stream's shift if there is one, by one of its own else."""
        for number in range(self.used, len(self.shifts)):
            if not self._is_fault(raw, self.shifts[number], duration):
                self.shift, self.used = self.shifts[number], number + 1
                return
        assert self.expected is not None
        self.shift = self.expected - raw
        self.shifts.append(self.shift)
        self.used = len(self.shifts)


class _Picture:
    """Collects the frames shown at n / fps seconds after the first one."""

    def __init__(
        self,
        packets: _Packets,
        found: Survey,
        clock: _Clock,
        fps: float,
        largest_side: int,
        cut: Cut,
    ) -> None:
        from av.video.reformatter import VideoReformatter

        stream = packets.stream
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        self.period = 1 / rate if 1 <= rate <= 1000 else 1 / 25
        self.packets, self.found, self.clock = packets, found, clock
        self.clock.steady = 2.5 * self.period if found.steady else 0.0
        self.time_base = stream.time_base
        self.aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        self.levels = _sdr_levels() if stream.codec_context.color_trc == PQ else None
        self.fps = fps
        self.largest_side = largest_side
        self.reformatter = VideoReformatter()
        self.start, self.half = cut.start, cut.half
        self.length = math.inf if cut.end is None else cut.end - cut.start
        self.zero = 0.0  # where the cut begins, by the file's clock
        self.end = 0.0  # seconds from there to where the last frame ends
        self.count = 0  # frames given out or waiting
        self.waiting: list[NDArray[np.uint8]] = []
        self.size: tuple[int, int] | None = None
        self.turns = 0  # quarters, counterclockwise
        self.last: Any = None  # the frame on show, converted only if it is wanted
        self.last_raw: float | None = None
        self.number: int | None = None  # of the packet with which the last frame came, if counted
        self.late = 0  # packets that the decoder wants before it gives the first frame
        self.seen = self.done = False

    @property
    def ready(self) -> int:
        return len(self.waiting)

    def read(self, window: int | None, max_seconds: float | None) -> bool:
        """Decodes until a window is full or the stream ends; says whether there are frames."""
        while not self.done and (window is None or self.ready < window):
            frame = self.packets.next()
            if frame is None:
                self._finish()
            else:
                self._add(frame)
            if max_seconds is not None and self.end > max_seconds:
                raise MediaError("too long", f"more than {max_seconds:g} s")
        if self.done:
            self.packets.check()
            if self.end < SHORTEST_SECONDS:
                raise MediaError("too short", f"{self.end:.2f} s of video")
        return self.ready > 0

    def take(self, count: int) -> list[NDArray[np.uint8]]:
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def _add(self, frame: Any) -> None:
        _check_size(frame)
        self.last_raw = self._counted(frame) if self.found.counted else self._stamped(frame)
        if self.packets.jumped:
            self.clock.expected = None
        time = self.clock.place(self.last_raw, self.period)
        if not self.seen:
            self.zero, self.seen = time + self.start, True
            self.packets.unshown = self._unshown()
        time -= self.zero
        if time >= self.length:
            self._finish()
            return
        self._show_until(time)
        self.last = frame
        self.end = max(self.end, time + self.period)

    def _unshown(self) -> frozenset[float]:
        """Times of pictures in whose place later ones are shown, so that a decoder need not give them.

        None where the clock has faults or is not the container's: then only frames tell the times. And none
        that bears on where the clip ends.
        """
        found, codec = self.found, self.packets.stream.codec_context.name
        picture, told = found.picture, not (found.counted or found.unordered or found.steady)
        assert picture is not None
        if codec not in SKIPPING or not picture.keys.size or not told:
            return frozenset()
        times = np.unique(picture.times)
        after = times - self.zero
        # Numbers of the clip's frames are rounded outwards: what may be shown is decoded.
        places = (after - GRACE_SECONDS) * self.fps
        first, end = (np.maximum(np.ceil(places + x), 0) for x in (-1e-6, 1e-6))
        unshown = (end[1:] <= first[:-1]) & (after[1:] < self.length)
        return frozenset(times[:-1][unshown].tolist())

    def _stamped(self, frame: Any) -> float | None:
        shown = frame.dts if frame.pts is None or self.found.unordered else frame.pts
        base = frame.time_base or self.time_base
        return float(shown * base) if shown is not None and base else None

    def _counted(self, frame: Any) -> float | None:
        """The time of a frame by the number of its packet in order of display."""
        assert self.found.picture is not None
        times = self.found.picture.times
        if frame.dts is not None:
            number = int(np.searchsorted(times, float(frame.dts * self.time_base) - 1e-9))
        else:
            number = 0 if self.number is None else self.number + 1
        if self.number is None:
            self.late = number
        self.number = number
        place = min(max(number - self.late, 0), len(times) - 1)
        return float(times[place]) - (self.found.allowance if place else 0.0)

    def _finish(self) -> None:
        self.done = True
        if self.seen:
            self.end = min(self.end + max(0.0, self._stands() - self.period), self.length)
        self._show_until(self.end)
        if self.seen and self.count == 0:
            self._show_until(1 / self.fps)
        self.last = None

    def _stands(self) -> float:
        """How long the last picture is shown: as its container says, while there is sound."""
        picture, sound = self.found.picture, self.found.sound
        if picture is None or sound is None or self.last_raw is None or not picture.times.size:
            return self.period
        return min(picture.end - float(picture.times[-1]), sound.end - self.last_raw)

    def _show_until(self, time: float) -> None:
        grey: NDArray[np.uint8] | None = None
        while self.last is not None and self.count / self.fps < time - GRACE_SECONDS:
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
            # FFmpeg's display matrix: the angle by which the decoded picture turns counterclockwise
            # to stand upright.
            self.turns = round(frame.rotation / 90) % 4
            sides = [width, height]
            if self.half:
                sides[self.turns % 2] /= 2  # the one that is from left to right when it is upright
            scale = min(1.0, self.largest_side / max(sides))
            self.size = (
                max(SMALLEST_SIDE, round(width * scale)),
                max(SMALLEST_SIDE, round(height * scale)),
            )
        frame = _one_field(frame)
        whole = self.levels is None and (frame.width, frame.height) == self.size
        grey = grey_of(frame, self._converted) if whole else self._converted(frame, *self.size)
        return np.ascontiguousarray(_half(np.rot90(grey, self.turns), self.half))

    def _converted(
        self, frame: Any, width: int | None = None, height: int | None = None
    ) -> NDArray[np.uint8]:
        kind = "gray" if self.levels is None else "gray16le"
        grey: NDArray[Any] = self.reformatter.reformat(
            frame, width, height, format=kind
        ).to_ndarray()
        return grey if self.levels is None else self.levels[grey]


def _half(picture: NDArray[np.uint8], half: str) -> NDArray[np.uint8]:
    """The half of a picture (H, W) that a cut names, or all of it."""
    width = picture.shape[1] // 2
    return {"left": picture[:, :width], "right": picture[:, -width:]}.get(half, picture)


class _NoPicture:
    """Stands for the picture of a file that has none: empty frames as long as there is sound."""

    def __init__(self, found: Survey, fps: float, cut: Cut) -> None:
        sound = found.sound
        first = max(0.0, float(sound.times[0])) if sound and sound.times.size else 0.0
        last = math.inf if cut.end is None else first + cut.end
        self.zero = first + cut.start
        self.seconds = min(sound.end, last) - self.zero if sound else 0.0
        self.ready = round(self.seconds * fps)

    def read(self, window: int | None, max_seconds: float | None) -> bool:
        if self.seconds < SHORTEST_SECONDS:
            raise MediaError("too short", f"{self.seconds:.2f} s of sound")
        return self.ready > 0

    def take(self, count: int) -> list[NDArray[np.uint8]]:
        self.ready -= count
        return [np.zeros((0, 0), np.uint8)] * count


class _NoSound:
    """Stands for the sound of a file that has none: silence."""

    loudest = 0.0

    def read(self, start: float, samples: int) -> NDArray[np.float32]:
        return np.zeros(samples, np.float32)


def _one_field(frame: Any) -> Any:
    """A frame of one moment: of an interlaced frame, whose lines are of two, every second line."""
    if not frame.interlaced_frame:
        return frame
    from av import VideoFrame

    lines = frame.to_ndarray(format="gray16le")[::2]
    return VideoFrame.from_ndarray(np.ascontiguousarray(lines), format="gray16le")


def _sdr_levels() -> NDArray[np.uint8]:
    """Grey values, uint8 (65536,), of those coded by SMPTE 2084: light to paper white, the rest
    pressed together (Reinhard et al., 2002), then a gamma of 2.4."""
    power = (np.arange(65536) / 65535) ** (1 / 78.84375)
    light = 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (
        1 / 0.1593017578125
    )
    light, peak = light / PQ_WHITE, PQ_PEAK / PQ_WHITE
    mapped = np.minimum(light * (1 + light / peak**2) / (1 + light), 1.0)
    return np.rint(255 * mapped ** (1 / 2.4)).astype(np.uint8)


@dataclass
class _Segment:
    start: float
    chunks: deque[NDArray[np.float32]] = field(default_factory=deque)
    samples: int = 0


class _Sound:
    """Collects mono sound at one sample rate and lays it out by its timestamps."""

    def __init__(self, packets: _Packets, found: Survey, clock: _Clock, sample_rate: int) -> None:
        self.lead_in = found.lead_in
        self.packets, self.clock, self.sample_rate = packets, clock, sample_rate
        self.segments: list[_Segment] = []
        self.resampler: Any = None
        self.input: tuple[Any, ...] | None = None
        self.until: float | None = None  # where the input so far ends
        self.off = 0  # frames in a row that are away from their timestamps
        self.done = False
        self.loudest = 0.0

    @property
    def end(self) -> float:
        return (
            self.segments[-1].start + self.segments[-1].samples / self.sample_rate
            if self.segments
            else -math.inf
        )

    def read(self, start: float, samples: int) -> NDArray[np.float32]:
        """The sound of a stretch; sound before its end is forgotten."""
        self.loudest = 0.0
        while not self.done and self.end < start + samples / self.sample_rate:
            frame = self.packets.next()
            if frame is None:
                self._flush()
                self.done = True
            else:
                self._add(frame)
                self._forget(start)
        waveform = np.zeros(samples, np.float32)
        for segment in self.segments:
            if segment.chunks:
                whole = np.concatenate(segment.chunks)
                offset = round((segment.start - start) * self.sample_rate)
                first, last = max(0, offset), min(samples, offset + whole.size)
                if first < last:
                    waveform[first:last] = whole[first - offset : last - offset]
        self.loudest = max(self.loudest, float(np.abs(waveform).max(initial=0.0)))
        self.packets.check()
        return waveform

    def _add(self, frame: Any) -> None:
        import av

        duration = frame.samples / frame.sample_rate
        raw = (
            float(frame.pts * frame.time_base) - self.lead_in
            if frame.pts is not None and frame.time_base
            else None
        )
        time = self.clock.place(raw, duration)
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        gap = self._is_off(time)
        if kind != self.input or gap:
            start = time if gap or self.until is None else self.until
            self._flush()
            # Integers, as FFmpeg's downmix of floats to mono is louder than the channels are.
            self.resampler = av.AudioResampler(format="s32", layout="mono", rate=self.sample_rate)
            self.input = kind
            self.segments.append(_Segment(start))
        self.until = time + duration if gap or self.until is None else self.until + duration
        self.clock.expected = self.until
        if frame.layout.nb_channels > 1:
            self.loudest = max(self.loudest, _peak(frame))
        frame.pts = None  # the layout is ours; the resampler must not pad or drop by timestamps
        try:
            self._keep(self.resampler.resample(frame))
        except av.ArgumentError as error:  # it guesses an arrangement for the usual numbers
            channels = frame.layout.nb_channels
            raise MediaError("too many channels", f"{channels} in no known arrangement") from error

    def _is_off(self, time: float) -> bool:
        away = 0.0 if self.until is None else abs(time - self.until)
        self.off = self.off + 1 if away > SMALLEST_GAP_SECONDS else 0
        return away > LARGEST_GAP_SECONDS or self.off >= GAP_FRAMES

    def _flush(self) -> None:
        if self.resampler is not None:
            self._keep(self.resampler.resample(None))
            self.resampler = None

    def _keep(self, frames: list[Any]) -> None:
        segment = self.segments[-1]
        for frame in frames:
            chunk = (frame.to_ndarray().reshape(-1) * 2.0**-31).astype(np.float32)
            segment.chunks.append(chunk)
            segment.samples += chunk.size

    def _forget(self, start: float) -> None:
        """Drops sound that ends before a time."""
        for segment in self.segments:
            while (
                segment.chunks
                and segment.start + segment.chunks[0].size / self.sample_rate <= start
            ):
                size = segment.chunks.popleft().size
                segment.start += size / self.sample_rate
                segment.samples -= size
        self.segments = [s for s in self.segments[:-1] if s.samples] + self.segments[-1:]


def _peak(frame: Any) -> float:
    """The loudest channel's level, full scale is 1."""
    values = frame.to_ndarray()
    if values.dtype == np.uint8:
        values = values.astype(np.int16) * 256 - 32768
    scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    return float(np.abs(values.astype(np.float64)).max(initial=0.0)) / scale
