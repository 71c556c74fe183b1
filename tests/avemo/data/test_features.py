"""Features against direct computations in float64."""

import os
import subprocess
import sys
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


@pytest.mark.parametrize("samples", [1, 159, 160, 641, 16000, 16123])
@pytest.mark.parametrize("bins", [200, 40, 1])
def test_spectrogram_is_the_dft(samples: int, bins: int) -> None:
    waveform = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    level = log_spectrogram(waveform, FeatureConfig(bins=bins))
    assert level.dtype == np.float32
    np.testing.assert_allclose(level, direct_spectrogram(waveform, bins), atol=1e-5)


LIBROSA = """
import sys
import numpy as np
from librosa.core.spectrum import stft
from scipy.signal import get_window
waveform = np.load(sys.argv[1])
found = stft(waveform, n_fft=800, hop_length=160, win_length=640, window="hamming", pad_mode="constant")
window = get_window("hamming", 640)
np.save(sys.argv[2], np.abs(found[:200].T.astype(complex)) ** 2 / (window.sum() / 2) ** 2)
"""


@pytest.mark.slow
def test_the_spectrogram_is_that_of_librosa(tmp_path: Path) -> None:
    """In a process and a cache of its own: what librosa compiles nobody else shall find."""
    given, found = tmp_path / "waveform.npy", tmp_path / "power.npy"
    noise = np.random.default_rng(0).normal(0, 0.1, 200_001).astype(np.float32)
    np.save(given, noise + tone(noise.size / 16000, hertz=440)[: noise.size])
    command = [sys.executable, "-c", LIBROSA, str(given), str(found)]
    subprocess.run(command, check=True, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)})
    power = np.load(found).reshape(-1, 100, 2).mean(axis=2)
    level = log_spectrogram(np.load(given), FeatureConfig(bins=100))
    # librosa rounds to 24 bits on the way: 1e-6 of the power is 5e-6 dB, and float32 has 4e-6 at -50 dB.
    np.testing.assert_allclose(level, np.clip(10 * np.log10(power), -100, 0), rtol=0, atol=2e-5)
    np.testing.assert_allclose(10 ** (level.astype(float) / 10), power, rtol=3e-6, atol=1e-10)


@pytest.mark.slow
def test_nothing_that_is_compiled_at_its_first_import_stands_in_the_way(tmp_path: Path) -> None:
    """Three processes in an empty home and an empty cache make a corpus and its features at once, and all succeed.

    They agree to the byte, nothing was compiled, and the librosa that the tests have was not even looked at.
    """
    code = (
        "import sys\n"
        "from avemo.cli import run\n"
        "run(['synth', '--out', sys.argv[1] + '/corpus', '--clips', '12', '--classes', '4', '--workers', '1'])\n"
        "run(['prepare', 'manifest', sys.argv[1] + '/corpus', '--out', sys.argv[1] + '/cache', '--workers', '1'])\n"
        "assert not {'librosa', 'numba'} & sys.modules.keys()\n"
    )
    home = {"HOME": str(tmp_path / "home"), "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    folders = [tmp_path / str(i) for i in range(3)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            env=os.environ | home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for folder in folders
    ]
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 3, errors
    assert not (tmp_path / "compiled").exists()
    made = [sorted((folder / "cache").glob("**/*.safetensors")) for folder in folders]
    assert made[0]
    assert len({tuple(path.read_bytes() for path in paths) for paths in made}) == 1


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
