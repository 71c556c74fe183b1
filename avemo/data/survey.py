"""What the packets of a file say before any is decoded: when each stream begins, rests and ends.

Reading them takes a hundredth of what decoding takes, and the reader then knows what comes: whether
a hole in one stream is a rest, how long the last picture stands, whether the file is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avemo.data.reasons import MediaError

LONGEST_REST_SECONDS = 10.0
"""A forward step between timestamps above this is a fault of the clock, unless the other stream goes
on meanwhile: then this one rests."""

TRUNCATED_SECONDS, TRUNCATED_SHARE = 0.3, 0.05
"""A stream is truncated if more than both of these is missing of what its container declares."""

WARM_UP_SECONDS = 1.0
"""What is decoded before a cut: decoders of sound look back, and pictures that follow one at which decoding
can begin may be shown before it."""

COUNTED = ("avi", "swf")
"""Containers that have no times of their own: a packet's time is its number. FFmpeg makes `pts` of
those that are wrong where pictures are stored in another order than they are shown in."""

UNORDERED = ("asf",)
"""Containers that say when a packet is decoded, not when its picture is shown. FFmpeg guesses the latter, and is
a frame off with some codecs; a decoder gives a picture with the packet at whose time it is to be shown."""

LEAD_IN = {
    "aac": 1024,
    "mp3": 1105,
    "mp3float": 1105,
    "mp2": 481,
    "mp2float": 481,
    "ac3": 256,
    "eac3": 256,
}
"""Samples by which codecs delay sound. Other containers say so, or have it in their timestamps."""


@dataclass(frozen=True)
class Track:
    """One stream as its packets tell.

    Attributes:
        packets: their number.
        times: seconds on the container's clock, sorted, of those that have any; float64.
        end: where the last of them ends, by the duration that the container gives it.
        declared: seconds that the container says the stream has, if it does.
        keys: number, from 0, and time of each packet at which decoding can begin, float64 (K, 2); none
            where the times have faults.
    """

    packets: int
    times: NDArray[np.float64]
    end: float
    declared: float | None = None
    keys: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))

    def resume(self, time: float) -> int:
        """The number of a packet from which on decoding gives all that is shown or heard from a time on."""
        early = self.keys[self.keys[:, 1] <= time - WARM_UP_SECONDS, 0]
        return int(early[-1]) if early.size else 0

    @property
    def seconds(self) -> float:
        """What the stream measures."""
        return self.end - float(self.times[0]) if self.times.size else 0.0

    def goes_on(self, start: float, end: float) -> bool:
        """Whether the stream has no long rest of its own between two times."""
        first, last = np.searchsorted(self.times, (start, end))
        inside = np.concatenate([[start], self.times[first:last], [end]])
        return bool(np.diff(inside).max() <= LONGEST_REST_SECONDS)


@dataclass(frozen=True)
class Survey:
    """The streams that are read of a file.

    Attributes:
        picture: the video stream, or None if there is none.
        sound: the audio stream, or None.
        counted: the container has no times of its own.
        unordered: its times are those of decoding.
        steady: the pictures come at an even rate, whatever their timestamps say.
        lead_in: seconds at the beginning of the sound that the encoder put there and the timestamps
            do not tell.
        allowance: seconds by which the writer put all pictures but the first off for that.
    """

    picture: Track | None
    sound: Track | None
    counted: bool = False
    unordered: bool = False
    steady: bool = False
    lead_in: float = 0.0
    allowance: float = 0.0

    @property
    def first(self) -> float:
        """When the first picture is shown, or the sound begins if there are none, on the container's clock."""
        track = self.picture or self.sound
        return float(track.times[0]) if track and track.times.size else 0.0

    @property
    def seconds(self) -> float:
        """About how long the clip is: what the pictures measure, without faults of the clock, or the
        sound if there are none."""
        if self.picture is None:
            return self.sound.seconds if self.sound else 0.0
        times, other = self.picture.times, self.sound
        steps = np.diff(times)
        faults = [
            steps[i]
            for i in np.flatnonzero(steps > LONGEST_REST_SECONDS)
            if not (other and other.goes_on(float(times[i]), float(times[i + 1])))
        ]
        return self.picture.seconds - float(sum(faults))


def survey(container: Any, video: Any, audio: Any, packets: Iterable[Any]) -> Survey:
    """Reads the packets of an open container to its end.

    Args:
        container: PyAV's.
        video: its stream of pictures, or None.
        audio: its stream of sound, or None.
        packets: all of these streams, in order.

    Raises:
        MediaError: the file is shorter than it declares.
    """
    counted, unordered = (container.format.name in names for names in (COUNTED, UNORDERED))
    streams = [s for s in (video, audio) if s is not None]
    rows: dict[int, list[tuple[float, ...]]] = {s.index: [] for s in streams}
    seen = dict.fromkeys(rows, 0)
    for packet in packets:
        index = packet.stream.index
        if packet.size and not packet.is_discard:
            decoded = counted or unordered or packet.pts is None
            start = seconds_of(packet.dts if decoded else packet.pts, packet)
            end = start + seconds_of(packet.duration or 0, packet)
            rows[index].append((start, end, seen[index], packet.is_keyframe))
        seen[index] += 1
    tracks = [
        None if s is None else _track(rows[s.index], _declared(container, s))
        for s in (video, audio)
    ]
    _check_whole(container, dict(zip(("video", "audio"), tracks, strict=True)))
    picture, sound = tracks
    steady = picture is not None and container.format.name == "mpeg" and _fits(picture, video)
    lead_in = allowance = 0.0
    if counted and audio is not None and audio.codec_context.sample_rate:
        lead_in = LEAD_IN.get(audio.codec_context.name, 0) / audio.codec_context.sample_rate
    if picture is not None and lead_in:
        allowance = _allowance(picture, _rate(video), lead_in)
    return Survey(picture, sound, counted, unordered, steady, lead_in, allowance)


def seconds_of(time: int | None, packet: Any) -> float:
    """A time of a packet, which counts in a unit of its own; NaN if there is none."""
    return math.nan if time is None else time * float(packet.time_base or 0)


def _track(packets: Iterable[tuple[float, ...]], declared: float | None) -> Track:
    """The track of packets that are start, end, number and whether decoding can begin there."""
    table = np.array(list(packets), np.float64).reshape(-1, 4)
    timed = table[~np.isnan(table[:, 0])]
    times = np.sort(timed[:, 0])
    end = float(timed[np.argmax(timed[:, 0]), 1]) if times.size else 0.0
    keys = timed[timed[:, 3] > 0][:, [2, 0]] if _regular(table[:, 0]) else np.zeros((0, 2))
    return Track(len(table), times, end, declared, keys)


def _regular(times: NDArray[np.float64]) -> bool:
    """Whether all packets have times, which neither jump nor go back by more than pictures out of order do."""
    steps = np.diff(times)
    return bool(np.all((steps > -WARM_UP_SECONDS) & (steps <= LONGEST_REST_SECONDS)))


def _estimated(container: Any) -> bool:
    """Whether FFmpeg guesses durations, as the container declares none."""
    from av import format as formats

    return bool(container.format.flags & formats.Flags.ts_discont.value)


def _declared(container: Any, stream: Any) -> float | None:
    if _estimated(container) or not stream.duration or not stream.time_base:
        return None
    return float(stream.duration * stream.time_base)


def _check_whole(container: Any, tracks: dict[str, Track | None]) -> None:
    there = {name: track for name, track in tracks.items() if track is not None}
    # Some containers and writers count a duration from where a stream begins, others from 0.
    lengths = {name: max(track.seconds, track.end) for name, track in there.items()}
    measured = {name: (lengths[name], track.declared) for name, track in there.items()}
    if not any(track.declared for track in there.values()):
        whole = not _estimated(container) and container.duration
        declared = container.duration / 1e6 if whole else None
        measured = {"file": (max(lengths.values()), declared)}
    for name, (length, declared) in measured.items():
        if declared and declared - length > max(TRUNCATED_SECONDS, TRUNCATED_SHARE * declared):
            raise MediaError("truncated", f"{length:.2f} s of {declared:.2f} s ({name})")


def _fits(track: Track, stream: Any) -> bool:
    """Whether the pictures are as many as the stream's rate gives for the time that they take."""
    rate = _rate(stream)
    span = float(np.ptp(track.times)) if track.times.size else 0.0
    return rate > 0 and abs(span * rate + 1 - track.packets) < 1


def _rate(stream: Any) -> float:
    return float(stream.guessed_rate or stream.average_rate or 0)


def _allowance(picture: Track, rate: float, lead_in: float) -> float:
    """Seconds between the first pictures that are there to make up for the sound's lead-in.

    Where a codec's first samples come before 0, FFmpeg moves all streams so that they begin at 0. A
    container that counts takes whole pictures only, so the first is followed by as many empty places.
    """
    if rate <= 0 or picture.times.size < 2:
        return 0.0
    empty = round(float(picture.times[1] - picture.times[0]) * rate) - 1
    return empty / rate if 1 <= empty <= math.ceil(lead_in * rate) else 0.0
