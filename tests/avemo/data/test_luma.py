"""Grey by tables against FFmpeg's converter, to the byte."""

import itertools

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from avemo.data import luma

SIZES = [(640, 480), (321, 97), (18, 17)]


@pytest.mark.parametrize("name", sorted(luma._LUMA_FIRST))
def test_grey_is_that_of_the_converter(name: str) -> None:
    reformatter = VideoReformatter()

    def convert(frame: av.VideoFrame) -> np.ndarray:
        return reformatter.reformat(frame, format="gray").to_ndarray()

    rng = np.random.default_rng(0)
    luma._tables.clear()
    for (width, height), color_range, colorspace in itertools.product(SIZES, (0, 1, 2), (1, 2, 5)):
        frame = av.VideoFrame(width, height, name)
        for plane in frame.planes:
            plane.update(rng.bytes(plane.buffer_size))
        frame.color_range, frame.colorspace = color_range, colorspace
        np.testing.assert_array_equal(luma.grey_of(frame, convert), convert(frame))
    if name in ("yuv420p", "yuvj420p", "yuv422p", "yuv444p"):
        # What says nothing of its colours, as most files do, goes by a table.
        assert luma._tables[name, 0, 2] is not None


def test_grey_of_other_formats_is_left_to_the_converter() -> None:
    for name in ("rgb24", "yuv420p10le", "pal8"):
        assert luma._table(av.VideoFrame(64, 64, name), lambda frame: pytest.fail("asked")) is None
