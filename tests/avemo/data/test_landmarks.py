"""Landmarks as dlib finds them, in shares of a crop."""

from pathlib import Path

import numpy as np
import pytest

from avemo.data.landmarks import ShapePredictor
from tests.avemo.shape_predictor import SIDE, around, square, write_predictor

MARGIN = 0.05


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_predictor(tmp_path_factory.mktemp("predictor") / "68.dat")


def test_landmarks_are_where_they_are_in_the_picture(file: Path) -> None:
    squares = [(22, 26, 9), (27, 21, 11), (24, 24, 12)]
    faces = np.stack([square(*each) for each in squares])
    found = ShapePredictor(file, points=68, margin=MARGIN)(faces)
    assert found.shape == (3, 68, 2)
    assert found.dtype == np.float32
    known = np.stack([around(*each, 68) for each in squares])
    expected = (known + 0.5) / SIDE - 0.5
    assert np.abs(found - expected).mean() < 0.02
    # and not where they are in the mean
    assert np.abs(found - expected[::-1]).mean() > 0.04


def test_the_box_is_the_one_that_the_crop_was_made_from(file: Path) -> None:
    """A crop has a margin of so much of the box on each side: 0.5 is a box of half the side."""
    predictor = ShapePredictor(file, points=68, margin=0.5)
    box = predictor._box
    side = box.left() + box.right()
    assert (box.right() - box.left()) / side == pytest.approx(0.5)
    assert box.left() == box.top()


def test_no_faces_have_no_landmarks(file: Path) -> None:
    predictor = ShapePredictor(file, points=68, margin=MARGIN)
    assert predictor(np.zeros((0, 16, 16), np.uint8)).size == 0


def test_what_is_no_predictor_of_so_many_landmarks_is_refused(tmp_path: Path) -> None:
    few = write_predictor(tmp_path / "5.dat", 5)
    with pytest.raises(ValueError, match=r"must find 68 landmarks, and '.*5\.dat' has 5"):
        ShapePredictor(few, points=68, margin=MARGIN)
    with pytest.raises(ValueError, match=r"must be a shape predictor of dlib, got .*there"):
        ShapePredictor(tmp_path / "there", points=68, margin=MARGIN)


def test_without_dlib_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avemo.imports.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs dlib: pip install 'avemo\[landmarks\]'"):
        ShapePredictor(tmp_path / "any", points=68, margin=MARGIN)
