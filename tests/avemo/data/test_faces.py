"""Following one face, with a detector whose answers are known."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from avemo.data import faces
from avemo.data.faces import (
    Box,
    HaarDetector,
    crop,
    find_faces,
    interpolate_boxes,
    link_boxes,
    load_detector,
    moving_mean,
    overlap,
    smooth_boxes,
)
from avemo.data.prepare import prepare
from avemo.data.reasons import MediaError
from avemo.synth.clip import Format, render_audio, render_video
from avemo.synth.corpus import Parameters, plan
from avemo.synth.face import FaceRenderer, Pose, Speech
from tests.avemo.data.media_files import talking_head
from tests.avemo.data.yunet import CELL, SIDE, write_yunet

FPS = 12.5


class Scripted:
    """Answers by the frame's number, which is its grey value."""

    name = "scripted"

    def __init__(self, boxes: dict[int, list[Box]]) -> None:
        self.boxes = boxes
        self.asked: list[int] = []

    def __call__(self, frame: np.ndarray, smallest: int) -> list[Box]:
        number = int(frame[0, 0])
        self.asked.append(number)
        return self.boxes.get(number, [])


def numbered(count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 100, 120))


def find(detector: Scripted, count: int) -> tuple[np.ndarray, np.ndarray]:
    return find_faces(numbered(count), detector, fps=FPS, size=16, margin=0.0)


def test_steady_face_is_looked_at_rarely() -> None:
    detector = Scripted({i: [Box(50, 50, 40)] for i in range(41)})
    crops, seen = find(detector, 41)
    assert seen.all()
    assert len(detector.asked) == len(set(detector.asked)) == 11
    np.testing.assert_array_equal(crops[:, 8, 8], np.arange(41))


def test_missed_frames_are_marked_and_still_given() -> None:
    detector = Scripted({i: [Box(50, 50, 40)] for i in range(41) if not 14 <= i <= 21})
    crops, seen = find(detector, 41)
    np.testing.assert_array_equal(np.flatnonzero(~seen), np.arange(14, 22))
    assert len(crops) == 41


def test_bystander_does_not_take_over() -> None:
    speaker, bystander = Box(40, 50, 40), Box(95, 50, 30)
    boxes = {i: [bystander, speaker] if i % 8 else [bystander] for i in range(33)}
    boxes |= {0: [bystander, speaker]}
    looks = {i: boxes[i] for i in range(33)}
    assert set(link_boxes(looks).values()) == {speaker}


def test_brief_large_blunder_does_not_take_over() -> None:
    boxes = {i: [Box(40, 50, 30)] for i in range(10)} | {5: [Box(40, 50, 30), Box(60, 50, 90)]}
    assert all(box.side == 30 for box in link_boxes(boxes).values())


def test_no_face_and_too_few_faces() -> None:
    with pytest.raises(
        MediaError, match=r"^no face: seen in 0% of the frames; the face has to look"
    ):
        find(Scripted({}), 25)
    with pytest.raises(MediaError, match=r"^no face: seen in 20% of the frames"):
        find(Scripted({i: [Box(50, 50, 40)] for i in range(5)}), 25)


def test_overlap() -> None:
    assert overlap(Box(0, 0, 2), Box(0, 0, 2)) == 1
    assert overlap(Box(0, 0, 2), Box(1, 0, 2)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 2), Box(5, 0, 2)) == 0


def test_boxes_are_linear_between_and_constant_beyond() -> None:
    boxes = interpolate_boxes({2: Box(10, 20, 30), 4: Box(20, 20, 34)}, 6)
    np.testing.assert_allclose(boxes[:, 0], [10, 10, 10, 15, 20, 20])
    np.testing.assert_allclose(boxes[:, 2], [30, 30, 30, 32, 34, 34])
    jitter = np.random.default_rng(0).normal(0, 1, (200, 3))
    assert smooth_boxes(jitter, 3.0).std() < 0.4
    np.testing.assert_allclose(smooth_boxes(np.full((7, 3), 5.0), 3.0), 5.0)


@pytest.mark.parametrize("count", [1, 2, 7, 120])
@pytest.mark.parametrize("width", [0.3, 1.0, 3.75, 6.0])
def test_what_is_smoothed_is_as_scipy_has_it(count: int, width: float) -> None:
    """To the bit where caches depend on it: faces are cut out at these places."""
    boxes = np.random.default_rng(count).normal(300, 100, (count, 3))
    wanted = gaussian_filter1d(boxes, width, axis=0, mode="nearest")
    assert (smooth_boxes(boxes, width) == wanted).all()
    for size in range(1, 6):
        means = uniform_filter1d(boxes[:, 0], size, mode="nearest")
        np.testing.assert_allclose(moving_mean(boxes[:, 0], size), means, rtol=1e-13)


@pytest.mark.parametrize("side", [8.0, 16.0, 40.0, 61.7])
def test_crop_geometry(side: float) -> None:
    """On a ramp a crop is a ramp: pixel i of 16 is the mean of its share of the square."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    box = Box(100.3, 100.0, side)
    cut = crop(ramp, box, 16, 0.0).astype(float)
    edges = box.x - side / 2 + side / 16 * (np.arange(16) + 0.5) - 0.5
    assert np.abs(cut - edges[None]).max() <= 1.0
    assert np.abs(cut.mean() - edges.mean()) < 0.3


def test_crop_margin_and_border() -> None:
    frame = np.zeros((50, 50), np.uint8)
    frame[20:30, 20:30] = 255
    assert crop(frame, Box(25, 25, 10), 10, 0.0).min() == 255
    wide = crop(frame, Box(25, 25, 10), 20, 0.5)
    assert wide[6:14, 6:14].min() == 255
    assert wide[:4].max() == 0
    assert (crop(np.full((50, 50), 77, np.uint8), Box(0, 0, 40), 16, 0.2) == 77).all()


def test_haar_follows_a_real_face() -> None:
    frames = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in talking_head(50)[::2]])
    crops, seen = find_faces(frames, HaarDetector(), fps=FPS, size=64, margin=0.05)
    assert seen.mean() > 0.9
    again = HaarDetector()
    hits = sum(
        bool(again(cv2.copyMakeBorder(c, 30, 30, 30, 30, cv2.BORDER_REPLICATE), 24)) for c in crops
    )
    assert hits > 0.8 * len(crops)  # a face is what was cut out


def test_haar_sees_in_the_dark() -> None:
    frames = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in talking_head(50)[::2]])
    dark = (frames * 0.15).astype(np.uint8)
    _, seen = find_faces(dark, HaarDetector(), fps=FPS, size=64, margin=0.05)
    assert seen.mean() > 0.8


def test_detector_files(tmp_path: Path) -> None:
    assert load_detector(None).name == "haar"
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a network")
    for path in (broken, tmp_path / "none.onnx"):
        with pytest.raises(ValueError, match="detector must be a readable YuNet"):
            load_detector(path)


def test_yunet_boxes_are_those_of_the_cascade(tmp_path: Path) -> None:
    """Centre and side, in frames of any size; none where there is nothing."""
    model = write_yunet(tmp_path / "model.onnx")
    detector = load_detector(model)
    assert detector.name == f"yunet:{hashlib.sha256(model.read_bytes()).hexdigest()[:16]}"
    for height, width in ((150, 200), (64, 97), (129, 128)):
        frame = np.zeros((height, width), np.uint8)
        assert detector(frame, 20) == []
        frame[CELL : 2 * CELL, 2 * CELL : 3 * CELL] = 255
        ((x, y, side),) = detector(frame, 20)
        np.testing.assert_allclose((x, y), (2.5 * CELL, 1.5 * CELL), atol=1e-3)
        assert side == pytest.approx(SIDE * faces.YuNetDetector.SIDE)


def test_opencv_without_cascades_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(cv2, "CascadeClassifier")  # as in OpenCV 5
    faces._haar_cascade.cache_clear()
    words = r"has no Haar cascades; install 4\.10 or a later 4\.x .* or give a YuNet model"
    with pytest.raises(ValueError, match=words):
        prepare("manifest", tmp_path, out=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("turns", "words"), [(-1, "to the right"), (1, "to the left"), (2, "upside down")]
)
def test_a_face_on_its_side_is_told(turns: int, words: str) -> None:
    frames = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in talking_head(50)[::2]])
    turned = np.ascontiguousarray(np.rot90(frames, turns, axes=(1, 2)))
    with pytest.raises(MediaError, match=f"^rotated picture: the face lies {words} .*; turn it"):
        find_faces(turned, HaarDetector(), fps=FPS, size=64, margin=0.05)


def test_faces_that_take_turns_are_told() -> None:
    """Four people for a quarter of the time each, at places of their own: none is the clip's."""
    count = 40
    boxes = {i: [Box(20 + 40 * (i // 10), 50, 30)] for i in range(count)}
    frames = numbered(count)
    words = "^several faces: one in 100% of the frames looked at, the same in 2[0-9]%; no one"
    with pytest.raises(MediaError, match=words):
        find_faces(frames, Scripted(boxes), fps=FPS, size=16, margin=0.0)


def two_heads(talker: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames (T, H, W) of a large head on the left that moves and says nothing and a small one on the
    right that says something, and the sound's loudness by frame."""
    media = Format(192, 25, 16000)
    plans = plan(Parameters(24, 7, 1, 0.0, media.size, media.fps, media.sample_rate))
    said, still = plans[talker], plans[talker - 1]
    small = render_video(said, media)
    sound = render_audio(said, media)
    renderer = FaceRenderer(still.identity, still.scene, 288)
    turns = 0.15 * np.sin(np.arange(len(small)) / 4)
    frames = []
    for picture, turn in zip(small, turns, strict=True):
        large = renderer.render({}, Pose(turn, 0.5 * turn, 0.0, (0.0, 0.1 * turn)), Speech())
        beside = cv2.copyMakeBorder(picture, 96, 0, 0, 0, cv2.BORDER_REPLICATE)
        frames.append(cv2.cvtColor(np.hstack([large, beside]), cv2.COLOR_RGB2GRAY))
    pieces = np.array_split(sound, len(frames))
    return np.stack(frames), np.array([np.sqrt(np.mean(x.astype(float) ** 2)) for x in pieces])


@pytest.mark.parametrize("talker", [4, 5, 7, 16, 19, 22])
def test_of_two_faces_the_one_that_speaks_is_followed(talker: int) -> None:
    frames, loudness = two_heads(talker)
    options = {"fps": 25.0, "size": 64, "margin": 0.0}
    large, _ = find_faces(frames, HaarDetector(), **options)
    small, seen = find_faces(frames, HaarDetector(), loudness=loudness, **options)
    alone, _ = find_faces(frames[:, :, 288:], HaarDetector(), **options)
    assert seen.mean() > 0.5
    away = [np.abs(x.astype(float) - alone).mean() for x in (small, large)]
    assert away[0] < 15  # as the small head is seen by itself
    assert away[1] > 2 * away[0]
    # Where nothing is said, or by nobody who is seen, it is the larger one.
    for silence in (np.zeros(len(frames)), np.random.default_rng(0).random(len(frames))):
        found, _ = find_faces(frames, HaarDetector(), loudness=silence, **options)
        np.testing.assert_array_equal(found, large)
