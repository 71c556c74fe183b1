"""Landmarks of faces, by dlib's shape predictor: what a network of ours is shown to learn them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avemo.imports import needs

_SIDE = 192  # pixels; dlib places a landmark on a whole one, which in a small crop is a step of the eyelid's size


class ShapePredictor:
    """Finds the landmarks in face crops by regression trees (Kazemi and Sullivan 2014).

    Args:
        file: that dlib wrote, such as shape_predictor_68_face_landmarks.dat.
        points: how many landmarks are wanted.
        margin: of the crops around the detector's box, as a share of its side.

    Raises:
        ValueError: dlib is not installed, or the file cannot be read, or has another number of landmarks.
    """

    def __init__(self, file: Path, *, points: int, margin: float) -> None:
        needs("a shape predictor", "dlib", extra="landmarks")
        import dlib

        try:
            self._predict: Any = dlib.shape_predictor(str(file))
        except RuntimeError as error:
            raise ValueError(
                f"predictor must be a shape predictor of dlib, got {str(file)!r}: {error}"
            ) from error
        edge = round(_SIDE * margin / (1 + 2 * margin))
        self._box = dlib.rectangle(edge, edge, _SIDE - edge, _SIDE - edge)
        found = len(self(np.zeros((1, 1, 1), np.uint8))[0])
        if found != points:
            raise ValueError(
                f"predictor must find {points} landmarks, and {str(file)!r} has {found}"
            )

    def __call__(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The landmarks of crops, uint8 (N, S, S): (N, points, 2), x and y in shares of the side from the middle."""
        import cv2

        shapes = [
            self._predict(
                cv2.resize(face, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC), self._box
            ).parts()
            for face in faces
        ]
        pixels = np.array([[(p.x, p.y) for p in shape] for shape in shapes], np.float32)
        return ((pixels + 0.5) / _SIDE - 0.5).astype(np.float32)
