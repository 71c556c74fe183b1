"""Finds the face of a clip, follows it and cuts it out.

A detector looks at every few frames only, and at each frame around the places where it lost the
face. Its boxes are linked by overlap into chains, one of which is the face: where there are several, the
one whose mouth moves with the sound, or else the most persistent and largest. Its boxes are interpolated
and smoothed over all frames.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from avemo.data.cascade import Cascade, library_path
from avemo.data.reasons import MediaError

LOOK_SECONDS = 0.32
"""Time between the frames that the detector looks at; a head hardly moves by its own width in
that."""

LINK_OVERLAP = 0.2
"""Intersection over union at which two boxes are of the same face."""

SEEN_SHARE = 0.3
"""A clip whose face is seen in less than this share of its frames counts as having none."""

TURNED_LOOKS = 8
"""Frames in which a face that lies on its side is looked for, where none stands upright."""

SMOOTH_SECONDS = 0.24
"""Standard deviation of the Gaussian that takes the detector's jitter out of the boxes."""

MOUTH_DOWN, MOUTH_SIDE = 0.3, 0.4
"""Where the mouth is in a box: below its middle, and how large; shares of its side."""

SYLLABLE_SECONDS = 0.2

SPEAKS = 0.25
"""Of several faces one speaks if its mouth's motion goes with the loudness by more than this (correlation),
and by this much more than the mouth of the face that is there most and largest."""

_MOUTH_PIXELS = 16

SCALE, NEIGHBORS = 1.15, 4
"""The cascade's steps between sizes of faces, and how many times it has to find one."""

PASSES = ((240, 0.2), (640, 0.08))
"""The detector looks for faces of at least this share of the shorter side, in frames scaled down to
this longer side; the second way, which takes far longer, only if the first finds no face at all."""

_TURNS = {
    1: ("to the right", "transpose=2"),
    2: ("upside down", "vflip,hflip"),
    3: ("to the left", "transpose=1"),
}


class Box(NamedTuple):
    """A square: centre and side, pixels."""

    x: float
    y: float
    side: float


Chain = dict[int, Box]
"""Boxes of one face, by frame."""


class FaceDetector(Protocol):
    """Finds faces in one grey frame."""

    name: str

    def __call__(self, frame: NDArray[np.uint8], smallest: int) -> list[Box]:
        """Boxes of all faces in a frame, framed like the Haar cascade does: brows to chin.

        Args:
            frame: uint8 (H, W).
            smallest: side of the smallest face worth looking for, pixels.
        """
        ...


class HaarDetector:
    """OpenCV's bundled frontal-face cascade (Viola and Jones, 2001)."""

    name = "haar"

    def __init__(self) -> None:
        import cv2

        self._find = _haar_cascade("haarcascade_frontalface_default.xml")
        # The cascade misses faces in the dark: it drops windows of little contrast.
        self._equalize = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(4, 4)).apply

    def __call__(self, frame: NDArray[np.uint8], smallest: int) -> list[Box]:
        even: Any = self._equalize(frame)
        found = self._find(even, smallest)
        return [
            Box(x + w / 2, y + h / 2, (w + h) / 2)
            for x, y, w, h in np.asarray(found, float).reshape(-1, 4).tolist()
        ]


class YuNetDetector:
    """A YuNet model (Wu et al., 2023), as OpenCV's model zoo gives it.

    Args:
        model: the `.onnx` file.

    Raises:
        ValueError: it cannot be read, or is no YuNet model.
    """

    SCORE = 0.7
    SIDE = 1.1  # of the cascade's boxes in YuNet's, which are tall and narrow; measured

    def __init__(self, model: Path) -> None:
        import cv2

        try:
            digest = hashlib.sha256(model.read_bytes()).hexdigest()[:16]
            self._net = cv2.FaceDetectorYN.create(
                str(model), "", (320, 320), score_threshold=self.SCORE
            )
            self._net.detect(np.zeros((320, 320, 3), np.uint8))
        except (OSError, cv2.error) as error:
            raise ValueError(
                f"detector must be a readable YuNet .onnx file, got {str(model)!r}: {error}"
            ) from error
        self.name = f"yunet:{digest}"

    def __call__(self, frame: NDArray[np.uint8], smallest: int) -> list[Box]:
        import cv2

        height, width = frame.shape
        self._net.setInputSize((width, height))
        _, found = self._net.detect(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
        rows = np.zeros((0, 15)) if found is None else found
        return [
            Box(float(x + w / 2), float(y + h / 2), self.SIDE * float(w + h) / 2)
            for x, y, w, h in rows[:, :4]
        ]


def check_detector(path: Path | None, name: str) -> None:
    """Whether a detector is the one that a model was trained with: another one finds other faces.

    Args:
        path: of the YuNet model (.onnx), or None for the Haar cascade.
        name: of the detector in training.

    Raises:
        ValueError: it is another one.
    """
    given = HaarDetector.name if path is None else load_detector(path).name
    if given != name:
        raise ValueError(
            f"face_detector must be {name}, which the model was trained with, got {given}"
        )


def load_detector(model: Path | None) -> FaceDetector:
    """The detector of a YuNet model file, or OpenCV's Haar cascade for None.

    Raises:
        ValueError: the file is no YuNet model, or this OpenCV has no cascade.
    """
    return HaarDetector() if model is None else YuNetDetector(model)


def find_faces(
    frames: NDArray[np.uint8],
    detector: FaceDetector,
    *,
    fps: float,
    size: int,
    margin: float,
    loudness: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Cuts the face out of every frame.

    Args:
        frames: uint8 (T, H, W).
        detector: finds faces in a frame.
        fps: frames per second.
        size: S, side of the crops.
        margin: added to each side of the detector's box, as a share of its side.
        loudness: of the sound during each frame, float (T,), to tell who speaks by; None for silence.

    Returns:
        The crops, uint8 (T, S, S), and whether the face was seen, bool (T,): detected in the frame
        itself, or in both of the looks before and after it. Elsewhere the crop is where the face is
        likely to be.

    Raises:
        MediaError: the face is seen in too few frames; the reason says why.
    """
    track, seen, looks = track_face(frames, detector, fps=fps, loudness=loudness)
    if seen.mean() < SEEN_SHARE:
        raise _why_unseen(frames, detector, seen, looks)
    boxes = smooth_boxes(interpolate_boxes(track, len(frames)), SMOOTH_SECONDS * fps)
    return np.stack(
        [crop(f, Box(*b), size, margin) for f, b in zip(frames, boxes, strict=True)]
    ), seen


def track_face(
    frames: NDArray[np.uint8],
    detector: FaceDetector,
    *,
    fps: float,
    loudness: NDArray[np.float64] | None = None,
) -> tuple[Chain, NDArray[np.bool_], _Looks]:
    """The boxes of the face, the frames it is seen in, bool (T,), and all that the detector said.

    The arguments are those of :func:`find_faces`.
    """
    step = max(1, round(LOOK_SECONDS * fps))
    for side, share in PASSES:
        looks = _Looks(frames, detector, side, share)
        track, seen = _follow(looks, len(frames), step, partial(_speaker, frames, loudness, fps))
        if track:
            break
    return track, seen, looks


def _why_unseen(
    frames: NDArray[np.uint8], detector: FaceDetector, seen: NDArray[np.bool_], looks: _Looks
) -> MediaError:
    """The reason why no face is there for long enough."""
    some = frames[
        np.linspace(0, len(frames) - 1, min(len(frames), TURNED_LOOKS)).round().astype(int)
    ]
    for turns in (1, 3, 2):
        turned = np.rot90(some, turns, axes=(1, 2))
        look = _Looks(turned, detector, *PASSES[-1])
        if len(link_boxes({i: look(i) for i in range(len(some))})) > len(some) / 2:
            side, turn = _TURNS[turns]
            command = f"ffmpeg -i FILE -vf {turn} clip.mp4"
            return MediaError("rotated picture", f"the face lies {side} ({command})")
    faces = np.mean([bool(boxes) for boxes in looks.known.values()])
    if faces >= SEEN_SHARE:
        share = f"one in {faces:.0%} of the frames looked at, the same in {seen.mean():.0%}"
        return MediaError("several faces", share)
    return MediaError("no face", f"seen in {seen.mean():.0%} of the frames")


class _Looks:
    """The detector's boxes per frame, in pixels of the frame, each frame looked at once at most."""

    def __init__(
        self, frames: NDArray[np.uint8], detector: FaceDetector, side: int, share: float
    ) -> None:
        self.frames, self.detector = frames, detector
        self.scale = min(1.0, side / max(frames.shape[1:]))
        self.smallest = round(share * self.scale * min(frames.shape[1:]))
        self.known: dict[int, list[Box]] = {}

    def __call__(self, index: int) -> list[Box]:
        import cv2

        if index not in self.known:
            frame = np.ascontiguousarray(self.frames[index])
            if self.scale < 1:
                frame = cv2.resize(
                    frame, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_AREA
                )
            self.known[index] = [
                Box(*(v / self.scale for v in box)) for box in self.detector(frame, self.smallest)
            ]
        return self.known[index]


def _follow(
    look: _Looks, count: int, step: int, choose: Callable[[list[Chain]], Chain]
) -> tuple[Chain, NDArray[np.bool_]]:
    """Detected boxes of the one face, by frame, and the frames that it is seen in."""
    looks = sorted({*range(0, count, step), count - 1})
    track = choose(chains_of({i: look(i) for i in looks}))
    seen = np.zeros(count, bool)
    if not track:
        return {}, seen
    lost = [(a, b) for a, b in itertools.pairwise(looks) if a not in track or b not in track]
    if lost:
        between = {i for a, b in lost for i in range(a + 1, b)}
        track = choose(chains_of({i: look(i) for i in sorted({*looks, *between})}))
    seen[list(track)] = True
    for a, b in itertools.pairwise(looks):
        if a in track and b in track:
            seen[a:b] = True
    return track, seen


def _speaker(
    frames: NDArray[np.uint8],
    loudness: NDArray[np.float64] | None,
    fps: float,
    chains: list[Chain],
) -> Chain:
    """The chain of the one who speaks, of chains by their weight; the first where that cannot be told.

    Those count that are there for half as many looks as the first.
    """
    rivals = [chain for chain in chains if 2 * len(chain) >= len(chains[0])]
    if loudness is None or len(rivals) < 2:
        return chains[0] if chains else {}
    scores = [_goes_with(mouth_motion(frames, chain, fps), loudness, fps) for chain in rivals]
    best = int(np.argmax(scores))
    speaks = scores[best] > SPEAKS + max(0.0, scores[0])
    return rivals[best] if speaks else rivals[0]


def mouth_motion(frames: NDArray[np.uint8], chain: Chain, fps: float) -> NDArray[np.float64]:
    """How much the mouth of a face changes from frame to frame, float (T - 1,)."""
    boxes = smooth_boxes(interpolate_boxes(chain, len(frames)), SMOOTH_SECONDS * fps)
    mouths = [
        crop(f, Box(x, y + MOUTH_DOWN * side, MOUTH_SIDE * side), _MOUTH_PIXELS, 0.0)
        for f, (x, y, side) in zip(frames, boxes, strict=True)
    ]
    return np.asarray(np.abs(np.diff(np.stack(mouths).astype(float), axis=0)).mean(axis=(1, 2)))


def _goes_with(motion: NDArray[np.float64], loudness: NDArray[np.float64], fps: float) -> float:
    """Correlation of motion between frames with the loudness around them, both over the length of a
    syllable; 0 where either stands still."""
    frames = max(1, round(SYLLABLE_SECONDS * fps))
    around = np.maximum(loudness[1:], loudness[:-1])
    moves, sounds = (moving_mean(x, frames) for x in (motion, around))
    if len(motion) < 2 or min(moves.std(), sounds.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(moves, sounds)[0, 1])


def moving_mean(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Means of the `size` values around each of (N,); the first and the last go on beyond the ends."""
    padded = np.pad(values, (size // 2, size - size // 2 - 1), mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, size).mean(axis=1))


def link_boxes(found: dict[int, list[Box]]) -> Chain:
    """The heaviest of :func:`chains_of`, or none."""
    return next(iter(chains_of(found)), {})


def chains_of(found: dict[int, list[Box]]) -> list[Chain]:
    """Chains boxes of successive frames by overlap, those with the largest sum of sides first.

    A chain goes on over frames without a face: the same place later is the same person.
    """
    chains: list[Chain] = []
    for index in sorted(found):
        free = list(found[index])
        for chain in sorted(chains, key=_weight, reverse=True):
            last = chain[max(chain)]
            best = max(free, key=lambda box: overlap(last, box), default=None)
            if best is not None and overlap(last, best) >= LINK_OVERLAP:
                chain[index] = best
                free.remove(best)
        chains += [{index: box} for box in free]
    return sorted(chains, key=_weight, reverse=True)


def _weight(chain: Chain) -> float:
    return sum(box.side for box in chain.values())


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two squares."""
    width = min(a.x + a.side / 2, b.x + b.side / 2) - max(a.x - a.side / 2, b.x - b.side / 2)
    height = min(a.y + a.side / 2, b.y + b.side / 2) - max(a.y - a.side / 2, b.y - b.side / 2)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a.side**2 + b.side**2 - width * height)


def interpolate_boxes(track: Chain, count: int) -> NDArray[np.float64]:
    """Boxes of all frames, float64 (count, 3), linear between the known ones and constant beyond
    them."""
    at = sorted(track)
    known = np.array([track[i] for i in at], float)
    return np.stack([np.interp(np.arange(count), at, known[:, j]) for j in range(3)], axis=1)


def smooth_boxes(boxes: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooths boxes (T, 3) over time by a Gaussian of `sigma` frames, which ends at four of them.

    The bits are those of `scipy.ndimage.gaussian_filter1d`, in its order of additions. Its import would take more of a
    process that reads one clip than NumPy's, PyAV's and OpenCV's together.
    """
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(reach + 1) ** 2)
    weights /= np.concatenate([weights[:0:-1], weights]).sum()
    padded = np.pad(boxes, ((reach, reach), (0, 0)), mode="edge")
    after = [padded[reach + offset :][: len(boxes)] for offset in range(reach + 1)]
    before = [padded[reach - offset :][: len(boxes)] for offset in range(reach + 1)]
    smooth = weights[0] * boxes
    for offset in range(reach, 0, -1):
        smooth += weights[offset] * (before[offset] + after[offset])
    return np.asarray(smooth)


def crop(frame: NDArray[np.uint8], box: Box, size: int, margin: float) -> NDArray[np.uint8]:
    """Cuts a square out of a frame at sub-pixel places, repeating the border outside of it.

    Args:
        frame: uint8 (H, W).
        box: the square.
        size: side of the result.
        margin: added to each side of the box, as a share of its side.

    Returns:
        uint8 (size, size).
    """
    import cv2

    side = box.side * (1 + 2 * margin)
    shrink = max(1.0, side / size)
    # Sample densely enough first, then average: plain bilinear sampling would alias when it scales
    # down.
    dense = size * int(np.ceil(shrink))
    step = side / dense
    matrix = np.array(
        [[step, 0, box.x - side / 2 + step / 2 - 0.5], [0, step, box.y - side / 2 + step / 2 - 0.5]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch: Any = cv2.warpAffine(
        frame, matrix, (dense, dense), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return patch if dense == size else cv2.resize(patch, (size, size), interpolation=cv2.INTER_AREA)


@cache
def _haar_cascade(name: str) -> Callable[[NDArray[np.uint8], int], Any]:
    """Finds boxes, int (N, 4), of at least a side in a frame. Our own cascade's are those of OpenCV, which
    is asked where ours was not built."""
    import cv2

    path = Path(cv2.__file__).parent / "data" / name
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise ValueError(
            f"OpenCV {cv2.__version__} has no Haar cascades; install 4.10 or a later 4.x "
            "(pip install 'opencv-python-headless>=4.10,<5'), or give a YuNet model as the detector"
        )
    if library_path() is not None:
        ours = Cascade(path)
        return lambda frame, side: ours.detect(
            frame, scale=SCALE, neighbors=NEIGHBORS, smallest=side
        )
    theirs = cv2.CascadeClassifier(str(path))
    return lambda frame, side: theirs.detectMultiScale(
        frame, scaleFactor=SCALE, minNeighbors=NEIGHBORS, minSize=(side, side)
    )
