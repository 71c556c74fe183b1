"""Grey pictures by a table, where a frame is neither scaled nor turned into another kind of light.

FFmpeg's converter takes a picture in YUV through 15 bits and back to grey, pixel by pixel, for 0.6 ms at 640 x 480.
What comes out depends on a pixel's luma alone, so the converter is asked once for each of the 256 values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LUMA_FIRST = {
    f"yuv{kind}{chroma}p" for kind in ("", "j") for chroma in ("420", "422", "440", "444")
} | {"nv12", "nv21", "yuv410p", "yuv411p"}
"""Formats that have a byte of luma for every pixel in their first plane."""

_HEIGHT = 16

Convert = Callable[[Any], NDArray[np.uint8]]
"""The converter: a frame of PyAV to grey of its size, uint8 (H, W)."""

_tables: dict[tuple[str, int, int], NDArray[np.uint8] | None] = {}


def grey_of(frame: Any, convert: Convert) -> NDArray[np.uint8]:
    """What a converter makes of a frame, uint8 (H, W), by a table where that can be."""
    import cv2

    kind = (frame.format.name, frame.color_range, frame.colorspace)
    if kind not in _tables:
        _tables[kind] = _table(frame, convert)
    table = _tables[kind]
    if table is None:
        return convert(frame)
    grey: Any = cv2.LUT(_luma(frame), table)
    return np.asarray(grey, np.uint8)


def _table(frame: Any, convert: Convert) -> NDArray[np.uint8] | None:
    """Grey by luma, uint8 (256,); None where frames of that kind are not grey by their luma alone, as those
    whose colours are converted on the way."""
    from av import VideoFrame

    if frame.format.name not in _LUMA_FIRST:
        return None
    ramp = VideoFrame(256, _HEIGHT, frame.format.name)
    ramp.color_range, ramp.colorspace = frame.color_range, frame.colorspace
    chance = np.random.default_rng(0)
    for number, plane in enumerate(ramp.planes):
        row = np.arange(plane.line_size).astype(np.uint8).tobytes()
        plane.update(chance.bytes(plane.buffer_size) if number else row * plane.height)
    grey = convert(ramp)
    return np.ascontiguousarray(grey[0]) if (grey == grey[0]).all() else None


def _luma(frame: Any) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width]
