"""Decoding: any container, timing by timestamps, and a reason for each clip that cannot be used."""

import gc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avemo.data import media
from avemo.data.media import Cut, _Clock, _sdr_levels, read_footage
from avemo.data.reasons import MediaError
from avemo.data.survey import survey
from tests.avemo.data.media_files import (
    carphone,
    no_face,
    talking_head,
    tone,
    write_clip,
    write_media,
)

RATE = 16000


def read(path: Path, **options):
    settings = {"sample_rate": RATE, "fps": 12.5, **options}
    (footage,) = read_footage(path, **settings)
    return footage


def read_error(path: Path, **options) -> str:
    with pytest.raises(MediaError) as caught:
        read(path, **options)
    return str(caught.value)


def amplitude(waveform: np.ndarray, hertz: float) -> float:
    n = np.arange(len(waveform))
    return 2 * abs(np.mean(waveform * np.exp(-2j * np.pi * hertz * n / RATE)))


def levels(count: int) -> np.ndarray:
    """Frames that say their own number by their brightness."""
    values = (5 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, 32, 48, 3))


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        ("h264_aac.mp4", 44100, {}),
        ("mpeg4_mp3.avi", 44100, {"video_codec": "mpeg4", "audio_codec": "libmp3lame"}),
        ("vp9_opus.webm", 48000, {"video_codec": "libvpx-vp9", "audio_codec": "libopus"}),
        (
            "mjpeg_pcm.mov",
            8000,
            {"video_codec": "mjpeg", "audio_codec": "pcm_s16le", "pixel_format": "yuvj420p"},
        ),
        (
            "gray_flac.mkv",
            32000,
            {"video_codec": "ffv1", "audio_codec": "flac", "pixel_format": "gray"},
        ),
        (
            "ten_bit.mkv",
            22050,
            {"video_codec": "ffv1", "audio_codec": "pcm_s16le", "pixel_format": "yuv444p10le"},
        ),
        ("transport.ts", 44100, {}),
    ],
)
def test_formats(tmp_path: Path, name: str, rate: int, options: dict) -> None:
    frames = talking_head(25)[:, :, :172]
    stereo = np.stack([tone(1.0, rate, 500.0)] * 2, axis=1)
    footage = read(write_media(tmp_path / name, frames, stereo, rate=rate, **options))
    assert footage.frames.shape[1:] == (144, 172)
    assert abs(len(footage.frames) - 13) <= 1  # AVI has one frame more by its own count
    assert len(footage.waveform) == round(len(footage.frames) / 12.5 * RATE)
    middle = footage.waveform[RATE // 4 : 3 * RATE // 4]
    assert amplitude(middle, 500.0) == pytest.approx(0.25, rel=0.06)  # LAME takes off 5 percent
    grey = frames[:1].astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(footage.frames[0] - grey[0]).mean() < 6


CONTAINERS = {
    "counted.avi": {"video_codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "key_frames.avi": {
        "video_codec": "mjpeg",
        "audio_codec": "pcm_s16le",
        "pixel_format": "yuvj420p",
    },
    "b_frames.avi": {
        "video_codec": "mpeg4",
        "audio_codec": "libmp3lame",
        "video_options": {"bf": "2"},
    },
    "h264.avi": {"audio_codec": "libmp3lame", "video_options": {"bf": "2", "preset": "fast"}},
    "open_gop.mkv": {"video_options": {"bf": "3", "preset": "fast", "x264-params": "open-gop=1"}},
    "stream.ts": {"audio_codec": "mp2", "video_options": {"bf": "2", "preset": "fast"}},
    "late.mkv": {"audio_codec": "aac", "audio_offset": 1.3},
    "b_frames.mp4": {"video_options": {"bf": "2", "preset": "fast"}},
    "plain.mkv": {"audio_codec": "flac"},
    "flash.flv": {"video_codec": "flv", "audio_codec": "libmp3lame"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_cuts_are_what_the_whole_has_there(tmp_path: Path, name: str) -> None:
    """Pictures and sound of each cut are those of the whole file, read at the rate of the file."""
    rng = np.random.default_rng(0)
    count, rate = 90, 44100
    frames = np.repeat(rng.integers(0, 256, (count, 6, 8, 1), np.uint8), 8, 1).repeat(8, 2)
    frames = np.repeat(frames, 3, 3)
    time = np.arange(round(count / 25 * rate)) / rate
    sound = (0.25 * np.sin(2 * np.pi * (100 + 40 * time) * time)).astype(np.float32)
    options = {"video_options": {}, **CONTAINERS[name]}
    options["video_options"] = options["video_options"] | {"g": "12"}
    path = write_media(tmp_path / name, frames, sound, rate=rate, **options)
    whole = read(path, fps=25.0)
    for first, last in ((0, 10), (7, 31), (41, 48), (60, 88)):
        cut = read(path, fps=25.0, cut=Cut(first / 25, last / 25))
        assert cut.start == 0.0
        np.testing.assert_array_equal(cut.frames, whole.frames[first:last])
        at, end = (round(n / 25 * RATE) for n in (first, last))
        # The resampler begins elsewhere, and some containers round times to milliseconds.
        lags = sorted(range(-20, 21), key=abs)
        apart = [
            np.abs(cut.waveform[320:-320] - whole.waveform[at + 320 + lag : end - 320 + lag]).max()
            for lag in lags
        ]
        assert abs(lags[int(np.argmin(apart))]) <= RATE // 2000 + 1, (first, last)
        assert min(apart) < 0.02, (first, last)
    rest = read(path, fps=25.0, cut=Cut(70 / 25))
    np.testing.assert_array_equal(rest.frames, whole.frames[70:])


REORDERED = {"bf": "3", "preset": "fast", "b-adapt": "0"}
UNEVEN = np.cumsum(np.random.default_rng(1).choice([0.004, 0.02, 0.04, 0.13], 90)).tolist()


RAW = {
    "a.h264": {"video_options": {"bf": "2", "preset": "fast"}},
    "a.m4v": {"video_codec": "mpeg4", "video_options": {"bf": "2"}},
    "a.m2v": {"video_codec": "mpeg2video"},
    "a.mjpeg": {"video_codec": "mjpeg", "pixel_format": "yuvj420p"},
}


@pytest.mark.parametrize("name", RAW)
def test_raw_pictures_come_in_order_at_the_rate_of_the_stream(tmp_path: Path, name: str) -> None:
    footage = read(write_media(tmp_path / name, levels(50), None, **RAW[name]), fps=25.0, needs=())
    assert footage.streams == ("video",)
    assert len(footage.frames) == pytest.approx(50, abs=1)
    shown = footage.frames[:48].mean(axis=(1, 2)) / 5
    np.testing.assert_allclose(shown, np.arange(48), atol=1.2)


@pytest.mark.parametrize("name", ["a.aac", "a.mp3"])
def test_raw_sound(tmp_path: Path, name: str) -> None:
    codec = {"a.aac": "aac", "a.mp3": "libmp3lame"}[name]
    footage = read(
        write_media(tmp_path / name, None, tone(2.0, hertz=500), audio_codec=codec), needs=()
    )
    assert footage.streams == ("audio",)
    assert len(footage.waveform) == pytest.approx(2.0 * RATE, rel=0.06)  # and what codecs add
    assert amplitude(footage.waveform[RATE // 2 : 3 * RATE // 2], 500) == pytest.approx(
        0.25, rel=0.1
    )


@pytest.mark.parametrize("fps", [12.5, 30.0])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("even.mp4", {"video_options": REORDERED}),
        ("uneven.mkv", {"video_options": REORDERED, "times": UNEVEN}),
        ("open_gop.ts", {"video_options": {**REORDERED, "g": "12", "x264-params": "open-gop=1"}}),
        ("even.mov", {"video_codec": "libx265", "pixel_format": "yuv420p10le"}),
        ("uneven.mp4", {"video_codec": "libx265", "times": UNEVEN}),
    ],
)
def test_what_is_not_shown_need_not_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict, fps: float
) -> None:
    if options.get("video_codec") == "libx265":
        settings = {"x265-params": "log-level=none:bframes=4", "preset": "ultrafast"}
        options = {**options, "video_options": settings}
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = picture.repeat(12, 0).repeat(12, 1)
    frames = np.stack([np.roll(picture, n, axis=1) for n in range(90)])
    path = write_media(tmp_path / name, frames, tone(3.6), **options)
    cuts = [Cut(0.5, 2.71), *(Cut(0.0, end) for end in UNEVEN[15:60:5])]
    ways = [{}, {"window_seconds": 0.7}, *({"cut": cut} for cut in cuts)]
    added: list[object] = []
    add = media._Picture._add
    monkeypatch.setattr(
        media._Picture, "_add", lambda self, frame: added.append(1) or add(self, frame)
    )

    def every_way() -> tuple[list[np.ndarray], int]:
        added.clear()
        settings = {"sample_rate": RATE, "fps": fps}
        found = [window for way in ways for window in read_footage(path, **settings, **way)]
        return [window.frames for window in found], len(added)

    some, decoded = every_way()
    monkeypatch.setattr(media, "SKIPPING", ())
    whole, number = every_way()
    assert len(some) == len(whole)
    for ours, theirs in zip(some, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert decoded <= number
    assert decoded < 0.8 * number or fps > 12.5


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi", "clip.flv"])
def test_packets_that_were_not_kept_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The file is opened once where they are kept, and once more for each stream where they are too many."""
    path = write_clip(tmp_path / name, seconds=2.0, rate=44100)
    opened = []
    open_file = media._open
    monkeypatch.setattr(media, "_open", lambda path: opened.append(1) or open_file(path))
    kept = read(path)
    assert len(opened) == 1
    monkeypatch.setattr(media, "_looks", {})
    monkeypatch.setattr(media, "KEPT_BYTES", path.stat().st_size // 2)
    again = read(path)
    assert len(opened) == 4
    np.testing.assert_array_equal(kept.frames, again.frames)
    np.testing.assert_array_equal(kept.waveform, again.waveform)


def test_nothing_of_a_clip_is_kept_after_it(tmp_path: Path) -> None:
    """No packet or decoder, also where streams go on after the clip, and before the collector comes by."""
    path = write_clip(tmp_path / "clip.mp4", seconds=2.0, rate=44100)

    def alive() -> int:
        return sum(str(type(thing).__module__).startswith("av.") for thing in gc.get_objects())

    read(path, cut=Cut(0.0, 1.0))
    gc.collect()
    before = alive()
    gc.disable()
    try:
        for _ in range(3):
            read(path, cut=Cut(0.0, 1.0))
        assert alive() == before
    finally:
        gc.enable()


def test_a_film_of_many_clips_is_surveyed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And anew as soon as it is another one."""
    surveys = []
    monkeypatch.setattr(media, "survey", lambda *given: surveys.append(1) or survey(*given))
    path = write_clip(tmp_path / "a.mp4", seconds=2.0)
    for start in (0.0, 0.5, 1.0):
        read(path, cut=Cut(start, start + 0.5))
    assert len(surveys) == 1
    write_clip(path)
    assert len(read(path).frames) == 13
    assert len(surveys) == 2


def test_a_cut_of_sound_alone(tmp_path: Path) -> None:
    sound = np.concatenate([tone(1.0, hertz=300), tone(1.0, hertz=700)])
    path = write_media(tmp_path / "a.wav", None, sound, audio_codec="pcm_s16le")
    cut = read(path, cut=Cut(1.2, 1.8), needs=("audio",))
    assert len(cut.waveform) == pytest.approx(0.6 * RATE, abs=RATE / 12.5)
    assert amplitude(cut.waveform, 700) > 0.24 > 0.01 > amplitude(cut.waveform, 300)


@pytest.mark.parametrize("turn", [None, 90, 180, 270])
def test_half_of_the_picture(tmp_path: Path, turn: int | None) -> None:
    """Of the upright picture; scaled down by the size of the half."""
    upright = np.zeros((8, 96, 128, 3), np.uint8)
    upright[:, :, 64:] = 200
    stored = np.rot90(upright, -(turn or 0) // 90, axes=(1, 2))
    path = write_media(tmp_path / "a.mp4", stored, tone(0.32), rotation=turn)
    whole = read(path, largest_side=128).frames
    assert whole.shape[1:] == (96, 128)
    for half, level in (("left", 0), ("right", 200)):
        frames = read(path, largest_side=96, cut=Cut(half=half)).frames
        assert frames.shape[1:] == (96, 64)
        assert np.abs(frames[:, :, 4:-4].astype(int) - level).max() < 8


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (Cut(0.4, 1.7), "0.4 to 1.7 s of a file of 1.0 s"),
        (Cut(0.9), "0.9 to 1 s of a file of 1.0 s"),
        (Cut(5.0, 6.0), "5 to 6 s of a file of 1.0 s"),
    ],
)
def test_a_cut_outside_of_the_file(tmp_path: Path, cut: Cut, words: str) -> None:
    path = write_clip(tmp_path / "a.mp4")
    assert read_error(path, cut=cut) == (
        f"outside of the file: {words}; check the times, and that the file is whole"
    )
    assert len(read(path, cut=Cut(0.4, 1.4)).frames) == 8  # what may be missing at the end


def test_variable_frame_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum([0.0, *rng.choice([0.01, 0.033, 0.05, 0.21], 40)]).round(3)
    path = write_media(
        tmp_path / "vfr.mkv",
        levels(41),
        tone(float(times[-1])),
        times=times.tolist(),
        video_codec="ffv1",
        audio_codec="flac",
        pixel_format="gray",
    )
    shown = read(path, fps=20.0).frames.mean(axis=(1, 2))
    at = np.arange(len(shown)) / 20.0
    expected = np.searchsorted(times, at + 1e-3, side="right") - 1
    assert len(shown) >= times[-1] * 20
    np.testing.assert_array_equal((shown / 5).round(), expected)


@pytest.mark.parametrize("fps", [3.0, 12.5, 25.0, 60.0])
def test_even_frame_rates(tmp_path: Path, fps: float) -> None:
    path = write_media(
        tmp_path / "even.mkv",
        levels(50),
        tone(2.0),
        video_codec="ffv1",
        audio_codec="flac",
        pixel_format="gray",
    )
    shown = read(path, fps=fps).frames.mean(axis=(1, 2))
    expected = np.floor(np.arange(len(shown)) / fps * 25 + 0.03)
    assert len(shown) == pytest.approx(2.0 * fps, abs=1)
    np.testing.assert_array_equal((shown / 5).round(), expected)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation(tmp_path: Path, rotation: int) -> None:
    upright = talking_head(25)
    stored = np.rot90(upright, -rotation // 90, axes=(1, 2))
    footage = read(write_media(tmp_path / "r.mp4", stored, tone(1.0), rotation=rotation))
    grey = upright[0].astype(float) @ [0.299, 0.587, 0.114]
    assert footage.frames.shape[1:] == (144, 176)
    assert np.abs(footage.frames[0] - grey).mean() < 6


def test_large_frames_are_scaled_down(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    assert read(path, largest_side=88).frames.shape[1:] == (72, 88)


def lossless(path: Path, seconds: float, sound: np.ndarray, **options) -> Path:
    frames = levels(round(25 * seconds))
    codecs = {"video_codec": "ffv1", "audio_codec": "pcm_s16le", "pixel_format": "gray"}
    return write_media(path, frames, sound, **codecs, **options)


def test_sound_is_cut_to_the_picture(tmp_path: Path) -> None:
    footage = read(lossless(tmp_path / "long.mkv", 1.0, tone(3.0)), fps=25.0)
    np.testing.assert_allclose(footage.waveform, tone(1.0), atol=1e-4)


def test_missing_sound_is_silence(tmp_path: Path) -> None:
    waveform = read(lossless(tmp_path / "short.mkv", 2.0, tone(0.5)), fps=25.0).waveform
    assert len(waveform) == 2 * RATE
    np.testing.assert_allclose(waveform[: RATE // 2], tone(0.5), atol=1e-4)
    assert not waveform[RATE // 2 :].any()


def test_late_sound_keeps_its_time(tmp_path: Path) -> None:
    path = lossless(tmp_path / "late.mkv", 2.0, tone(1.0), audio_offset=1.0)
    waveform = read(path, fps=25.0).waveform
    assert not waveform[: RATE - 20].any()
    np.testing.assert_allclose(waveform[RATE:], tone(1.0), atol=1e-4)


def test_windows_are_the_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    path = lossless(tmp_path / "long.mkv", 5.0, noise)
    whole = read(path, fps=25.0)
    windows = list(read_footage(path, sample_rate=RATE, fps=25.0, window_seconds=2.0))
    assert [w.start for w in windows] == pytest.approx([0, 1.68, 3.36], abs=0.05)
    assert max(len(w.frames) for w in windows) <= 50
    np.testing.assert_array_equal(np.concatenate([w.frames for w in windows]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([w.waveform for w in windows]), whole.waveform)


def test_clock_bridges_missing_and_odd_timestamps() -> None:
    clock = _Clock(None, None, [])
    raw = [0.5, None, 0.58, 3.0, 1e6, 1e6 + 0.04, None, 0.0]
    placed = [clock.place(t, 0.04) for t in raw]
    assert placed == pytest.approx([0.5, 0.54, 0.58, 3.0, 3.04, 3.08, 3.12, 3.16])


def test_reasons(tmp_path: Path) -> None:
    sound = tone(1.0)
    wav = write_media(tmp_path / "a.wav", None, sound, audio_codec="pcm_s16le")
    mute = write_media(tmp_path / "v.mp4", no_face(25), None)
    brief = write_media(tmp_path / "s.mp4", no_face(3), tone(0.12))
    empty = tmp_path / "e.mp4"
    empty.touch()
    text = tmp_path / "t.mp4"
    text.write_text("not a film\n" * 1000)
    assert read_error(wav).startswith("no video stream: ")
    assert read_error(mute).startswith("no audio stream: ")
    assert read_error(carphone()).startswith("no audio stream: ")
    assert read_error(brief) == "too short: 0.12 s of video; give at least 0.2 s"
    assert read_error(empty).startswith("empty file: ")
    assert read_error(text).startswith("not a media file: ")
    assert read_error(tmp_path / "none.mp4").startswith("no such file: ")
    assert read_error(tmp_path).startswith("not a regular file: ")
    assert read_error(tmp_path / ("x" * 3000)).startswith("unreadable file: ")
    long = write_clip(tmp_path / "c.mp4")
    assert read_error(long, max_seconds=0.5).startswith("too long: 1.0 s of at most 0.5 s; cut it")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("index_last.mp4", {}),
        ("index_first.mp4", {"options": {"movflags": "faststart"}}),
        ("film.mkv", {}),
        ("film.avi", {"video_codec": "mpeg4", "audio_codec": "libmp3lame", "rate": 44100}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_truncated(tmp_path: Path, name: str, options: dict, share: float) -> None:
    path = write_media(
        tmp_path / name, talking_head(50), tone(2.0, 44100), **{"rate": 44100} | options
    )
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    assert read_error(path).startswith("truncated")


def test_damaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mp4", seconds=2.0, options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(len(content) // 4, len(content), 3000):
        content[at] = rng.integers(256)
    path.write_bytes(bytes(content))
    assert read_error(path).split(":")[0] in {"damaged audio", "damaged video", "truncated"}


def test_playlists_open_nothing(tmp_path: Path) -> None:
    write_clip(tmp_path / "film.ts")
    hls = tmp_path / "list.m3u8"
    hls.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nfilm.ts\n#EXT-X-ENDLIST\n")
    concat = tmp_path / "list.ffconcat"
    concat.write_text("ffconcat version 1.0\nfile film.ts\n")
    assert read_error(hls).startswith("playlist: it only names other files")
    assert read_error(concat).startswith("playlist: ")


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_interlaced_pictures_are_of_one_moment(tmp_path: Path, codec: str) -> None:
    """Two lines of the same place are of two moments, 20 ms apart: only the first is shown."""
    path = tmp_path / "field.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options={"x264-params": "tff=1:interlaced=1"})
        video.width, video.height, video.pix_fmt = 96, 96, "yuv420p"
        flags = av.codec.context.Flags
        video.codec_context.flags |= flags.interlaced_dct.value | flags.interlaced_me.value
        audio = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for n in range(25):
            woven = np.full((96, 96), 60, np.uint8)
            woven[1::2] = 180
            frame = av.VideoFrame.from_ndarray(woven, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(video.encode(frame))
        frame = av.AudioFrame.from_ndarray(np.full((1, RATE), 999, np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))
    shown = read(path).frames
    assert shown.shape[1:] == (96, 96)
    assert np.abs(shown.astype(int) - 60).max() <= 4


@pytest.mark.parametrize(("transfer", "mapped"), [(16, True), (18, False), (1, False)])
def test_high_dynamic_range_is_mapped(tmp_path: Path, transfer: int, mapped: bool) -> None:
    codes = np.arange(16, 240, 16).astype(np.uint8)
    frames = np.broadcast_to(np.repeat(codes, 8)[None, None, :, None], (25, 32, 112, 3))
    path = write_media(
        tmp_path / "hdr.mkv",
        frames,
        tone(1.0),
        video_codec="ffv1",
        audio_codec="flac",
        pixel_format="gray10le",
        transfer=transfer,
    )
    shown = read(path).frames[0, 16, 4::8].astype(float)
    # SMPTE ST 2084: code values and light of its own tables, cd/m2.
    signal = codes / 255.0
    m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    light = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) / 203
    tone_mapped = 255 * np.minimum(light * (1 + light / (1000 / 203) ** 2) / (1 + light), 1) ** (
        1 / 2.4
    )
    np.testing.assert_allclose(shown, tone_mapped if mapped else codes, atol=2.0)


def test_paper_white_of_hdr_is_light_and_its_highlights_are_told_apart() -> None:
    levels = _sdr_levels()
    white, bright, brightest = (levels[round(65535 * code)] for code in (0.5807, 0.70, 0.7518))
    assert 180 < white < bright < brightest  # 203, 621 and 1,000 cd/m2
    assert brightest == 255
    assert (np.diff(levels.astype(int)) >= 0).all()
