"""Our cascade against OpenCV's: the same boxes, window for window."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from avemo.data import faces
from avemo.data.cascade import Cascade, library_path
from tests.avemo.data.media_files import no_face, talking_head

XML = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"


@pytest.fixture(scope="module")
def ours() -> Cascade:
    assert library_path() is not None, "_cascade.so was not built: make setup"
    return Cascade(XML)


def theirs(picture: np.ndarray, smallest: int, neighbors: int = 4) -> list[list[int]]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # with more, the order of OpenCV's windows is theirs to finish in
    try:
        found = cv2.CascadeClassifier(str(XML)).detectMultiScale(
            picture, scaleFactor=1.15, minNeighbors=neighbors, minSize=(smallest, smallest)
        )
    finally:
        cv2.setNumThreads(threads)
    return np.asarray(found, int).reshape(-1, 4).tolist()


def head(width: int, height: int, number: int) -> np.ndarray:
    grey = cv2.cvtColor(talking_head(50)[number], cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("width", "height"),
    [(240, 180), (176, 144), (641, 479), (97, 131), (64, 64), (24, 24), (23, 90)],
)
def test_boxes_are_those_of_opencv(ours: Cascade, width: int, height: int) -> None:
    found = 0
    for number in (0, 17, 34, 49):
        for smallest in (24, height // 5):
            picture = head(width, height, number)
            boxes = ours.detect(picture, scale=1.15, neighbors=4, smallest=smallest).tolist()
            assert boxes == theirs(picture, smallest)
            found += len(boxes)
    assert found or min(width, height) < 100


def test_single_windows_are_those_of_opencv(ours: Cascade) -> None:
    """Without groups: one window more or less, or another order, is seen."""
    rng = np.random.default_rng(0)
    pictures = [
        head(160, 120, 5),
        np.hstack([head(150, 180, 3), head(150, 180, 40)[:, ::-1]]),
        cv2.GaussianBlur(rng.integers(0, 256, (180, 240), dtype=np.uint8), (0, 0), 3),
        rng.integers(0, 256, (90, 120), dtype=np.uint8),
        cv2.cvtColor(no_face(1)[0], cv2.COLOR_RGB2GRAY),
        np.full((60, 60), 200, np.uint8),
    ]
    for picture in pictures:
        boxes = ours.detect(picture, scale=1.15, neighbors=0, smallest=24).tolist()
        assert boxes == theirs(picture, 24, neighbors=0)
    assert len(theirs(pictures[1], 24, neighbors=0)) > 5


def test_the_detector_is_the_same_with_and_without_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = head(320, 240, 10)
    boxes = []
    for path in (library_path(), None):
        monkeypatch.setattr(faces, "library_path", lambda path=path: path)
        faces._haar_cascade.cache_clear()
        boxes.append(faces.HaarDetector()(picture, 48))
    faces._haar_cascade.cache_clear()
    assert boxes[0] == boxes[1]
    assert boxes[0]


def test_other_cascades_are_refused(tmp_path: Path) -> None:
    folder = XML.parent
    for name, words in (
        ("haarcascade_frontalface_alt.xml", "24 x 24"),
        ("haarcascade_eye_tree_eyeglasses.xml", "24 x 24"),
        ("haarcascade_upperbody.xml", "24 x 24"),
    ):
        with pytest.raises(ValueError, match=words):
            Cascade(folder / name)
    (tmp_path / "none.xml").write_text("<opencv_storage></opencv_storage>")
    with pytest.raises(ValueError, match="no featureType"):
        Cascade(tmp_path / "none.xml")
