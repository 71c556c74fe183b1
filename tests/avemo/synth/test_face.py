"""Action units move what they should, and a detector finds the face."""

import cv2
import numpy as np
import pytest

from avemo.synth.emotions import ACTION_UNITS, CLASSES, EMOTIONS
from avemo.synth.face import FaceRenderer, Pose, Speech, draw_identity, draw_scene


def renderer(seed: int, size: int = 160) -> FaceRenderer:
    rng = np.random.default_rng(seed)
    return FaceRenderer(draw_identity(rng), draw_scene(rng), size)


def moved(seed: int, unit: int, part: str) -> np.ndarray:
    """Mean displacement (x outwards is not folded) of a part's points by a full action unit, pixels."""
    r = renderer(seed)
    return r.landmarks({unit: 1.0})[part] - r.landmarks({})[part]


@pytest.mark.parametrize("seed", range(5))
def test_action_units_move_landmarks_as_their_names_say(seed: int) -> None:
    assert np.all(moved(seed, 12, "lip_corners")[:, 1] < -2)  # lip corners up
    assert np.all(moved(seed, 15, "lip_corners")[:, 1] > 2)  # and down
    corners = moved(seed, 20, "lip_corners")
    assert corners[0, 0] > 1  # stretched to both sides
    assert corners[1, 0] < -1
    inner, outer = [0, 3], [2, 5]
    assert np.all(moved(seed, 1, "brows")[inner, 1] < -2)
    assert np.all(np.abs(moved(seed, 1, "brows")[outer, 1]) < 0.5)
    assert np.all(moved(seed, 2, "brows")[outer, 1] < -2)
    lowered = moved(seed, 4, "brows")[inner]
    assert np.all(lowered[:, 1] > 2)
    assert lowered[0, 0] < 0 < lowered[1, 0]  # drawn together
    assert moved(seed, 26, "lips")[1, 1] > 3
    assert moved(seed, 26, "chin")[0, 1] > 2


@pytest.mark.parametrize("unit", sorted(ACTION_UNITS))
def test_action_units_change_pixels_where_they_act(unit: int) -> None:
    r = renderer(3)
    marks = r.landmarks({})
    middle = 0.5 * (marks["eyes"].mean(0)[1] + marks["lips"].mean(0)[1])
    change = np.abs(r.render({unit: 1.0}).astype(int) - r.render({}).astype(int)).sum(2)
    upper, lower = change[: round(middle)].sum(), change[round(middle) :].sum()
    assert change.sum() > 500
    if unit in (1, 2, 4, 5, 7, 45):
        assert upper > 5 * lower
    if unit in (12, 15, 16, 17, 20, 23, 25, 26):
        assert lower > (2 if unit == 12 else 5) * upper  # a smile lifts the cheeks too


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_smile_is_seen_in_the_pixels(seed: int) -> None:
    """The lips, found by their hue in the rendered pixels, rise at their corners with AU12 and sink with AU15."""
    r = renderer(seed)
    x, y = np.round(r.landmarks({})["lip_corners"].max(0)).astype(int)

    def height(units: dict[int, float]) -> float:
        patch = r.render(units)[y - 12 : y + 12, x - 4 : x + 6].astype(float)
        ratio = patch[..., 0] / (patch[..., 1] + 1)
        lips = ratio > 0.5 * (np.median(ratio) + ratio.max())
        return float(np.nonzero(lips)[0].mean())

    assert height({12: 1.0}) < height({}) - 1
    assert height({15: 1.0}) > height({}) + 1


def test_pose_moves_the_face() -> None:
    r = renderer(0)
    straight, turned = r.landmarks({}), r.landmarks({}, Pose(yaw=0.3))
    assert np.all(turned["eyes"][:, 0] > straight["eyes"][:, 0] + 3)
    assert r.landmarks({}, Pose(pitch=0.2))["eyes"][0, 1] < straight["eyes"][0, 1] - 2
    rolled = r.landmarks({}, Pose(roll=0.2))["eyes"]
    assert rolled[0, 1] > rolled[1, 1] + 3
    shifted = r.landmarks({}, Pose(shift=(0.1, 0.0)))["chin"] - straight["chin"]
    np.testing.assert_allclose(shifted, [[0.1 * r.scene.scale * 160, 0]], atol=1e-9)


def test_frames_are_repeatable_and_of_any_size() -> None:
    frame = renderer(2, 96).render(
        EMOTIONS["fear"].face, Pose(0.1, 0.1, 0.1), Speech(0.5, 0.5, (1, -1))
    )
    again = renderer(2, 96).render(
        EMOTIONS["fear"].face, Pose(0.1, 0.1, 0.1), Speech(0.5, 0.5, (1, -1))
    )
    assert frame.shape == (96, 96, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, again)


@pytest.mark.parametrize("cascade", ["default", "alt2"])
def test_detector_finds_clean_faces(cascade: str) -> None:
    detector = cv2.CascadeClassifier(
        f"{cv2.data.haarcascades}haarcascade_frontalface_{cascade}.xml"
    )
    found, total = 0, 80
    for seed in range(total):
        rng = np.random.default_rng((9, seed))
        r = FaceRenderer(draw_identity(rng), draw_scene(rng), 160)
        units = EMOTIONS[str(rng.choice(CLASSES[7]))].face
        pose = Pose(rng.normal(0, 0.1), rng.normal(0, 0.06), rng.normal(0, 0.04))
        frame = r.render(units, pose, Speech(rng.uniform(0, 0.8)))
        boxes = detector.detectMultiScale(
            cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 1.1, 3, minSize=(40, 40)
        )
        eyes = r.landmarks(units, pose)["eyes"]
        found += any(np.all((eyes > (x, y)) & (eyes < (x + w, y + h))) for x, y, w, h in boxes)
    assert found / total >= 0.97
