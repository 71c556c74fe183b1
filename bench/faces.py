"""How many pictures of films each face detector follows, and what a picture takes.

Films are read as `avemo prepare` reads them: in grey, 12.5 pictures a second. docs/clips.md has the table of four.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from avemo.data.faces import FaceDetector, load_detector, track_face
from avemo.data.features import FeatureConfig
from avemo.data.media import read_footage

_SETTINGS = FeatureConfig()


class Followed(NamedTuple):
    """What a detector made of a film.

    Attributes:
        share: of the pictures, in which the face was seen.
        milliseconds: that a picture took, those counted too at which the detector did not look.
    """

    share: float
    milliseconds: float


def run_faces(films: Sequence[Path], model: Path | None) -> int:
    """Prints a table of films by detectors.

    Args:
        films: files with a picture.
        model: of YuNet (.onnx), beside the cascade; none by default.

    Raises:
        MediaError: a film cannot be read.
        ValueError: the file is no YuNet model.
    """
    cv2.setNumThreads(1)
    detectors = [load_detector(None), *([load_detector(model)] if model else [])]
    columns = [f"{detector.name} follows | ms a picture" for detector in detectors]
    print(f"| film | pictures | size | {' | '.join(columns)} |")
    print(f"|{'---|' * (3 + 2 * len(columns))}")
    for film in films:
        (footage,) = read_footage(
            film, sample_rate=_SETTINGS.sample_rate, fps=_SETTINGS.fps, needs=("video",)
        )
        count, height, width = footage.frames.shape
        found = [follow(footage.frames, detector) for detector in detectors]
        cells = [f"{share:.0%} | {took:.1f}" for share, took in found]
        print(f"| {film.name} | {count} | {width} x {height} | {' | '.join(cells)} |", flush=True)
    return 0


def follow(pictures: NDArray[np.uint8], detector: FaceDetector) -> Followed:
    """What a detector makes of pictures, uint8 (T, H, W)."""
    start = time.perf_counter()
    _, seen, _ = track_face(pictures, detector, fps=_SETTINGS.fps)
    return Followed(float(seen.mean()), 1000 * (time.perf_counter() - start) / len(pictures))
