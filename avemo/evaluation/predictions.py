"""What a model says of each clip of a split, on disk: `predictions.csv`, written and read here alone."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from avemo.storage import write

FILE = "predictions.csv"
_FIXED = ("path", "speaker", "label", "predicted")


class Prediction(NamedTuple):
    """What a model says of one clip.

    Attributes:
        path: of the clip, as the manifest gives it.
        speaker: who speaks, or an empty string.
        label: index of the true class.
        probabilities: of all classes.
    """

    path: str
    speaker: str
    label: int
    probabilities: list[float]

    @property
    def predicted(self) -> int:
        """Index of the most probable class."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


class Predictions(NamedTuple):
    """A file of predictions.

    Attributes:
        classes: the emotions, in the order of the probabilities.
        clips: in the file's order, each path once.
    """

    classes: tuple[str, ...]
    clips: list[Prediction]


def write_predictions(folder: Path, classes: Sequence[str], clips: Sequence[Prediction]) -> Path:
    """Writes one line per clip; its probabilities are read back to the bit."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_FIXED, *classes])
    for clip in clips:
        named = (classes[clip.label], classes[clip.predicted])
        table.writerow([clip.path, clip.speaker, *named, *map(repr, clip.probabilities)])
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / FILE, text.getvalue())
    return folder / FILE


def read_predictions(file: Path) -> Predictions:
    """Reads what `write_predictions` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of ours, has a clip twice, or has no clips.
    """
    with file.open(newline="", encoding="utf-8") as opened:
        header, *rows = list(csv.reader(opened)) or [[]]
    classes = tuple(header[len(_FIXED) :])
    if tuple(header[: len(_FIXED)]) != _FIXED or not classes or not rows:
        raise ValueError(
            f"{file} must have the columns {', '.join(_FIXED)} and one for each class, and clips; "
            f"got the columns {', '.join(header) or 'none'} and {len(rows)} clips: "
            "run `avemo evaluate` again"
        )
    try:
        clips = [
            Prediction(path, speaker, classes.index(label), [float(p) for p in probabilities])
            for path, speaker, label, _, *probabilities in rows
        ]
        for clip in clips:
            if len(clip.probabilities) != len(classes):
                raise ValueError(f"{clip.path} has {len(clip.probabilities)} probabilities")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; run `avemo evaluate` again") from error
    seen: set[str] = set()
    for clip in clips:
        if clip.path in seen:
            raise ValueError(f"{file} has the clip {clip.path} twice")
        seen.add(clip.path)
    return Predictions(classes, clips)
