"""Answers requests: one place for what is let in, decoded, asked and told."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from avemo.data.faces import check_detector
from avemo.data.reasons import REASONS, MediaError
from avemo.evaluation.clips import results
from avemo.evaluation.decoding import Finished, Piece, windows_of
from avemo.evaluation.predict import Prediction
from avemo.models import needed_streams
from avemo.serve.answers import Answer, Refusal
from avemo.serve.decoding import Decoder
from avemo.serve.limits import Limits
from avemo.training.checkpoint import load
from avemo.training.description import wanted


class BusyError(RuntimeError):
    """As many clips as are allowed are being worked on or wait."""


class Service:
    """A model and the processes that read clips for it.

    Args:
        checkpoint: the model.
        detector: the YuNet model (.onnx) that it was trained with, or None for the Haar cascade.
        limits: of requests.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is none, or the detector is another one than in training.
    """

    def __init__(self, checkpoint: Path, detector: Path | None, limits: Limits) -> None:
        model = wanted(checkpoint)
        check_detector(detector, model.features.detector)
        self._windows = windows_of(model.seconds, None, None)
        self._trained = load(checkpoint)
        self.classes, self.streams = model.classes, needed_streams(self._trained.model)
        self.limits = limits
        self._decoder = Decoder(model, detector, self._windows, limits)
        self._model = ThreadPoolExecutor(1, "model")  # it uses all processors itself
        self._places = limits.workers + limits.waiting
        self.under_way = 0

    async def predict(self, path: Path, name: str) -> Answer | Refusal:
        """What the model says of a clip, or why it cannot be used.

        Args:
            path: the file.
            name: what the answer calls it.

        Raises:
            BusyError: too many clips are under way.
        """
        with self.place():
            pieces = await self._decoder(path)
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self._model, self._told, name, pieces)
            except MediaError as error:
                return _refused(name, error, path)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Takes one of the places for clips for as long."""
        if self.under_way >= self._places:
            raise BusyError
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def close(self) -> None:
        """Ends the processes; requests under way are not answered."""
        self._decoder.close()
        self._model.shutdown(wait=False, cancel_futures=True)

    def _told(self, name: str, pieces: list[Piece | Finished]) -> Answer:
        with tempfile.TemporaryDirectory(prefix="avemo-") as folder:
            numbered = ((0, piece) for piece in pieces)
            places = [Path(folder, "picture")]
            each = results(self._trained, [Path(name)], numbered, self._windows, places, "svg")
            _, result = next(each)
            if not isinstance(result, Prediction):
                raise result
            picture = result.picture.read_text("utf-8") if result.picture else None
        return Answer(
            name=name,
            emotion=next(iter(result.probabilities)),
            probabilities=result.probabilities,
            skipped=result.skipped,
            picture=picture,
        )


def _refused(name: str, error: MediaError, path: Path) -> Refusal:
    """Without the place of the file, which is nobody's business."""
    details = error.details.replace(str(path), name).replace(str(path.parent), "")
    return Refusal(
        name=name, reason=error.category, details=details, advice=REASONS[error.category]
    )
