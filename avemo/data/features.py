"""What the networks are fed: a log spectrogram and normalised face crops of one clip."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from avemo.data.faces import FaceDetector, HaarDetector, find_faces
from avemo.data.limits import LONGEST_SECONDS
from avemo.data.media import BOTH, WHOLE, Cut, Footage, read_footage
from avemo.data.reasons import MediaError

FULL_BINS = 200
"""Bins from 0 to 4 kHz at 20 Hz; fewer are averages of neighbours."""

SILENCE_PEAK = 1e-4
"""-80 dBFS, three steps of 16-bit sound: below it a clip has a sound track but no sound."""

CANCELLED_SHARE = 0.03
"""A mean of the channels below this share of the loudest is what a codec leaves of opposite ones."""

_LOUDEST = 32767  # of 16 bits

_FRAMES_AT_A_TIME = 1024  # 10 s of sound; 12 MB in all

FACE_MEAN, FACE_STD = 128.0, 48.0
"""Mean and deviation of the stored grey values of a clip, so that +-2.6 deviations fit into a
byte."""


@dataclass(frozen=True)
class FeatureConfig:
    """How clips become arrays; stored with every cache and every checkpoint.

    Attributes:
        sample_rate: of the sound, Hz.
        window_ms: length of the Hamming window.
        hop_ms: from one frame of the spectrogram to the next.
        bin_hz: spacing of the transform's bins; the window is padded with zeros to reach it.
        bins: frequency bins kept of 0 to 4 kHz; divides 200, and fewer than 200 average adjacent
            ones' power.
        db_min: lower end of the stored levels, dB below a sine at full scale.
        db_max: upper end of the stored levels.
        fps: face frames per second.
        face_size: side of the square face crops, pixels.
        face_margin: added to each side of the detector's box, as a share of its side.
        detector: `haar`, or `yunet:` and the beginning of the model file's SHA-256.
        version: of the extraction; caches of another version are not mixed.
        sound: what is kept of the sound: a log spectrogram, or the waveform, which speech models hear.
    """

    sample_rate: int = 16000
    window_ms: float = 40.0
    hop_ms: float = 10.0
    bin_hz: int = 20
    bins: int = FULL_BINS
    db_min: float = -100.0
    db_max: float = 0.0
    fps: float = 12.5
    face_size: int = 64
    face_margin: float = 0.05
    detector: str = "haar"
    version: int = 3
    sound: Literal["spectrogram", "waveform"] = "spectrogram"

    def __post_init__(self) -> None:
        if self.bins < 1 or FULL_BINS % self.bins:
            raise ValueError(f"bins must divide {FULL_BINS}, got {self.bins}")
        if self.sample_rate % self.bin_hz or self.sample_rate < 2 * FULL_BINS * self.bin_hz:
            raise ValueError(
                f"sample_rate must be a multiple of bin_hz={self.bin_hz} and at least "
                f"{2 * FULL_BINS * self.bin_hz} Hz, got {self.sample_rate}"
            )
        if not 0 < self.window_length <= self.n_fft:
            raise ValueError(
                f"window_ms must lie in (0, {1000 / self.bin_hz:g}], got {self.window_ms}"
            )
        if self.hop_length < 1:
            raise ValueError(f"hop_ms must be at least one sample, got {self.hop_ms}")
        if not self.db_min < self.db_max:
            raise ValueError(f"db_min must be below db_max, got {self.db_min} and {self.db_max}")
        if not 0 < self.fps <= 240:
            raise ValueError(f"fps must lie in (0, 240], got {self.fps}")
        if not 8 <= self.face_size <= 1024:
            raise ValueError(f"face_size must lie in 8..1024, got {self.face_size}")
        if not 0 <= self.face_margin <= 1:
            raise ValueError(f"face_margin must lie in [0, 1], got {self.face_margin}")

    @property
    def n_fft(self) -> int:
        """Length of the transform, samples."""
        return self.sample_rate // self.bin_hz

    @property
    def window_length(self) -> int:
        """Length of the window, samples."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples between frames of the spectrogram."""
        return round(self.sample_rate * self.hop_ms / 1000)

    @property
    def audio_features(self) -> int:
        """Values that a frame of the sound has: bins of the spectrogram, or samples of the waveform."""
        return self.bins if self.sound == "spectrogram" else self.hop_length

    @property
    def audio_fps(self) -> float:
        """Frames of the spectrogram per second."""
        return self.sample_rate / self.hop_length

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FeatureConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a setting is unknown, or out of range.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown feature settings: {', '.join(unknown)}")
        return cls(**values)


class Clip(NamedTuple):
    """The stored form of one clip; :mod:`avemo.data.inputs` makes network inputs of it.

    Attributes:
        audio: log spectrogram, uint8 (T_a, F): 0 is `db_min`, 255 is `db_max`; or the waveform in as
            many stretches, int16 (T_a, F), the last one filled up with zeros.
        video: grey face crops, uint8 (T_v, S, S), standardised over the clip.
        valid: bool (T_v,): a face was seen in this frame, or right before and after it.

    A stream that the clip lacks has no frames.
    """

    audio: NDArray[np.uint8] | NDArray[np.int16]
    video: NDArray[np.uint8]
    valid: NDArray[np.bool_]

    @property
    def streams(self) -> tuple[str, ...]:
        """What the clip has, of "audio" and "video"."""
        return tuple(
            name for name, frames in zip(BOTH, (self.audio, self.video), strict=True) if len(frames)
        )

    def video_frames(self, config: FeatureConfig) -> int:
        """T_v, or what it would be if there were pictures for as long as there is sound."""
        return len(self.video) or max(
            1, round((len(self.audio) - 1) / config.audio_fps * config.fps)
        )


Window = tuple[float, float, Clip | MediaError]
"""Start and duration in seconds, and the arrays, or why there are none."""


def extract(
    path: Path,
    config: FeatureConfig,
    detector: FaceDetector | None = None,
    *,
    max_seconds: float | None = LONGEST_SECONDS,
    needs: Collection[str] | None = None,
    cut: Cut = WHOLE,
) -> Clip:
    """Makes the features of one media file, or of a cut of it.

    Args:
        path: any file with sound, a picture or both.
        config: the settings.
        detector: finds faces; the default is OpenCV's Haar cascade. Its name must be
            `config.detector`.
        max_seconds: longer clips are refused, so that memory stays bounded (see
            :func:`extract_windows`).
        needs: the streams that must be there and be of use, of "audio" and "video"; by default those
            that the file has.
        cut: what of the file is the clip.

    Returns:
        The clip's arrays; none of a stream that is not there, or not needed and of no use.

    Raises:
        MediaError: the clip cannot be used; the message says why.
        ValueError: the detector is not the one that the settings name.
    """
    detector = _checked(detector, config)
    (footage,) = read_footage(
        path,
        sample_rate=config.sample_rate,
        fps=config.fps,
        max_seconds=max_seconds,
        needs=needs or (),
        cut=cut,
    )
    return features_of(footage, config, detector, footage.streams if needs is None else needs)


def extract_windows(
    path: Path,
    config: FeatureConfig,
    detector: FaceDetector | None = None,
    *,
    seconds: float,
    needs: Collection[str] = BOTH,
) -> Iterator[Window]:
    """Makes the features of a clip of any length, in equal windows no longer than `seconds`, of the
    streams that it must have (`needs`) and those that it has.

    Yields:
        The windows in order.

    Raises:
        MediaError: the file as a whole cannot be used.
        ValueError: the detector is not the one that the settings name.
    """
    detector = _checked(detector, config)
    for footage in read_footage(
        path, sample_rate=config.sample_rate, fps=config.fps, window_seconds=seconds, needs=needs
    ):
        duration = len(footage.frames) / config.fps
        try:
            yield footage.start, duration, features_of(footage, config, detector, needs)
        except MediaError as error:
            yield footage.start, duration, error


def features_of(
    footage: Footage, config: FeatureConfig, detector: FaceDetector, needs: Collection[str] = BOTH
) -> Clip:
    """Makes the features of decoded media. A stream that is not needed counts as not there if no sound is
    heard or no face is seen in it.

    Raises:
        MediaError: no sound is heard or no face is seen, and has to be; or neither is.
    """
    size = config.face_size
    clip = Clip(_silence(0, config), np.zeros((0, size, size), np.uint8), np.zeros(0, bool))
    faults = []
    for stream in footage.streams:
        try:
            if stream == "audio":
                check_heard(footage)
                clip = clip._replace(audio=store_sound(footage.waveform, config))
            else:
                crops, valid = find_faces(
                    footage.frames,
                    detector,
                    fps=config.fps,
                    size=size,
                    margin=config.face_margin,
                    loudness=_loudness(footage),
                )
                clip = clip._replace(video=standardize(crops, valid), valid=valid)
        except MediaError as error:
            if stream in needs:
                raise
            faults.append(error)
    if not clip.streams:
        raise faults[0]
    return clip


def _loudness(footage: Footage) -> NDArray[np.float64]:
    """Level of the sound during each frame, float64 (T,): the root of its mean square."""
    pieces = np.array_split(footage.waveform.astype(np.float64), len(footage.frames))
    return np.array([math.sqrt((x @ x) / max(1, x.size)) for x in pieces])


def fill_missing(clip: Clip, config: FeatureConfig) -> Clip:
    """The clip with silence or grey pictures, none of them valid, for the stream that it lacks: for as
    long as the other one."""
    count = clip.video_frames(config)
    if not len(clip.audio):
        samples = round(count / config.fps * config.sample_rate)
        return clip._replace(audio=_silence(1 + samples // config.hop_length, config))
    if not len(clip.video):
        grey = np.full((count, *clip.video.shape[1:]), round(FACE_MEAN), np.uint8)
        return clip._replace(video=grey, valid=np.zeros(count, bool))
    return clip


def _silence(frames: int, config: FeatureConfig) -> NDArray[np.uint8] | NDArray[np.int16]:
    shape = (frames, config.audio_features)
    return np.zeros(shape, np.uint8) if config.sound == "spectrogram" else np.zeros(shape, np.int16)


def store_sound(
    waveform: NDArray[np.float32], config: FeatureConfig
) -> NDArray[np.uint8] | NDArray[np.int16]:
    """What is kept of a waveform, float (N,): 1 + N // hop_length frames."""
    if config.sound == "spectrogram":
        return quantize(log_spectrogram(waveform, config), config)
    stored = _silence(1 + len(waveform) // config.hop_length, config)
    stored.reshape(-1)[: len(waveform)] = np.rint(np.clip(waveform, -1, 1) * _LOUDEST)
    return stored


def samples_of(audio: NDArray[Any]) -> NDArray[np.float32]:
    """The waveform that was kept, float32 (T_a * F,)."""
    return audio.reshape(-1).astype(np.float32) / np.float32(_LOUDEST)


def levels_of(audio: NDArray[Any], config: FeatureConfig) -> NDArray[np.float32]:
    """The log spectrogram of what is kept of the sound, dB (T_a, bins)."""
    if config.sound == "spectrogram":
        return dequantize(audio, config)
    return log_spectrogram(samples_of(audio), config)[: len(audio)]


def check_heard(footage: Footage) -> None:
    """Raises a `MediaError` if there is nothing to hear."""
    peak = float(np.abs(footage.waveform).max(initial=0.0))
    if footage.loudest < SILENCE_PEAK:
        raise MediaError("silent audio")
    if peak < CANCELLED_SHARE * footage.loudest:
        raise MediaError(
            "opposite channels", f"their mean has {peak / footage.loudest:.1%} of their level"
        )


def log_spectrogram(waveform: NDArray[np.float32], config: FeatureConfig) -> NDArray[np.float32]:
    """Levels of a waveform over time and frequency.

    Frame t is centred on sample `t * hop_length` (zeros beyond the ends), so it lines up with the
    video frame of the same time. Power is divided by that of a sine at full scale, whose bin is
    thus at 0 dB.

    It is the transform of librosa 0.11 (`librosa.stft` with a Hamming window). That is not used itself: at its
    first import it compiles functions that have nothing to do with this one, and keeps them in a cache beside
    itself, which processes that start together have been seen to spoil.

    Args:
        waveform: float (N,).
        config: the settings.

    Returns:
        float32 (1 + N // hop_length, bins), dB, clipped to `db_min`..`db_max`.
    """
    window = 0.54 - 0.46 * np.cos(
        2 * np.pi * np.arange(config.window_length) / config.window_length
    )
    before = config.window_length // 2
    padded = np.pad(waveform, (before, config.window_length - before))
    frames = 1 + len(waveform) // config.hop_length
    stretches = sliding_window_view(padded, config.window_length)[:: config.hop_length][:frames]
    power = np.empty((frames, config.bins))
    for start in range(0, frames, _FRAMES_AT_A_TIME):
        some = slice(start, start + _FRAMES_AT_A_TIME)
        spectrum = np.fft.rfft(stretches[some] * window, config.n_fft)[:, :FULL_BINS]
        squared = np.square(spectrum.real) + np.square(spectrum.imag)
        power[some] = squared.reshape(-1, config.bins, FULL_BINS // config.bins).mean(axis=2)
    floor = 10 ** (config.db_min / 10)
    level = 10 * np.log10(np.maximum(power / (window.sum() / 2) ** 2, floor))
    return np.clip(level, config.db_min, config.db_max).astype(np.float32)


def quantize(level: NDArray[np.float32], config: FeatureConfig) -> NDArray[np.uint8]:
    """Stores dB in a byte: steps of 0.4 dB for the default range of 100 dB, far below what a voice
    varies by."""
    scale = 255 / (config.db_max - config.db_min)
    return np.rint((level - config.db_min) * scale).astype(np.uint8)


def dequantize(audio: NDArray[np.uint8], config: FeatureConfig) -> NDArray[np.float32]:
    """The inverse of :func:`quantize`, dB."""
    scale = np.float32((config.db_max - config.db_min) / 255)
    return audio.astype(np.float32) * scale + np.float32(config.db_min)


def standardize(crops: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Brings the grey values of a clip's face to one mean and deviation, as bytes.

    Over the clip, not per frame: lighting and camera go, but what changes from frame to frame (the
    expression) keeps its contrast. Histogram equalisation would amplify noise in flat faces and
    flicker over time.

    Args:
        crops: uint8 (T, S, S).
        valid: bool (T,), the frames that statistics are taken from.
    """
    seen = crops[valid] if valid.any() else crops
    mean, std = float(seen.mean()), max(float(seen.std()), 1.0)
    table = np.clip(np.rint((np.arange(256) - mean) / std * FACE_STD + FACE_MEAN), 0, 255).astype(
        np.uint8
    )
    return table[crops]


def _checked(detector: FaceDetector | None, config: FeatureConfig) -> FaceDetector:
    detector = detector or HaarDetector()
    if detector.name != config.detector:
        raise ValueError(
            f"detector must be {config.detector!r} as in the features' settings, got {detector.name!r}"
        )
    return detector
