"""Features against direct computations in float64."""

from pathlib import Path

import numpy as np
import pytest

from avemo.data.features import (
    FeatureConfig,
    dequantize,
    extract,
    extract_windows,
    log_spectrogram,
    quantize,
    standardize,
)
from avemo.data.reasons import MediaError
from tests.avemo.data.media_files import no_face, talking_head, tone, write_media


def direct_spectrogram(waveform: np.ndarray, bins: int) -> np.ndarray:
    """The definition: a DFT at 0, 20, 40 ... Hz of each Hamming-windowed stretch of 40 ms."""
    n = np.arange(640)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * n / 640)
    hertz = 20.0 * np.arange(200)
    kernel = np.exp(-2j * np.pi * hertz[:, None] * n / 16000) * window
    padded = np.pad(waveform.astype(np.float64), 320)
    frames = 1 + len(waveform) // 160
    stretches = np.stack([padded[160 * t : 160 * t + 640] for t in range(frames)])
    power = np.abs(stretches @ kernel.T) ** 2 / (window.sum() / 2) ** 2
    power = power.reshape(frames, bins, 200 // bins).mean(axis=2)
    return np.clip(10 * np.log10(np.maximum(power, 1e-10)), -100, 0)


@pytest.mark.filterwarnings("ignore:n_fft=800 is too large")
@pytest.mark.parametrize("samples", [1, 159, 160, 641, 16000, 16123])
@pytest.mark.parametrize("bins", [200, 40, 1])
def test_spectrogram_is_the_dft(samples: int, bins: int) -> None:
    waveform = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    level = log_spectrogram(waveform, FeatureConfig(bins=bins))
    assert level.dtype == np.float32
    np.testing.assert_allclose(level, direct_spectrogram(waveform, bins), atol=0.01)


@pytest.mark.parametrize("hertz", [20, 440, 1000, 3980])
@pytest.mark.parametrize("decibels", [0.0, -20.0, -40.0])
def test_tone_lands_in_its_bin(hertz: int, decibels: float) -> None:
    waveform = tone(1.0, hertz=hertz, level=10 ** (decibels / 20))
    level = log_spectrogram(waveform, FeatureConfig())[20:80]
    # At 20 Hz the window's main lobe overlaps that of the mirrored frequency.
    assert (np.abs(level.argmax(axis=1) - hertz // 20) <= (1 if hertz == 20 else 0)).all()
    np.testing.assert_allclose(level[:, hertz // 20], decibels, atol=6 if hertz == 20 else 0.05)


def test_tone_appears_at_its_time() -> None:
    waveform = np.zeros(16000, np.float32)
    waveform[8000:] = tone(0.5, hertz=1000)
    level = log_spectrogram(waveform, FeatureConfig())[:, 50]
    assert (level[:48] == -100).all()
    # Half of the window is inside at frame 50: half of the amplitude.
    assert level[50] == pytest.approx(level[70] - 6.02, abs=0.2)


def test_quantisation_error_is_below_half_a_step() -> None:
    config = FeatureConfig()
    level = np.linspace(-100, 0, 5001, dtype=np.float32)
    back = dequantize(quantize(level, config), config)
    assert np.abs(back - level).max() <= 100 / 255 / 2 + 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bins": 33}, "bins must divide 200"),
        ({"bins": 0}, "bins must divide 200"),
        ({"sample_rate": 7000}, "sample_rate"),
        ({"window_ms": 60}, "window_ms"),
        ({"hop_ms": 0}, "hop_ms"),
        ({"fps": 0}, "fps"),
        ({"face_size": 4}, "face_size"),
        ({"face_margin": 2.0}, "face_margin"),
        ({"db_min": 0.0}, "db_min"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FeatureConfig(**settings)


def test_settings_round_trip() -> None:
    config = FeatureConfig(bins=50, fps=10.0, face_size=48, detector="yunet:0123")
    assert FeatureConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown feature settings: colour"):
        FeatureConfig.from_dict({**config.to_dict(), "colour": True})


def test_standardised_faces_forget_lighting_but_keep_expression() -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(60, 180, (8, 16, 16)).astype(np.float64)
    face[4:] += 10  # a change within the clip
    bright, dim = face.round().astype(np.uint8), (face * 0.5 + 20).round().astype(np.uint8)
    seen = np.ones(8, bool)
    a, b = standardize(bright, seen).astype(int), standardize(dim, seen).astype(int)
    assert np.abs(a - b).max() <= 3
    assert a.mean() == pytest.approx(128, abs=1)
    assert a.std() == pytest.approx(48, abs=2)
    assert a[4:].mean() - a[:4].mean() > 10


def test_standardisation_ignores_frames_without_a_face() -> None:
    crops = np.full((4, 8, 8), 255, np.uint8)
    crops[:2] = np.arange(64).reshape(8, 8)
    out = standardize(crops, np.array([True, True, False, False]))
    assert out[:2].mean() == pytest.approx(128, abs=1)


def test_extract_real_face(clip: Path) -> None:
    features = extract(clip, FeatureConfig())
    assert features.audio.shape == (201, 200)
    assert features.video.shape == (25, 64, 64)
    assert features.valid.mean() > 0.9
    level = dequantize(features.audio, FeatureConfig())
    assert (level[20:180].argmax(axis=1) == 22).all()
    assert level[20:180, 22].mean() == pytest.approx(20 * np.log10(0.25), abs=1)


def test_extract_refuses_silence_and_no_face(tmp_path: Path) -> None:
    silent = write_media(tmp_path / "s.mp4", talking_head(25), np.zeros(16000, np.float32))
    faceless = write_media(tmp_path / "f.mp4", no_face(25), tone(1.0))
    with pytest.raises(MediaError, match=r"^silent audio: record"):
        extract(silent, FeatureConfig())
    with pytest.raises(MediaError, match=r"^no face"):
        extract(faceless, FeatureConfig())
    with pytest.raises(ValueError, match="detector must be 'yunet:1'"):
        extract(silent, FeatureConfig(detector="yunet:1"))


def test_windows_fail_one_by_one(tmp_path: Path) -> None:
    frames = np.concatenate([talking_head(50), no_face(50)])
    path = write_media(tmp_path / "half.mp4", frames, tone(4.0))
    windows = list(extract_windows(path, FeatureConfig(), seconds=2.0))
    assert [(start, duration) for start, duration, _ in windows] == [(0.0, 2.0), (2.0, 2.0)]
    assert len(windows[0][2].video) == 25
    assert isinstance(windows[1][2], MediaError)
    assert windows[1][2].category == "no face"
