"""Pictures show the figures of the run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.records import Run
from bench.report import charts
from bench.report.pictures import Picture, digest_of, save

from .made_up import case, measurement, run


def _bars(picture: Picture) -> dict[str, list[tuple[float, float]]]:
    """Where the bars of each column begin and end, from top to bottom."""
    columns = {}
    for ax in picture.draw().axes:
        bars = sorted(ax.patches, key=lambda bar: bar.get_y())
        ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
        columns[ax.get_title()] = [(round(a, 6), round(b, 6)) for a, b in ends]
    return columns


def _lines(ax: Any) -> Iterator[tuple[list[float], list[float]]]:
    for line in ax.get_lines():
        yield list(line.get_xdata()), list(line.get_ydata())


def _named(pictures: list[Picture], name: str) -> Picture:
    return next(picture for picture in pictures if picture.name == name)


def test_speedup_bars_begin_at_one_and_end_at_the_ratio() -> None:
    pictures = charts.speedup(run(case(), case(mode="training", ratios={"eager": 3.0})))
    assert _bars(_named(pictures, "speedup")) == {
        "forward": [(1, 1.5), (1, 1.25), (1, 0.8)],
        "forward and backward": [(1, 3.0)],
    }


def test_whiskers_are_the_spread() -> None:
    (ax,) = _named(charts.speedup(run(case(ratios={"eager": 1.5}))), "speedup").draw().axes
    ((segment,),) = [c.get_segments() for c in ax.collections]
    np.testing.assert_allclose(segment[:, 0], [1.35, 1.65])


def test_graphs_are_drawn_against_graphs() -> None:
    plain = measurement(1.0, ratios={"eager": 1.3, "eager graph": 0.4})
    graph = measurement(1.0, ratios={"eager": 4.0, "eager graph": 1.5})
    made = run(replace(case(), contenders={"native": plain, "native graph": graph}))
    pictures = charts.speedup(made)
    assert [picture.name for picture in pictures] == [
        "speedup",
        "speedup-float32-native",
        "speedup-float32-native-graph",
    ]
    assert _bars(pictures[1]) == {"forward": [(1, 1.3)]}
    assert _bars(pictures[2]) == {"forward": [(1, 1.5)]}


def test_memory_is_a_part_of_eagers() -> None:
    (picture,) = charts.memory(run(case(mode="training")))
    columns = _bars(picture)
    assert columns["peak, forward and backward"] == [(0, 0.5), (0, 1), (0, 1), (0, 1)]
    assert columns["kept for backward"] == [(0, 0.25), (0, 1), (0, 1), (0, 1)]


def test_kernels_below_the_roof() -> None:
    """0.1 GFLOP over 10 MB in 2 ms: 10 flop per byte, 50 GFLOP/s; the roof bends at 200 GFLOP/s."""
    (picture,) = charts.roofline(run(case()))
    (ax,) = picture.draw().axes
    lines = list(_lines(ax))
    (roof_x, roof_y), kernel, eager = lines[0], lines[-1], lines[-2]
    assert (roof_x[1], roof_y[1]) == (10, pytest.approx(200))
    assert roof_y[0] == pytest.approx(20 * roof_x[0])
    assert roof_y[2] == pytest.approx(200)
    assert kernel == ([pytest.approx(10)], [pytest.approx(50)])
    assert eager == ([pytest.approx(10)], [pytest.approx(100 / 3)])


def test_operators_without_arithmetic_are_not_on_the_roofline() -> None:
    assert charts.roofline(run(case(flops=0.0))) == []


def test_curves_are_in_the_order_of_their_size() -> None:
    cases = [
        case(label=f"B={B}", curve="B", sizes={"B": B}, native=B / 8, ratios={"eager": 2.0})
        for B in (64, 1, 8)
    ]
    (picture,) = charts.cost_curves(run(*cases))
    (ax,) = picture.draw().axes
    floor, native, eager = _lines(ax)
    assert floor == ([1, 8, 64], [0.5, 0.5, 0.5])
    assert native[0] == [1, 8, 64]
    np.testing.assert_allclose(native[1], [0.125, 1, 8])
    np.testing.assert_allclose(eager[1], [0.25, 2, 16])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_times_at_size_one_and_of_a_step() -> None:
    (host,) = charts.host(run(case(label="one", native=0.05, ratios={"eager": 2.0})))
    assert _bars(host) == {"forward": [(0, 50), (0, 100)]}
    (step,) = charts.training_step(
        run(case("training_step", "full", "training", native=400.0, ratios={"eager": 1.5}))
    )
    assert _bars(step) == {"forward and backward": [(0, 400), (0, 600)]}


@pytest.mark.parametrize(
    "chart",
    [
        charts.speedup,
        charts.memory,
        charts.host,
        charts.training_step,
        charts.roofline,
        charts.cost_curves,
    ],
)
def test_nothing_to_show_gives_no_picture(chart: Any) -> None:
    empty: Run = run()
    assert chart(empty) == []


def test_a_picture_keeps_the_digest_of_its_data_and_is_the_same_every_time(tmp_path: Path) -> None:
    (picture,) = charts.roofline(run(case()))
    digest = "ab" * 32
    for name in ("first.svg", "second.svg"):
        save(picture, tmp_path / name, digest)
    assert digest_of(tmp_path / "first.svg") == digest
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    (tmp_path / "other.svg").write_text("<svg/>")
    assert digest_of(tmp_path / "other.svg") is None
