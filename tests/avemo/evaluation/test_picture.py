"""Pictures of predictions: what decided stands out where it is, in both kinds of file."""

import base64
import io
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from avemo.evaluation.canvas import _THEMES, SERIES, Png, Svg, _png
from avemo.evaluation.clips import attended_frames
from avemo.evaluation.picture import FACES, Scene, Stretch, bits, draw
from avemo.evaluation.plots import save_picture
from avemo.evaluation.timeline import cues, moments

CLASSES = ("sad", "happy")
SVG = "{http://www.w3.org/2000/svg}"


def stretch(start: float, decided: int, stream: str = "audio", seen: bool = True) -> Stretch:
    """Two seconds in four parts, of which one decided for "sad"."""
    gain = {name: np.zeros((4, 2)) for name in ("audio", "video")}
    gain[stream][decided, 0] = 1.5
    return Stretch(
        start=start,
        duration=2.0,
        levels=np.tile(np.linspace(0, 255, 40).astype(np.uint8), (50, 1)),
        top_hertz=4000,
        faces={i: np.full((32, 32), 200, np.uint8) for i in attended_frames(None, 20)},
        seen=np.full(20, seen),
        peaks=np.full(100, 0.5, np.float32),
        frame=np.full((90, 120), 100, np.uint8),
        attention={"audio": np.full(20, 0.05), "video": np.full(25, 0.04)},
        gain=gain,
        whole={name: np.array([0.4, 0.6]) for name in ("audio", "video")},
    )


def scene(*parts: Stretch, name: str = "clip.mp4", classes: tuple[str, ...] = CLASSES) -> Scene:
    return Scene(name, classes, np.array([0.7, 0.3]), parts)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def svg(of: Scene) -> ElementTree.Element:
    return ElementTree.fromstring(draw(of, Svg))


def marked(of: Scene) -> tuple[float, float, float]:
    """Left edge, width and top of the part that is marked."""
    (box,) = [e for e in svg(of).iter(f"{SVG}rect") if e.get("fill") == "var(--mark)"]
    return float(box.get("x")), float(box.get("width")), float(box.get("y"))


def texts(of: Scene) -> list[str]:
    return [e.text for e in svg(of).iter(f"{SVG}text")]


def test_the_part_that_decided_is_marked_where_it_is() -> None:
    places = [marked(scene(stretch(0.0, part)))[0] for part in range(4)]
    assert np.allclose(np.diff(places), (905 - 110) / 4, atol=0.01)
    assert marked(scene(stretch(0.0, 1)))[1] == pytest.approx((905 - 110) / 4, abs=0.01)
    assert "decided most by the voice from 0.5 to 1.0 s" in texts(scene(stretch(0.0, 1)))
    seen = scene(stretch(0.0, 1, "video"))
    assert "decided most by the face from 0.5 to 1.0 s" in texts(seen)
    assert marked(seen)[2] < marked(scene(stretch(0.0, 1)))[2], "faces are above the voice"


def test_a_part_of_several_windows_decides_at_its_own_time() -> None:
    both = scene(stretch(0.0, 1), stretch(4.0, 3))  # the window between was left out
    strong = stretch(4.0, 3).gain["audio"]
    strong *= 2
    parts = both.parts()
    assert [p.start for p in parts if p.bits > 0] == [0.5, 5.5]
    later = Scene("clip", CLASSES, both.probabilities, [both.stretches[0], stretch(4.0, 3)])
    later.stretches[1].gain["audio"][3, 0] = 3.0
    assert "decided most by the voice from 5.5 to 6.0 s" in texts(later)


def test_where_nothing_decided_nothing_is_marked() -> None:
    even = stretch(0.0, 0)
    even.gain["audio"][:] = 0
    said = texts(scene(even))
    assert any(text.startswith("no single moment decided") for text in said)
    assert not [e for e in svg(scene(even)).iter(f"{SVG}rect") if e.get("fill") == "var(--mark)"]


def test_bits() -> None:
    after = np.array([[0.25, 0.75], [0.5, 0.5]])
    assert np.allclose(bits(np.array([0.5, 0.5]), after), [[1, np.log2(2 / 3)], [0, 0]])
    assert np.isfinite(bits(np.array([1.0, 0.0]), np.array([[0.0, 1.0]]))).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_png_shows_it_in_the_same_place(theme: str) -> None:
    for part in (0, 3):
        picture = pixels(draw(scene(stretch(0.0, part)), lambda *a: Png(*a, theme=theme)))
        color = np.array([int(_THEMES[theme]["voice"][i : i + 2], 16) for i in (1, 3, 5)])
        columns = np.flatnonzero((abs(picture - color).max(axis=2) < 3).sum(axis=0) > 60)
        left = 2 * (110 + part * (905 - 110) / 4)
        assert columns.min() == pytest.approx(left + 4, abs=3)
        assert columns.max() == pytest.approx(left + (905 - 110) / 2 - 4, abs=3)


def luminance(code: str) -> float:
    values = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def deuteranope(code: str) -> np.ndarray:
    """Vienot, Brettel and Mollon (1999), in linear light."""
    values = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    return np.clip(matrix @ values, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_read_and_told_apart(theme: str) -> None:
    colors = _THEMES[theme]
    for name in ("ink", "muted"):
        assert contrast(colors[name], colors["paper"]) >= 4.5, "WCAG 2, text"
    for name in ("face", "voice"):
        assert contrast(colors[name], colors["paper"]) >= 3, "WCAG 2, graphics"
    pair = deuteranope(colors["face"]) - deuteranope(colors["voice"])
    assert np.linalg.norm(pair) > 0.4, "by those who see no green"
    assert len(set(SERIES)) == 8


def test_a_timeline_names_what_it_shows() -> None:
    windows = [
        (0.0, 2.0, np.array([0.9, 0.1])),
        (1.0, 2.0, np.array([0.9, 0.1])),
        (2.0, 2.0, np.array([0.0, 1.0])),
    ]
    line = moments(windows)
    whole = Scene(
        "a.mp4",
        CLASSES,
        np.array([0.6, 0.4]),
        [stretch(s, 0) for s, _, _ in windows],
        line,
        cues(line, CLASSES),
    )
    said = texts(whole)
    assert "from 0.0 s sad, from 2.0 s happy" in said
    strips = [e for e in svg(whole).iter(f"{SVG}rect") if e.get("height") == "30"]
    assert [e.get("fill") for e in strips] == list(SERIES[:2])
    assert pixels(draw(whole, Png)).shape[0] > 800
    (waveform,) = svg(whole).iter(f"{SVG}polygon")
    xs = [float(p.split(",")[0]) for p in waveform.get("points").split()]
    over = xs[: len(xs) // 2]
    assert over == sorted(over), "windows that overlap are drawn once"


NAMES = (
    "日本語 <b>&amp;\"'$x$.mp4",
    "two\nlines\x1b[31m",
    "caf\udce9",
    "مرحبا",
    "n" * 300,
    "全" * 300,
)


@pytest.mark.parametrize("name", NAMES)
def test_the_files_own_name_whatever_its_signs(name: str) -> None:
    from avemo.text import printable

    of = scene(stretch(0.0, 1), name=name, classes=(name, "happy"))
    shown = texts(of)[0]
    assert shown == printable(name) or ("…" in shown and len(shown) <= 100)
    assert pixels(draw(of, Png)).shape[1] == 2400
    assert svg(of).find(f"{SVG}title").text.endswith("s")


def test_signs_without_a_glyph_are_escapes_in_a_png() -> None:
    from avemo.evaluation.canvas import _font, _writable

    assert _writable(
        "é 日本 م\U0001f600", _font(20, False)
    ) == "é \\u65e5\\u672c م\\U0001f600".replace(
        "\\U0001f600", _writable("\U0001f600", _font(20, False))
    )


def test_our_png_is_read_by_others() -> None:
    grey = np.arange(7 * 11, dtype=np.uint8).reshape(7, 11)
    decoded = cv2.imdecode(np.frombuffer(_png(grey), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, grey)


def test_an_svg_is_whole_in_itself() -> None:
    text = draw(scene(stretch(0.0, 1)), Svg).decode()
    assert re.findall(r'href="([^"]{20})', text)
    assert all(h.startswith("data:image/png;base64,") for h in re.findall(r'href="([^"]*)"', text))
    assert "prefers-color-scheme:dark" in text
    for content in re.findall(r"base64,([^\"]*)", text):
        assert cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 0) is not None


def test_attended_frames() -> None:
    weights = np.zeros(40)
    weights[[3, 17, 39]] = [0.5, 0.3, 0.2]
    chosen = attended_frames(weights, 40)
    assert len(chosen) == FACES
    assert {3, 17, 39} <= set(chosen)
    assert chosen == sorted(chosen)
    assert attended_frames(None, 4) == [0, 1, 2, 3]
    times = (np.array(attended_frames(None, 24)) + 0.5) / 24
    assert [int(t * FACES) for t in times] == list(range(FACES)), "one in each part of the time"


@pytest.mark.parametrize("setting", ["text.parse_math", "text.usetex"])
def test_labels_are_drawn_as_they_are(setting: str) -> None:
    import matplotlib
    from matplotlib.text import Text

    seen = []
    with matplotlib.rc_context({setting: True}):
        save_picture(Path(os.devnull), lambda: seen.append(Text(0, 0, "$x$")), dpi=10)
    assert not seen[0].get_parse_math()
    assert not seen[0].get_usetex()
