"""A shape predictor of dlib's that knows pictures of a bright square, and takes its corners and sides for landmarks."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

SIDE = 48


def square(x: int, y: int, half: int) -> NDArray[np.uint8]:
    """A picture, uint8 (SIDE, SIDE), with a bright square around a point."""
    picture = np.full((SIDE, SIDE), 60, np.uint8)
    picture[y - half : y + half + 1, x - half : x + half + 1] = 200
    return picture


def around(x: float, y: float, half: float, points: int) -> NDArray[np.float64]:
    """So many points along the square's edge, (points, 2)."""
    turns = np.linspace(0, 2 * np.pi, points, endpoint=False)
    ring = np.stack([np.cos(turns), np.sin(turns)], 1)
    return np.array([x, y]) + half * ring / np.abs(ring).max(1, keepdims=True)


def write_predictor(path: Path, points: int = 68) -> Path:
    """Trains one, on some dozens of squares, and writes it."""
    dlib = pytest.importorskip("dlib")
    rng = np.random.default_rng(0)
    pictures, known = [], []
    for _ in range(40):
        x, y, half = (*rng.integers(20, 29, 2).tolist(), int(rng.integers(8, 13)))
        pictures.append(square(x, y, half))
        parts = [dlib.point(round(a), round(b)) for a, b in around(x, y, half, points)]
        box = dlib.rectangle(2, 2, SIDE - 2, SIDE - 2)
        known.append([dlib.full_object_detection(box, parts)])
    options = dlib.shape_predictor_training_options()
    options.tree_depth, options.cascade_depth, options.num_trees_per_cascade_level = 3, 6, 40
    options.oversampling_amount, options.feature_pool_size, options.nu = 5, 60, 0.25
    options.num_threads = 1
    dlib.train_shape_predictor(pictures, known, options).save(str(path))
    return path
