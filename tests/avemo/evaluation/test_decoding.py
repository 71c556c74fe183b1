"""Windows of clips: cut where they are asked for, read ahead, and ended where no one takes them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avemo.data.features import FeatureConfig
from avemo.data.media import Footage
from avemo.evaluation.decoding import (
    PEAKS_PER_SECOND,
    Windows,
    _ahead,
    piece_of,
    sliding,
    windows_of,
)

FEATURES = FeatureConfig(bins=20, face_size=16)


def footage(counts: list[int], fps: float, rate: int) -> Iterator[Footage]:
    """Windows end to end, whose frames and samples are their numbers."""
    first = 0
    for count in counts:
        numbers = np.arange(first, first + count)
        frames = np.broadcast_to(numbers.astype(np.uint8)[:, None, None], (count, 2, 2))
        samples = np.arange(round(first * rate / fps), round((first + count) * rate / fps))
        yield Footage(first / fps, samples.astype(np.float32), frames, 1.0)
        first += count


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 30),
    st.data(),
    st.sampled_from([12.5, 10.0, 7.3]),
)
def test_windows_begin_where_they_should(
    counts: list[int], size: int, data: st.DataObject, fps: float
) -> None:
    hop = data.draw(st.integers(1, size))
    features = FeatureConfig(bins=20, fps=fps)
    total = sum(counts)
    windows = Windows(size / fps, hop / fps)
    cut = list(sliding(footage(counts, fps, features.sample_rate), features, windows))
    starts = list(range(0, total - size + 1, hop)) if total >= size else [0]
    if starts[-1] + size < total:
        starts.append(total - size)
    assert [round(c.start * fps) for c in cut] == starts
    for start, window in zip(starts, cut, strict=True):
        length = min(size, total)
        assert window.frames[:, 0, 0].tolist() == list(range(start, start + length))
        assert abs(len(window.waveform) - length * features.sample_rate / fps) <= 1
        assert abs(window.waveform[0] - start * features.sample_rate / fps) <= 1


def test_windows_keep_their_time_where_a_hop_is_no_number_of_frames() -> None:
    clip = footage([125, 125], 12.5, FEATURES.sample_rate)
    cut = list(sliding(clip, FEATURES, Windows(3.0, 1.0)))
    assert len(cut) == 19, "18 hops, and one that ends with the clip"
    assert all(abs(c.start - i) <= 0.51 / 12.5 for i, c in enumerate(cut[:-1]))
    assert all(len(c.frames) == 37 for c in cut), "no longer than 3 s"


@pytest.mark.parametrize(
    ("longest", "window", "hop", "found"),
    [
        (8.0, None, None, Windows(8.0)),
        (None, None, None, Windows(30.0)),
        (8.0, 3.0, 1.0, Windows(3.0, 1.0)),
        (8.0, 3.0, None, Windows(3.0, 3.0)),
        (8.0, None, 1.0, "hop needs a window, got hop=1 alone"),
        (8.0, 9.0, 1.0, r"window must lie in 0.2..8 seconds, .* got 9"),
        (8.0, 0.1, 0.1, r"window must lie in 0.2..8 seconds, .* got 0.1"),
        (8.0, 3.0, 3.5, r"hop must lie in 0\.01\.\.3 seconds, up to the window's length, got 3.5"),
        (8.0, 3.0, 1e-9, r"hop must lie in 0\.01\.\.3 seconds.*, got 1e-09"),
        (8.0, 3.0, 0.0, r"hop must lie in"),
        (8.0, float("nan"), 1.0, "window must lie in"),
    ],
)
def test_what_windows_may_be(
    longest: float | None, window: float | None, hop: float | None, found: Windows | str
) -> None:
    if isinstance(found, Windows):
        assert windows_of(longest, window, hop) == found
    else:
        with pytest.raises(ValueError, match=found):
            windows_of(longest, window, hop)


def faceless(frame: np.ndarray, smallest: int) -> list:
    return []


def test_peaks_and_frame_of_a_piece() -> None:
    waveform = np.zeros(16000, np.float32)
    waveform[8000] = -0.75
    frames = np.zeros((12, 100, 200), np.uint8)
    frames[6] = 90
    piece = piece_of(Footage(3.0, waveform, frames, 1.0), FEATURES, faceless, ("audio",))
    assert len(piece.peaks) == PEAKS_PER_SECOND
    assert np.flatnonzero(piece.peaks).tolist() == [PEAKS_PER_SECOND // 2]
    assert piece.frame.shape == (90, 180)
    assert (piece.frame == 90).all()


def slow_results(made: list[int], closed: threading.Event) -> Iterator:
    try:
        for number in range(1000):
            made.append(number)
            yield (0, Path("a")), number
    finally:
        closed.set()


def test_it_reads_ahead_no_further_than_a_few_and_ends_where_no_one_takes() -> None:
    made: list[int] = []
    closed = threading.Event()
    with _ahead(slow_results(made, closed)) as results:
        assert next(results) == (0, 0)
        until = time.monotonic() + 60
        while len(made) <= 5 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        assert 5 < len(made) < 15
    assert closed.wait(60), "the workers are ended with it"
    assert len(made) < 20


def test_an_error_where_it_is_read_is_raised_where_it_is_awaited() -> None:
    def failing() -> Iterator:
        yield (3, Path("a")), "first"
        raise RuntimeError("a worker process failed")

    with _ahead(failing()) as results:
        assert next(results) == (3, "first")
        with pytest.raises(RuntimeError, match="a worker process failed"):
            next(results)
