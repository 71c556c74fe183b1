"""What pictures are drawn on: SVG, which any browser shows in light and dark and with any script, or PNG.

Colours are asked for by what they are for. Those that tell things apart are of Okabe and Ito (2008), which people with
any colour vision can tell apart.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]

_THEMES = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1b1b1b",
        "muted": "#6a6a6a",
        "grid": "#dcdcdc",
        "face": "#0072b2",
        "voice": "#d55e00",
        "mark": "#f0e442",
        "frame": "#1b1b1b",
    },
    "dark": {
        "paper": "#16181b",
        "ink": "#f0f0f0",
        "muted": "#a6a6a6",
        "grid": "#3a3e44",
        "face": "#56b4e9",
        "voice": "#e69f00",
        "mark": "#f0e442",
        "frame": "#f0f0f0",
    },
}
SERIES = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8c8c8c")
"""For classes; where there are more, they come again."""


class Canvas(Protocol):
    """Draws in order.

    Places and lengths are in pixels from the upper left; colours are names of a theme, or `#rrggbb`.
    """

    def rectangle(self, at: Point, size: Point, color: str, *, opacity: float = 1.0) -> None:
        """Fills a rectangle."""

    def frame(self, at: Point, size: Point, color: str, width: float) -> None:
        """Draws the edge of a rectangle."""

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        """Draws a line through points."""

    def area(self, points: Sequence[Point], color: str, *, opacity: float = 1.0) -> None:
        """Fills a polygon."""

    def text(
        self,
        at: Point,
        text: str,
        *,
        color: str = "ink",
        size: float = 13,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Writes a line; `anchor` is what of it is at the point: "start", "middle" or "end" of its base line."""

    def image(self, at: Point, size: Point, grey: NDArray[np.uint8], *, ink: bool = False) -> None:
        """Shows a grey picture (H, W), stretched; as `ink`, 255 is the ink's colour and 0 the paper's."""

    def finished(self) -> bytes:
        """The file."""


class Svg:
    """A picture as SVG, in light or dark as its reader likes it.

    Args:
        size: of the picture.
        title: what it shows, for those who hear it.
    """

    def __init__(self, size: Point, title: str) -> None:
        width, height = size
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            f"<style>{_style()}</style>",
            f'<rect width="{width}" height="{height}" fill="var(--paper)"/>',
        ]

    def rectangle(self, at: Point, size: Point, color: str, *, opacity: float = 1.0) -> None:
        self._add(f'<rect {_box(at, size)} fill="{_paint(color)}"{_clear(opacity)}/>')

    def frame(self, at: Point, size: Point, color: str, width: float) -> None:
        self._add(
            f'<rect {_box(at, size)} fill="none" stroke="{_paint(color)}" stroke-width="{width:g}"/>'
        )

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        self._add(
            f'<polyline points="{_places(points)}" fill="none" stroke="{_paint(color)}" '
            f'stroke-width="{width:g}" stroke-linejoin="round"/>'
        )

    def area(self, points: Sequence[Point], color: str, *, opacity: float = 1.0) -> None:
        self._add(f'<polygon points="{_places(points)}" fill="{_paint(color)}"{_clear(opacity)}/>')

    def text(
        self,
        at: Point,
        text: str,
        *,
        color: str = "ink",
        size: float = 13,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self._add(
            f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size:g}" text-anchor="{anchor}"{weight} '
            f'fill="{_paint(color)}">{escape(text)}</text>'
        )

    def image(self, at: Point, size: Point, grey: NDArray[np.uint8], *, ink: bool = False) -> None:
        content = base64.b64encode(_png(255 - grey if ink else grey)).decode()
        kind = ' class="ink"' if ink else ""
        self._add(
            f'<image {_box(at, size)} preserveAspectRatio="none"{kind} href="data:image/png;base64,{content}"/>'
        )

    def finished(self) -> bytes:
        return "\n".join([*self._parts, "</svg>\n"]).encode()

    def _add(self, part: str) -> None:
        self._parts.append(part)


class Png:
    """A picture as PNG, twice as fine as its size says.

    Args:
        size: of the picture.
        title: what it shows.
        theme: "light" or "dark".
    """

    _FINE = 2

    def __init__(self, size: Point, title: str, theme: str = "light") -> None:
        from PIL import Image, ImageDraw

        self._colors = _THEMES[theme]
        self._title = title
        whole = (round(self._FINE * size[0]), round(self._FINE * size[1]))
        self._image = Image.new("RGB", whole, self._colors["paper"])
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def rectangle(self, at: Point, size: Point, color: str, *, opacity: float = 1.0) -> None:
        left, top, right, bottom = self._box(at, size)
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), self._paint(color, opacity))

    def frame(self, at: Point, size: Point, color: str, width: float) -> None:
        left, top, right, bottom = self._box(at, size)
        fine = max(1, round(self._FINE * width))
        self._draw.rectangle(
            (left - fine // 2, top - fine // 2, right + fine // 2, bottom + fine // 2),
            outline=self._paint(color),
            width=fine,
        )

    def line(self, points: Sequence[Point], color: str, width: float) -> None:
        fine = max(1, round(self._FINE * width))
        self._draw.line(self._places(points), self._paint(color), fine, joint="curve")

    def area(self, points: Sequence[Point], color: str, *, opacity: float = 1.0) -> None:
        self._draw.polygon(self._places(points), self._paint(color, opacity))

    def text(
        self,
        at: Point,
        text: str,
        *,
        color: str = "ink",
        size: float = 13,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        font = _font(round(self._FINE * size), bold)
        place = (self._FINE * at[0], self._FINE * at[1])
        side = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        self._draw.text(place, _writable(text, font), self._paint(color), font, side)

    def image(self, at: Point, size: Point, grey: NDArray[np.uint8], *, ink: bool = False) -> None:
        from PIL import Image

        left, top, right, bottom = self._box(at, size)
        picture = Image.fromarray(np.ascontiguousarray(grey), "L")
        picture = picture.resize(
            (max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR
        )
        if not ink:
            self._image.paste(picture, (left, top))
        else:
            self._image.paste(self._colors["ink"], (left, top), picture)

    def finished(self) -> bytes:
        from PIL.PngImagePlugin import PngInfo

        notes = PngInfo()
        notes.add_itxt("Title", self._title.encode("utf-8", "backslashreplace").decode())
        file = io.BytesIO()
        self._image.save(file, "PNG", pnginfo=notes)
        return file.getvalue()

    def _paint(self, color: str, opacity: float = 1.0) -> tuple[int, int, int, int]:
        code = self._colors.get(color, color)
        red, green, blue = bytes.fromhex(code[1:])
        return red, green, blue, round(255 * opacity)

    def _box(self, at: Point, size: Point) -> tuple[int, int, int, int]:
        corners = (at[0], at[1], at[0] + size[0], at[1] + size[1])
        left, top, right, bottom = (round(self._FINE * value) for value in corners)
        return left, top, right, bottom

    def _places(self, points: Sequence[Point]) -> list[Point]:
        return [(self._FINE * x, self._FINE * y) for x, y in points]


def _style() -> str:
    def variables(theme: str) -> str:
        return "".join(f"--{name}:{code};" for name, code in _THEMES[theme].items())

    return (
        f"svg{{{variables('light')}font-family:system-ui,'Segoe UI',Roboto,'Noto Sans','DejaVu Sans',sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{variables('dark')}}}.ink{{filter:invert(1)}}}}"
    )


def _paint(color: str) -> str:
    return color if color.startswith("#") else f"var(--{color})"


def _clear(opacity: float) -> str:
    return "" if opacity == 1 else f' fill-opacity="{opacity:g}"'


def _box(at: Point, size: Point) -> str:
    return f'x="{at[0]:.6g}" y="{at[1]:.6g}" width="{size[0]:.6g}" height="{size[1]:.6g}"'


def _places(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.5g},{y:.5g}" for x, y in points)


def _png(grey: NDArray[np.uint8]) -> bytes:
    """A grey picture (H, W) as a PNG file."""
    height, width = grey.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each begins with its filter, which is none
    rows[:, 1:] = grey

    def chunk(kind: bytes, content: bytes) -> bytes:
        whole = kind + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)),
            chunk(b"IEND", b""),
        ]
    )


@cache
def _font(size: int, bold: bool) -> Any:
    """DejaVu Sans, which comes with matplotlib, for that is not imported for it."""
    import importlib.util

    from PIL import ImageFont

    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(folder / name), size, layout_engine=ImageFont.Layout.BASIC)


def _writable(text: str, font: Any) -> str:
    """A text with escapes for the signs that a font does not have."""
    nothing = font.getmask("\uffff")

    def known(sign: str) -> bool:
        mask = font.getmask(sign)
        return mask.size != nothing.size or bytes(mask) != bytes(nothing)

    return "".join(
        sign if sign.isascii() or known(sign) else sign.encode("unicode_escape").decode()
        for sign in text
    )
