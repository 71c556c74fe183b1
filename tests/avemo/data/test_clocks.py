"""Streams that start late, rest, stop early, restart their clocks: what happened together stays together."""

import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest

from avemo.data.media import _Clock, read_footage
from avemo.data.survey import Track
from tests.avemo.data.media_files import no_face, tone, write_media

RATE = 16000
LOSSLESS = {"video_codec": "ffv1", "audio_codec": "pcm_s16le", "pixel_format": "gray"}


def steady(start: float, stop: float) -> list[float]:
    return [round(start + i / 25, 3) for i in range(round((stop - start) * 25))]


def write(path: Path, times: list[float], on: float, seconds: float, **options) -> Path:
    """Bright and loud from second `on` of the container's clock; the sound lasts for `seconds`."""
    offset = options.get("audio_offset", 0.0)
    level = np.where(np.array(times) >= on - 1e-6, 200, 40).astype(np.uint8)
    at = np.arange(round(seconds * RATE)) / RATE + offset
    wave = (tone(seconds) * (at >= on - 1e-6)).astype(np.float32)
    frames = np.broadcast_to(level[:, None, None, None], (len(times), 64, 64, 3))
    return write_media(path, frames, wave, times=times, **{**LOSSLESS, **options})


def onsets(path: Path, **options) -> tuple[float, float, float]:
    """Seconds at which it turns bright and loud, and the length."""
    windows = list(read_footage(path, sample_rate=RATE, fps=100.0, **options))
    frames = np.concatenate([w.frames for w in windows])
    waveform = np.concatenate([w.waveform for w in windows])
    bright, loud = frames.mean(axis=(1, 2)) > 120, np.abs(waveform) > 0.05
    assert bright.any()
    assert loud.any()
    return np.argmax(bright) / 100, np.argmax(loud) / RATE, len(frames) / 100


@pytest.mark.parametrize("pause", [9, 14, 61])
@pytest.mark.parametrize("window", [None, 5.0])
@pytest.mark.parametrize("rests", ["picture", "sound"])
def test_a_stream_rests_while_the_other_goes_on(
    tmp_path: Path, pause: int, window: float | None, rests: str
) -> None:
    back = 1.0 + pause
    if rests == "picture":
        times = [*steady(0, 1), *steady(back, back + 1)]
        path = write(tmp_path / "a.mkv", times, back, back + 1)
    else:
        times = [i / 5 for i in range(5 * (pause + 2))]
        path = write(tmp_path / "a.mkv", times, back, back + 1, unheard=(1.0, back - 0.1))
    bright, loud, length = onsets(path, window_seconds=window)
    assert bright == pytest.approx(back, abs=0.02)
    assert loud == pytest.approx(back, abs=0.02)
    assert length == pytest.approx(back + 1, abs=0.25)


def test_a_pause_of_the_recording_is_closed(tmp_path: Path) -> None:
    times = [*steady(0, 1), *steady(31, 32)]
    path = write(tmp_path / "a.mkv", times, 31.5, 32, unheard=(0.9, 31.0))
    bright, loud, length = onsets(path)
    assert bright == pytest.approx(1.5, abs=0.03)
    assert loud == pytest.approx(bright, abs=0.02)  # though its hole is 100 ms longer
    assert length == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize(
    ("suffix", "video", "audio"),
    [("mp4", 0.6, 0.0), ("mp4", 1.8, 0.0), ("mp4", 0.0, 0.7), ("mkv", 0.9, 0.9), ("mkv", 2.5, 0.0)],
)
def test_each_stream_has_its_own_start(
    tmp_path: Path, suffix: str, video: float, audio: float
) -> None:
    codecs = {"video_codec": "mpeg4", "audio_codec": "aac", "pixel_format": "yuv420p"}
    options = {**codecs, "options": {"avoid_negative_ts": "disabled"}, "audio_offset": audio}
    seconds = video + 2 - audio
    path = write(tmp_path / f"a.{suffix}", steady(video, video + 2), video + 1, seconds, **options)
    bright, loud, length = onsets(path)
    assert bright == pytest.approx(1.0, abs=0.02)
    assert loud == pytest.approx(1.0, abs=0.02)
    assert length == pytest.approx(2.0, abs=0.05)


def test_lost_sound_moves_nothing_behind_it(tmp_path: Path) -> None:
    """A packet of 64 ms is less than what is laid anew at once, and more than half a frame."""
    path = write(tmp_path / "a.mkv", steady(0, 3), 2.0, 3.0, unheard=(0.96, 1.02))
    assert onsets(path)[1] == pytest.approx(2.0, abs=0.005)


@pytest.mark.parametrize("short", [0.0, 0.4])
def test_clocks_that_start_anew(tmp_path: Path, short: float) -> None:
    """Two recordings end to end in one transport stream; the first lacks the end of its sound."""
    codecs = {"video_codec": "libx264", "audio_codec": "aac", "pixel_format": "yuv420p"}
    first = write(tmp_path / "a.ts", steady(0, 2), 9.0, 2.0 - short, **codecs)
    second = write(tmp_path / "b.ts", steady(0, 2), 1.0, 2.0, **codecs)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    bright, loud, length = onsets(both)
    assert bright == pytest.approx(3.0, abs=0.03)
    assert loud == pytest.approx(bright, abs=0.02)
    assert length == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize(("sound", "expected"), [(1.0, 1.0), (2.5, 2.5), (5.0, 3.0)])
def test_the_last_picture_stands_while_there_is_sound(
    tmp_path: Path, sound: float, expected: float
) -> None:
    codecs = {"video_codec": "mpeg4", "audio_codec": "aac", "pixel_format": "yuv420p"}
    path = write(tmp_path / "a.mp4", steady(0, 1), 0.5, sound, last_seconds=2.04, **codecs)
    assert onsets(path)[2] == pytest.approx(expected, abs=0.1)


def test_an_edit_list_cuts_both(tmp_path: Path) -> None:
    codecs = {"video_codec": "mpeg4", "audio_codec": "aac", "pixel_format": "yuv420p"}
    whole = write(tmp_path / "a.mp4", steady(0, 3), 2.0, 3.0, **codecs)
    cut = tmp_path / "cut.mp4"
    with (
        av.open(str(whole)) as given,
        av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as container,
    ):
        copies = {s.index: container.add_stream_from_template(s) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                early = round(1.0 / packet.time_base)  # the first second is before 0
                packet.pts, packet.dts = packet.pts - early, packet.dts - early
                packet.stream = copies[packet.stream.index]
                container.mux(packet)
    bright, loud, length = onsets(cut)
    assert bright == pytest.approx(1.0, abs=0.02)
    assert loud == pytest.approx(1.0, abs=0.02)
    assert length == pytest.approx(2.0, abs=0.05)


def test_the_second_clock_follows_the_first() -> None:
    shifts: list[float] = []
    picture, sound = (_Clock(None, None, shifts) for _ in range(2))
    assert [picture.place(t, 0.04) for t in (0.0, 0.04, 100.0, 0.5)] == pytest.approx(
        [0.0, 0.04, 0.08, 0.12]
    )
    # Of the sound there is 1 s less before the first jump, and a packet less before the second.
    heard = [sound.place(t, 0.02) for t in (0.0, 100.03, 0.48)]
    assert heard == pytest.approx([0.0, 0.11, 0.10])


def test_a_rest_is_told_by_the_other_stream() -> None:
    going = Track(100, np.arange(0.0, 60.0, 9.0), 60.0)
    resting = Track(100, np.array([0.0, 1.0, 39.0, 40.0]), 40.0)
    for other, expected in ((going, 35.0), (resting, 1.04), (None, 1.04)):
        clock = _Clock(None, other, [])
        clock.place(1.0, 0.04)
        assert clock.place(35.0, 0.04) == pytest.approx(expected)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("way", [{"max_seconds": 20.0}, {"window_seconds": 5.0}])
def test_sound_beside_the_picture_takes_no_memory(tmp_path: Path, where: str, way: dict) -> None:
    """Ten minutes of it would be 38 MB, and a decoder's list of them twice that."""
    start = 600.0 if where == "before" else 0.0
    path = write_media(
        tmp_path / "a.mkv",
        no_face(25)[:, :64, :64],
        np.full(600 * 8000 + 8000, 0.1, np.float32),
        times=steady(start, start + 1),
        rate=8000,
        audio_codec="flac",
        video_codec="ffv1",
        pixel_format="gray",
    )
    tracemalloc.start()
    windows = list(read_footage(path, sample_rate=RATE, fps=12.5, **way))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(w.frames) for w in windows) == 13
    assert np.abs(windows[0].waveform[: RATE - 100]).min() > 0.05
    assert peak < 8 << 20
