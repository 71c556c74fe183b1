"""Time lines: means of overlapping windows, and files that others' readers take."""

import io
import itertools
from pathlib import Path

import numpy as np
import pysubs2
import pytest
import textgrid as textgrid_package
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid as praatio

from avemo.evaluation.timeline import Cue, cues, moments, srt, textgrid, vtt

CLASSES = ('say "x"', "a --> b", "<i>&amp;", "two\nlines")
LINE = [
    Cue(0.0, 1.25, CLASSES[0], 0.5),
    Cue(1.25, 2.0, CLASSES[1], 0.75),
    Cue(2.5, 3723.0, CLASSES[2], 1.0),
    Cue(3723.0, 3724.5, CLASSES[3], 0.333),
]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_line_is_the_mean_of_the_windows_over_it(
    count: int, length: int, hop: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    windows = [(0.25 * hop * i, 0.25 * length, draw.dirichlet(np.ones(3))) for i in range(count)]
    line = moments(windows)
    for time in draw.uniform(0, windows[-1][0] + windows[-1][1], 50):
        over = [p for start, duration, p in windows if start <= time < start + duration]
        (found,) = [m for m in line if m.start <= time < m.end] or [None]
        assert (found is not None) == bool(over)
        if found:
            assert np.allclose(found.probabilities, np.mean(over, axis=0), rtol=1e-12)


def test_stretches_of_one_emotion_are_joined() -> None:
    rows = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    windows = [(0.0, 1.0, rows[0]), (1.0, 2.0, rows[1]), (3.0, 1.0, rows[2]), (5.0, 1.0, rows[3])]
    joined = cues(moments(windows), ("sad", "happy"))
    assert [(c.start, c.end, c.emotion) for c in joined] == [
        (0, 3, "sad"),
        (3, 4, "happy"),
        (5, 6, "happy"),
    ]
    assert joined[0].probability == pytest.approx(0.8)


def check_times(starts: list[float], ends: list[float]) -> None:
    assert starts == pytest.approx([c.start for c in LINE], abs=1e-3)
    assert ends == pytest.approx([c.end for c in LINE], abs=1e-3)


def seconds(clock: str) -> float:
    """Not `start_in_seconds` of webvtt-py, which is whole seconds."""
    hours, minutes, rest = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_srt_is_read_by_pysubs2() -> None:
    read = pysubs2.SSAFile.from_string(srt(LINE), format_="srt", keep_html_tags=True)
    check_times([e.start / 1000 for e in read], [e.end / 1000 for e in read])
    assert read[0].text == 'say "x" 50%'
    assert read[1].text == "a --> b 75%"
    assert read[3].text == r"two\nlines 33%", "one line, and no line break of a subtitle"


def test_times_are_rounded_to_milliseconds() -> None:
    """1000 times 1.001 is a little less than 1001 in floating point."""
    cue = [Cue(1.001, 3599.9996, "sad", 0.5)]
    assert "00:00:01,001 --> 01:00:00,000\n" in srt(cue)
    assert "00:00:01.001 --> 01:00:00.000\n" in vtt(cue)


def test_vtt_is_read_by_webvtt() -> None:
    read = webvtt.from_buffer(io.StringIO(vtt(LINE)))
    check_times([seconds(c.start) for c in read], [seconds(c.end) for c in read])
    assert read[0].text == 'say "x" 50%'
    assert read[1].raw_text == "a --&gt; b 75%", "no arrow in a cue, as the standard has it"
    assert read[2].raw_text == "&lt;i&gt;&amp;amp; 100%"


def test_a_textgrid_is_read_by_two_packages(tmp_path: Path) -> None:
    file = tmp_path / "a.TextGrid"
    file.write_text(textgrid(LINE, 3725.0), "utf-8")
    read = praatio.openTextgrid(str(file), includeEmptyIntervals=True)
    assert read.tierNames == ("emotion", "probability")
    entries = read.getTier("emotion").entries
    assert [e.label for e in entries] == [
        'say "x"',
        "a --> b",
        "",
        "<i>&amp;",
        r"two\nlines",
        "",
    ]
    assert entries[0].start == 0
    assert entries[-1].end == 3725
    edges = [(a.end, b.start) for a, b in itertools.pairwise(entries)]
    assert all(end == start for end, start in edges), "no gaps, as Praat wants them"
    other = textgrid_package.TextGrid.fromFile(str(file))
    assert [i.mark for i in other.getFirst("probability")] == [
        "0.500",
        "0.750",
        "",
        "1.000",
        "0.333",
        "",
    ]


def test_nothing_is_a_valid_file(tmp_path: Path) -> None:
    assert srt([]) == ""
    assert len(webvtt.from_buffer(io.StringIO(vtt([])))) == 0
    file = tmp_path / "a.TextGrid"
    file.write_text(textgrid([], 2.0), "utf-8")
    assert len(textgrid_package.TextGrid.fromFile(str(file)).getFirst("emotion")) == 1
