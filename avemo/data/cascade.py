"""OpenCV's cascade of Haar-like features, window for window the same, several times as fast.

OpenCV's own takes one window after another, at the instructions of the year 2004. The library beside this file takes
many at a time. Where it was not built (no C++ compiler), OpenCV's is used: the boxes are the same.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

_SIDE = 24
_EPSILON = np.float32(1e-5)  # by which OpenCV lowers the stages' thresholds
_GROUP_EPSILON = 0.2  # by which windows in a group may differ, as in OpenCV
_LIBRARY = "_cascade.so"
_LEVEL = np.dtype([("picture", "u8"), ("width", "i4"), ("height", "i4")])
_WINDOW = np.dtype([("level", "i4"), ("x", "i4"), ("y", "i4")])
_MOST_WINDOWS = 1 << 16
_PLACED_NUMBERS = 18  # of 4 bytes: 3 x 4 corners, 3 weights, threshold, left, right

_STUMP = np.dtype(
    [
        (
            "parts",
            [("x", "i4"), ("y", "i4"), ("width", "i4"), ("height", "i4"), ("weight", "f4")],
            3,
        ),
        ("threshold", "f4"),
        ("left", "f4"),
        ("right", "f4"),
    ]
)


class Cascade:
    """Finds what a cascade of stumps over upright features of 24 x 24 pixels was trained for.

    Args:
        path: an XML file of OpenCV.

    Raises:
        ValueError: the file holds another kind of cascade.
    """

    def __init__(self, path: Path) -> None:
        self._stumps, self._counts, self._thresholds = _parse(path)
        self._library = _load()
        self._placed: dict[tuple[int, int], NDArray[Any]] = {}

    def detect(
        self, picture: NDArray[np.uint8], *, scale: float, neighbors: int, smallest: int
    ) -> NDArray[np.int32]:
        """Boxes as `cv2.CascadeClassifier.detectMultiScale` gives them, on one thread.

        Args:
            picture: uint8 (H, W).
            scale: from one size of windows to the next.
            neighbors: windows that a box takes beside the first.
            smallest: side of the smallest windows, pixels.

        Returns:
            int32 (N, 4): left, top, width, height.
        """
        import cv2

        height, width = picture.shape
        factors: list[np.float32] = []
        factor = 1.0
        while (side := round(_SIDE * factor)) <= min(height, width):
            if side >= smallest:
                factors.append(np.float32(factor))
            factor *= scale
        levels = [_shrunk(picture, factor) for factor in factors]
        steps = [1 if factor >= 2 else 2 for factor in factors]
        windows = [
            self._windows(
                [(x, f) for x, f, s in zip(levels, factors, steps, strict=True) if s == step], step
            )
            for step in (2, 1)
            if step in steps
        ]
        boxes, _ = cv2.groupRectangles(list(itertools.chain(*windows)), neighbors, _GROUP_EPSILON)
        grouped = np.asarray(boxes, np.int32).reshape(-1, 4)
        ends = np.minimum(grouped[:, :2] + grouped[:, 2:], (width, height))
        starts = np.maximum(grouped[:, :2], 0)
        return np.concatenate([starts, ends - starts], axis=1)

    def _windows(self, levels: list[tuple[NDArray[np.uint8], np.float32]], step: int) -> list[Any]:
        """The windows that pass of some sizes of a picture, `step` pixels from one to the next."""
        pictures = np.array([(x.ctypes.data, x.shape[1], x.shape[0]) for x, _ in levels], _LEVEL)
        stride = 64 * (int(pictures["width"].max()) // 64 + 1)
        found = np.empty(_MOST_WINDOWS, _WINDOW)
        count = self._library.avemo_cascade_scan(
            pictures.ctypes.data,
            len(pictures),
            stride,
            step,
            self._stumps_at(stride, step).ctypes.data,
            self._counts.ctypes.data,
            self._thresholds.ctypes.data,
            len(self._counts),
            found.ctypes.data,
            len(found),
        )
        found = found[:count]
        factors = np.array([factor for _, factor in levels])[found["level"]]
        boxes = [found["x"] * factors, found["y"] * factors, *[_SIDE * factors] * 2]
        return np.rint(np.stack(boxes, axis=1)).astype(np.int32).tolist()

    def _stumps_at(self, stride: int, step: int) -> NDArray[Any]:
        """The stumps with their corners' places in pictures of one layout."""
        if (stride, step) not in self._placed:
            placed = np.empty((len(self._stumps), _PLACED_NUMBERS), np.int32)
            self._library.avemo_cascade_place(
                self._stumps.ctypes.data, len(placed), stride, step, placed.ctypes.data
            )
            self._placed[stride, step] = placed
        return self._placed[stride, step]


def _shrunk(picture: NDArray[np.uint8], factor: np.float32) -> NDArray[np.uint8]:
    import cv2

    height, width = (int(np.rint(np.float32(side) / factor)) for side in picture.shape)
    level: Any = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return np.asarray(level, np.uint8)


def _parse(path: Path) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.float32]]:
    """The stumps of all stages, their number in each, and the stages' thresholds."""
    cascade = ElementTree.parse(path).getroot().find("cascade")

    def text(node: Any, name: str) -> str:
        found = node.find(name) if node is not None else None
        if found is None or found.text is None:
            raise ValueError(f"{path} is no cascade of OpenCV: it has no {name}")
        return str(found.text).strip()

    kind = [text(cascade, name) for name in ("featureType", "width", "height")]
    if cascade is None or kind != ["HAAR", str(_SIDE), str(_SIDE)]:
        raise ValueError(f"{path} must be a cascade of HAAR features of 24 x 24, got {kind}")
    features = cascade.findall("features/_")
    if any(
        text(feature, "tilted") != "0" for feature in features if feature.find("tilted") is not None
    ):
        raise ValueError(f"{path} has tilted features")
    stumps: list[tuple[Any, ...]] = []
    counts, thresholds = [], []
    for stage in cascade.findall("stages/_"):
        weak = stage.findall("weakClassifiers/_")
        counts.append(len(weak))
        thresholds.append(np.float32(text(stage, "stageThreshold")) - _EPSILON)
        for stump in weak:
            nodes, leaves = text(stump, "internalNodes").split(), text(stump, "leafValues").split()
            if len(nodes) != 4 or nodes[:2] != ["0", "-1"]:
                raise ValueError(f"{path} has trees that are more than stumps")
            rectangles = features[int(nodes[2])].findall("rects/_")
            parts = [tuple(map(float, (r.text or "").rstrip(". ").split())) for r in rectangles]
            parts += [(0, 0, 0, 0, 0.0)] * (3 - len(parts))
            stumps.append((parts, float(nodes[3]), float(leaves[0]), float(leaves[1])))
    return np.array(stumps, _STUMP), np.array(counts, np.int32), np.array(thresholds, np.float32)


@cache
def _load() -> Any:
    library = ctypes.CDLL(str(library_path()))
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.avemo_cascade_place.argtypes = [pointer, *[number] * 3, pointer]
    library.avemo_cascade_place.restype = None
    library.avemo_cascade_scan.argtypes = [
        pointer, *[number] * 3, *[pointer] * 3, number, pointer, number
    ]  # fmt: skip
    library.avemo_cascade_scan.restype = number
    return library


def library_path() -> Path | None:
    """The library, or None where it was not built."""
    # An editable install keeps compiled files in a folder of its own, also on the package's path.
    folders = [Path(folder) for folder in sys.modules["avemo.data"].__path__]
    return next((f / _LIBRARY for f in folders if (f / _LIBRARY).is_file()), None)
