"""Names the emotion in media files, and shows when, and by what, the model was convinced."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from avemo.data.worker import warm_up
from avemo.evaluation.output import Writer
from avemo.evaluation.sources import find_clips
from avemo.imports import put_off_kernels_without_data, without_collection
from avemo.machine import processors

if TYPE_CHECKING:
    from avemo.data.reasons import MediaError
    from avemo.evaluation.timeline import Moment

_LONGEST_NAME = 200  # bytes of a picture's name; file systems take 255, or 143 where encrypted


@dataclass(frozen=True)
class Prediction:
    """What a model says of one clip.

    Attributes:
        clip: the media file.
        probabilities: by class, the likeliest first.
        picture: the picture of what decided, or None if there is none.
        skipped: windows that had to be left out, by the category of the reason.
        line: the probabilities over time, in the order of the model's classes, one stretch after the other.
        files: subtitles and TextGrid, if windows were asked for.
    """

    clip: Path
    probabilities: dict[str, float]
    picture: Path | None
    skipped: dict[str, int]
    line: list[Moment] = field(default_factory=list)
    files: tuple[Path, ...] = ()


class Predictions(list[Prediction]):
    """The predictions of the clips that could be used.

    Attributes:
        failed: why the others could not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[Path, MediaError] = {}

    @property
    def status(self) -> int:
        """The exit status of the command: whether any clip failed."""
        return 1 if self.failed else 0


def predict(
    checkpoint: Path,
    clips: list[str] = [],  # noqa: B006, it is not changed
    *,
    out: Path = Path("predictions"),
    format: Literal["table", "csv", "jsonl"] = "table",
    pictures: Literal["svg", "png", "png-dark", "none"] = "svg",
    window: float | None = None,
    hop: float | None = None,
    camera: str | None = None,
    seconds: float | None = None,
    workers: int | None = None,
    face_detector: Path | None = None,
) -> Predictions:
    """Prints the class probabilities of media files and saves pictures of what decided.

    A clip longer than those that the model was trained with is cut into equal windows that are not
    longer; the probabilities are the average over the windows, weighted by their duration. So
    memory stays bounded for a recording of any length. With --window and --hop there are windows of that
    length, the picture is a time line of them, and subtitles (SRT, WebVTT) and a TextGrid of Praat are written.
    A clip that cannot be used is reported with the reason, and the others go on; the exit status is then 1.
    The probabilities of a clip are the same bits whatever else is asked for.

    Args:
        checkpoint: a trained model (.safetensors), or a folder of `save_pretrained`.
        clips: media files of any kind, folders, patterns, or - for a list on standard input; without a picture if
            the model only listens, without sound if it only looks.
        out: folder for the pictures and subtitles; made if needed.
        format: of what is printed: a table, CSV or JSON lines.
        pictures: their kind; svg is light or dark as its reader likes it.
        window: seconds of a window.
        hop: seconds from the start of a window to that of the next; by default a window's.
        camera: instead of clips, the number of a camera, or what else OpenCV can open; bars in the terminal, every hop.
        seconds: how long to look at the camera; by default until Ctrl-C.
        workers: processes that read; by default one for each processor.
        face_detector: the YuNet model (.onnx) that the training cache was made with, if it was.

    Returns:
        The predictions of the clips that could be used, and why the others could not.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of the clips.
        ValueError: it is no checkpoint, the face detector is another one than in training, a setting is out of range,
            or no clip could be used.
    """
    if (camera is None) == (not clips):
        raise ValueError("clips must name at least one media file, or camera a camera")
    if seconds is not None and (camera is None or seconds <= 0):
        raise ValueError(f"seconds must be above 0, and needs a camera, got {seconds:g}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    found = find_clips(map(os.fspath, clips))
    put_off_kernels_without_data()
    if camera is None:
        warm_up()  # before this process imports anything that takes time, too

    from avemo.data.faces import check_detector
    from avemo.evaluation.decoding import decoded, windows_of
    from avemo.training.description import wanted

    model = wanted(checkpoint)
    check_detector(face_detector, model.features.detector)
    windows = windows_of(model.seconds, window, hop)
    if camera is not None:
        with without_collection():
            from avemo.evaluation.camera import watch

        watch(checkpoint, model, camera, windows, seconds, face_detector)
        return Predictions()

    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    predictions = Predictions()
    writer = Writer(format, model.classes)
    places = [out / name for name in _names(found)]
    processes = workers or processors()
    with decoded(found, model.features, face_detector, windows, model.needs, processes) as pieces:
        # From here on clips are read; what is slow to import is so meanwhile.
        with without_collection():
            from avemo.evaluation.clips import results
            from avemo.training.checkpoint import load

        each = results(load(checkpoint), found, pieces, windows, places, pictures)
        for clip, result in tqdm(
            each, "predicting", len(found), unit="clip", leave=False, disable=None
        ):
            if isinstance(result, Prediction):
                predictions.append(result)
            else:
                predictions.failed[clip] = result
            with tqdm.external_write_mode(file=sys.stdout):
                writer.write(clip, result)
    writer.close(predictions)
    if not predictions:
        raise ValueError(f"none of the {len(found)} clips could be used")
    return predictions


def _names(clips: list[Path]) -> list[str]:
    """A name for what is written of each clip: its own, without its suffix.

    Where two clips share it, or it is too long for a file, a part of it and a number that follows
    from the clip's path: the same in every call, and no other clip's.
    """
    taken: dict[str, Path] = {}  # in lower case, as some file systems take them, to whose it is
    places = [Path(os.path.abspath(clip)) for clip in clips]
    for place in places:
        if len(os.fsencode(place.stem)) <= _LONGEST_NAME:
            taken.setdefault(place.stem.lower(), place)
    names = []
    for place in places:
        name = place.stem
        if taken.get(name.lower()) != place:
            digest = hashlib.sha256(os.fsencode(place)).hexdigest()
            short = name
            while len(os.fsencode(short)) + 1 + len(digest) > _LONGEST_NAME:
                short = short[:-1]
            candidates = (f"{short}-{digest[:digits]}" for digits in range(8, 65, 8))
            name = next(n for n in candidates if taken.setdefault(n.lower(), place) == place)
        names.append(name)
    return names
