"""A camera that is a file: windows at its own pace, bars of each, and honesty about sound."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from avemo.data.features import FeatureConfig
from avemo.evaluation import camera as cameras
from avemo.evaluation.camera import CameraError, Microphone, watch
from avemo.evaluation.decoding import Windows
from avemo.evaluation.predict import predict
from avemo.training.description import wanted
from tests.avemo.data.media_files import talking_head, tone, write_media
from tests.avemo.evaluation.test_predict import MakeCheckpoint, make_checkpoint

__all__ = ["make_checkpoint"]

SHAKY = np.random.default_rng(0).uniform(0.02, 0.06, 400)


class VirtualCamera:
    """A device that shows a file, a frame at a time of its own clock, which is not even."""

    def __init__(self, index: int) -> None:
        assert index == 7
        self.file = REAL(str(FILE[0]))
        self.frames = 0

    def isOpened(self) -> bool:  # noqa: N802
        return self.file.isOpened()

    def read(self) -> tuple[bool, np.ndarray | None]:
        CLOCK[0] += SHAKY[self.frames]
        self.frames += 1
        return self.file.read()

    def release(self) -> None:
        self.file.release()


REAL = cv2.VideoCapture
FILE: list[Path] = []
CLOCK = [100.0]


@pytest.fixture
def virtual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_media(tmp_path / "a.mp4", talking_head(120), tone(4.8))
    FILE[:] = [path]
    monkeypatch.setattr(cv2, "VideoCapture", VirtualCamera)
    monkeypatch.setattr("avemo.evaluation.camera.time.monotonic", lambda: CLOCK[0])
    return path


def test_bars_every_hop(make_checkpoint: MakeCheckpoint, virtual: Path) -> None:
    checkpoint = make_checkpoint("video")
    out = io.StringIO()
    total = SHAKY[1:120].sum()
    asked = watch(checkpoint, wanted(checkpoint), "7", Windows(2.0, 0.5), None, None, out)
    assert asked == pytest.approx((total - 2) / 0.5 + 1, abs=1.01)
    blocks = out.getvalue().split(" s\n")
    assert len(blocks) == asked + 1
    assert "neutral" in blocks[1]
    assert "%" in blocks[1]
    some = watch(checkpoint, wanted(checkpoint), "7", Windows(2.0, 0.5), 2.6, None, out)
    assert some == 2


def test_windows_show_what_stood_at_each_time() -> None:
    features = FeatureConfig(fps=10.0)
    times = np.concatenate([[0.0], np.cumsum(SHAKY[:99])])
    frames = (cameras._Shown(float(t), np.full((4, 4), i, np.uint8)) for i, t in enumerate(times))
    found = list(cameras._windows(frames, features, Windows(1.0, 0.5), None, None))
    assert len(found) >= 4
    for footage in found:
        assert footage.frames.shape == (10, 4, 4)
        assert len(footage.waveform) == 16000
        for n, frame in enumerate(footage.frames):
            at = footage.start + (n + 1) / 10
            assert frame[0, 0] == np.searchsorted(times, at + 1e-9, "right") - 1


def test_by_the_command(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_media(tmp_path / "a.mkv", talking_head(100), tone(4.0))
    checkpoint = make_checkpoint("video")
    assert predict(checkpoint, camera=str(path), window=2.0, hop=1.0) == []
    assert capsys.readouterr().out.count(" s\n") == 2, "the last frame is at 3.96 s"
    with pytest.raises(CameraError, match=r"gave less than a window of 9 s"):
        predict(checkpoint, camera=str(path), window=9.0)
    with pytest.raises(ValueError, match="or camera a camera"):
        predict(checkpoint, [str(path)], camera="0")
    with pytest.raises(CameraError, match="cannot be opened"):
        predict(checkpoint, camera=str(tmp_path / "none"))


def sounddevice(error: Exception | None, heard: Callable[[int], np.ndarray]) -> ModuleType:
    """A package of that name whose microphone gives three blocks at once."""

    class Stream:
        def __init__(self, samplerate: int, channels: int, dtype: str, callback: Callable) -> None:
            if error:
                raise error
            assert (samplerate, channels, dtype) == (16000, 1, "float32")
            self.callback = callback

        def start(self) -> None:
            for number in range(3):
                self.callback(heard(number)[:, None], 0, None, None)

        def close(self) -> None:
            pass

    module = ModuleType("sounddevice")
    module.InputStream = Stream
    return module


def test_the_microphone_keeps_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def heard(number: int) -> np.ndarray:
        return np.full(8000, number + 1, np.float32)

    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(None, heard))
    with Microphone(16000, 1.0) as microphone:
        assert np.unique(microphone.last(16000), return_counts=True)[1].tolist() == [8000, 8000]
        assert microphone.last(10000)[[0, 1999, 2000]].tolist() == [2, 2, 3]
        assert microphone.last(40000)[0] == 0, "silence before it was heard"


def test_a_model_that_listens_hears_or_is_refused(
    make_checkpoint: MakeCheckpoint, virtual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_checkpoint("am_fbp")

    def ask() -> int:
        out = io.StringIO()
        asked = watch(checkpoint, wanted(checkpoint), "7", Windows(2.0, 1.0), None, None, out)
        assert "neutral" in out.getvalue()
        return asked

    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(
        CameraError, match=r"a camera has no sound: install sounddevice .* only looks"
    ):
        ask()
    no_device = RuntimeError("Error querying device -1")
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(no_device, tone))
    with pytest.raises(
        CameraError, match="the microphone cannot be used: Error querying device -1"
    ):
        ask()
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(None, lambda n: tone(1.0)))
    assert ask() >= 2
