"""A clip's face and voice share one time line; degradations do to the picture what they say."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from avemo.synth.clip import ClipPlan, Format, render_audio, render_video
from avemo.synth.corpus import Parameters, plan
from avemo.synth.degrade import OCCLUSIONS, AudioDegradation, VideoDegradation, VideoDegrader
from avemo.synth.face import FaceRenderer, draw_identity, draw_scene

MEDIA = Format(size=96)


@pytest.fixture(scope="module")
def angry() -> ClipPlan:
    found = [p for p in plan(Parameters(48, 4, 3, 0.0, 96, 25, 16000)) if p.label == "angry"]
    return replace(found[0], flashes=())


def test_face_shows_the_emotion_only_during_the_emphasis(angry: ClipPlan) -> None:
    shown, blank = render_video(angry, MEDIA), render_video(replace(angry, units={}), MEDIA)
    change = np.array([np.abs(a.astype(int) - b).mean() for a, b in zip(shown, blank, strict=True)])
    times = (np.arange(len(shown)) + 0.5) / MEDIA.fps
    emphasis = angry.script.emphasis
    inside = (times > emphasis.start) & (times < emphasis.end)
    assert np.all(change[~inside] == 0)
    strength = emphasis.envelope(times)
    assert np.corrcoef(change, strength)[0, 1] > 0.85
    assert abs(times[inside].mean() - np.average(times, weights=change)) < 0.15


def test_voice_is_louder_where_the_face_is_angry() -> None:
    contrasts = []
    for p in plan(Parameters(96, 4, 3, 0.0, 96, 25, 16000)):
        if p.label not in ("angry", "sad"):
            continue
        sound = render_audio(p, MEDIA)
        times = np.arange(len(sound)) / MEDIA.sample_rate
        strength = p.script.emphasis.envelope(times)
        spoken = (times > p.script.syllables[0].start) & (times < p.script.syllables[-1].start)
        inside, outside = sound[spoken & (strength > 0.8)], sound[spoken & (strength < 0.2)]
        contrasts.append((p.label, 20 * np.log10(inside.std() / outside.std())))
    for label, sign in (("angry", 1), ("sad", -1)):
        values = np.array([sign * value for found, value in contrasts if found == label])
        assert np.median(values) > 4
        assert np.mean(values > 0) > 0.8


def test_sound_never_clips_and_equal_plans_sound_equal(angry: ClipPlan) -> None:
    loud = replace(angry, gain_db=30.0, audio=AudioDegradation("white", 0.0))
    sound = render_audio(loud, MEDIA)
    assert np.abs(sound).max() == pytest.approx(0.97, abs=1e-6)
    np.testing.assert_array_equal(sound, render_audio(loud, MEDIA))


def drawn_face() -> tuple[FaceRenderer, np.ndarray]:
    rng = np.random.default_rng(4)
    renderer = FaceRenderer(draw_identity(rng), draw_scene(rng), 160)
    return renderer, renderer.render({})


@pytest.mark.parametrize("kind", OCCLUSIONS)
def test_occlusion_covers_its_part_while_it_lasts(kind: str) -> None:
    renderer, frame = drawn_face()
    marks = renderer.landmarks({})
    degrader = VideoDegrader(
        VideoDegradation(occlusion=kind, occluded=(0.5, 1.5)), 160, np.random.default_rng(0)
    )
    assert [degrader.occluded(t) for t in (0.4, 0.5, 1.0, 1.5)] == [False, True, True, False]
    covered = (degrader.occlude(frame, 1.0, marks) != frame).any(2)

    def hidden(points: np.ndarray) -> np.ndarray:
        return np.array(
            [
                covered[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].mean()
                for x, y in points
            ]
        )

    eyes, lips = hidden(marks["eyes"]) > 0.8, hidden(marks["lips"]) > 0.8
    assert {"mouth": (0, 2), "eyes": (2, 0)}.get(kind, (1, lips.sum())) == (eyes.sum(), lips.sum())
    entering = (degrader.occlude(frame, 0.501, marks) != frame).any(2)
    assert entering.sum() < 0.3 * covered.sum()


def test_blur_light_and_grain_measure_what_was_asked_for() -> None:
    _, frame = drawn_face()

    def expose(**conditions: float) -> np.ndarray:
        degrader = VideoDegrader(VideoDegradation(**conditions), 160, np.random.default_rng(0))
        return degrader.expose(frame)

    np.testing.assert_array_equal(expose(), frame)
    assert (
        cv2.Laplacian(expose(blur=0.02), cv2.CV_64F).var()
        < 0.1 * cv2.Laplacian(frame, cv2.CV_64F).var()
    )
    assert expose(light=0.5).mean() == pytest.approx(0.5 * frame.mean(), rel=0.01)
    middle = (frame > 20) & (frame < 235)
    grain = (expose(grain=4.0).astype(int) - frame)[middle]
    assert grain.std() == pytest.approx(4.0, rel=0.05)
    assert abs(grain.mean()) < 0.1


def test_a_missed_face_is_out_of_the_frame(angry: ClipPlan) -> None:
    frames = render_video(replace(angry, video=VideoDegradation(missed=((0.4, 0.8),))), Format())
    detector = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_frontalface_alt2.xml")
    for k in (2, 8, 12, 16, 19, 24):
        grey = cv2.cvtColor(frames[k], cv2.COLOR_RGB2GRAY)
        found = len(detector.detectMultiScale(grey, 1.1, 3, minSize=(40, 40))) > 0
        assert found == (not 0.4 <= (k + 0.5) / 25 < 0.8)
