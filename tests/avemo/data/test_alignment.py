"""A flash and a click of the same moment come out together, whatever they were written with.

The table of docs/clips.md has what is measured here; `python -m tests.avemo.data.test_alignment`
prints it.
"""

import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from avemo.data.media import read_footage
from tests.avemo.data.media_files import write_media

FPS, RATE = 25, 16000
MOMENTS = (1.0, 2.0)  # seconds at which light and tone set in; they end 0.4 s later
LOOKS = 500  # frames per second that are read
HALF_A_FRAME = 1000 / FPS / 2
PAGE = Path(__file__).parents[3] / "docs" / "clips.md"


class Kind(NamedTuple):
    suffix: str
    picture: str
    reordered: bool  # B-frames: stored in another order than shown
    sound: str
    options: dict[str, str] | None = None

    def __str__(self) -> str:
        more = "".join(f" {key}={value}" for key, value in (self.options or {}).items())
        return f"{self.suffix}{more} | {self.picture}{', B-frames' * self.reordered} | {self.sound}"


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
KINDS = [
    *(Kind("mp4", "libx264", b, "aac") for b in (False, True)),
    *(Kind("mp4", "libx264", b, "aac", FRAGMENTS) for b in (False, True)),
    Kind("mp4", "libx265", True, "aac"),
    Kind("mp4", "libx264", True, "libmp3lame"),
    Kind("mp4", "libx264", True, "libopus"),
    Kind("mp4", "mpeg4", True, "ac3"),
    Kind("mp4", "libsvtav1", False, "flac"),
    Kind("mp4", "libvpx-vp9", False, "libopus"),
    Kind("mov", "libx265", True, "aac"),
    Kind("mov", "prores_ks", False, "pcm_s16le"),
    Kind("mov", "mjpeg", False, "alac"),
    Kind("3gp", "mpeg4", True, "aac"),
    *(Kind("mkv", "libx264", b, s) for b, s in ((False, "libmp3lame"), (True, "aac"))),
    *(Kind("mkv", "mpeg4", True, s) for s in ("libopus", "mp2", "ac3", "eac3", "flac", "wavpack")),
    Kind("mkv", "ffv1", False, "pcm_s16le"),
    Kind("mkv", "libx265", True, "aac"),
    Kind("mkv", "libsvtav1", False, "libopus"),
    Kind("webm", "libvpx", False, "libopus"),
    Kind("webm", "libvpx-vp9", False, "libopus"),
    Kind("webm", "libvpx", False, "vorbis"),
    Kind("webm", "libsvtav1", False, "libopus"),
    Kind("ogv", "libvpx", False, "libopus"),
    *(Kind("avi", "libx264", b, s) for b in (False, True) for s in ("aac", "libmp3lame")),
    *(
        Kind("avi", "mpeg4", b, s)
        for b in (False, True)
        for s in ("libmp3lame", "mp2", "pcm_s16le")
    ),
    Kind("avi", "mpeg4", True, "ac3"),
    Kind("avi", "mjpeg", False, "pcm_s16le"),
    Kind("avi", "huffyuv", False, "pcm_s16le"),
    *(
        Kind("ts", "libx264", b, s)
        for b, s in ((False, "aac"), (True, "ac3"), (True, "libmp3lame"))
    ),
    Kind("ts", "libx265", True, "aac"),
    Kind("m2ts", "libx264", True, "aac"),
    *(Kind(x, "mpeg2video", b, "mp2") for x in ("ts", "mpg") for b in (False, True)),
    Kind("mpg", "mpeg1video", False, "mp2"),
    Kind("vob", "mpeg2video", True, "ac3"),
    *(Kind("flv", "libx264", b, "aac") for b in (False, True)),
    Kind("flv", "libx264", True, "libmp3lame"),
    Kind("flv", "flv", False, "libmp3lame"),
    Kind("swf", "flv", False, "libmp3lame"),
    *(Kind("asf", "libx264", b, "libmp3lame") for b in (False, True)),
    *(Kind("asf", x, True, "libmp3lame") for x in ("mpeg4", "mpeg2video")),
    Kind("wmv", "wmv2", False, "libmp3lame"),
    Kind("nut", "mpeg4", True, "libmp3lame"),
    Kind("mxf", "mpeg2video", True, "pcm_s16le"),
]
PIXELS = {"mjpeg": "yuvj420p", "huffyuv": "yuv422p", "prores_ks": "yuv422p10le"}
SETTINGS = {
    "libx264": {"preset": "veryfast", "b-adapt": "0"},
    "libx265": {"x265-params": "log-level=none:bframes=2", "preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}


def is_on(time: np.ndarray) -> np.ndarray:
    return np.any([(time >= m) & (time < m + 0.4) for m in MOMENTS], axis=0)


def write(folder: Path, kind: Kind) -> Path:
    rate = 44100 if kind.suffix in ("flv", "swf") and kind.sound == "libmp3lame" else 48000
    frames = np.where(is_on(np.arange(60) / FPS + 1e-6), 235, 16).astype(np.uint8)
    time = np.arange(round(2.4 * rate)) / rate
    settings = dict(SETTINGS.get(kind.picture, {}))
    if kind.picture in ("libx264", "mpeg4", "mpeg2video"):
        settings["bf"] = "2" if kind.reordered else "0"
    sound = (0.5 * np.sin(2 * np.pi * 1000 * time) * is_on(time + 1e-9)).astype(np.float32)
    vorbis = kind.sound == "vorbis"
    return write_media(
        folder / f"clip.{kind.suffix}",
        np.broadcast_to(frames[:, None, None, None], (60, 96, 96, 3)),
        np.stack([sound, sound], axis=1) if vorbis else sound,  # FFmpeg's takes two channels
        rate=rate,
        video_codec=kind.picture,
        audio_codec=kind.sound,
        pixel_format=PIXELS.get(kind.picture, "yuv420p"),
        options=kind.options,
        video_options=settings,
        audio_options={"strict": "experimental"} if vorbis else None,
    )


def lags(path: Path) -> list[float]:
    """Milliseconds by which the sound comes after the picture, of both moments."""
    (footage,) = read_footage(path, sample_rate=RATE, fps=LOOKS)
    light = footage.frames.mean(axis=(1, 2)) > 120
    loud = np.abs(footage.waveform) > 0.15
    found = []
    for moment in MOMENTS:
        at = []
        for on, rate in ((light, LOOKS), (loud, RATE)):
            first = round((moment - 0.3) * rate)
            at.append(1000 * (first + int(np.argmax(on[first:]))) / rate)
        found.append(at[1] - at[0])
    return found


def table() -> dict[str, float]:
    """The figures of the page, by what they are of."""
    (section,) = re.findall(r"^### Alignment$(.*?)^##", PAGE.read_text("utf-8"), re.M | re.S)
    rows = re.findall(r"^\| (\S.* \| .* \| .*) \| (-?[\d.]+) \|$", section, re.M)
    return {name: float(value) for name, value in rows}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_flash_and_a_click_come_together(tmp_path: Path, kind: Kind) -> None:
    measured = lags(write(tmp_path, kind))
    assert max(map(abs, measured)) <= HALF_A_FRAME
    worst = max(measured, key=abs)
    assert table()[str(kind)] == pytest.approx(worst, abs=1.0)


def test_the_page_has_no_other_rows() -> None:
    assert list(table()) == [str(kind) for kind in KINDS]


if __name__ == "__main__":
    print("| container | picture | sound | sound after picture, ms |\n|---|---|---|---|")
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {kind} | {max(lags(write(Path(folder), kind)), key=abs):.1f} |", flush=True)
