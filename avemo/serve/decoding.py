"""Reads clips in processes that are kept, that are bounded, and of which one may die."""

from __future__ import annotations

import asyncio
from concurrent.futures import TimeoutError as LateError
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from avemo.data.limits import MOST_MEMORY
from avemo.data.reasons import MediaError
from avemo.data.worker import bound_memory, context
from avemo.evaluation.decoding import Finished, Piece, Windows, decoder
from avemo.serve.limits import Limits
from avemo.training.description import Wanted

_decode: Any = None  # in a process that decodes


class Decoder:
    """A pool of processes.

    Args:
        wanted: what the model takes.
        detector: the YuNet model, or None for the Haar cascade.
        windows: how clips are cut.
        limits: of a clip.
    """

    def __init__(
        self, wanted: Wanted, detector: Path | None, windows: Windows, limits: Limits
    ) -> None:
        self._limits = limits
        self._pool = ProcessPool(
            max_workers=limits.workers,
            context=context(),
            initializer=_begin,
            initargs=[wanted.features, detector, windows, wanted.needs],
        )

    async def __call__(self, path: Path) -> list[Piece | Finished]:
        """The windows of a clip, and why it cannot be used, if it cannot."""
        limits = self._limits
        future = self._pool.schedule(_read, args=[path, limits.seconds], timeout=limits.timeout)
        try:
            pieces: list[Piece | Finished] = await asyncio.wrap_future(future)
            return pieces
        except LateError:
            return [Finished(MediaError("too much time", f"no result within {limits.timeout:g} s"))]
        except ProcessExpired as death:
            return [Finished(MediaError("decoder crashed", f"exit status {death.exitcode}"))]

    def close(self) -> None:
        """Ends the processes, also in the middle of a clip."""
        self._pool.stop()
        self._pool.join()


def _begin(*arguments: Any) -> None:
    global _decode
    _decode = decoder(*arguments)
    bound_memory(MOST_MEMORY)


def _read(path: Path, longest: float) -> list[Piece | Finished]:
    pieces = []
    for piece in _decode((0, path)):
        if isinstance(piece, Piece) and piece.start + piece.duration > longest:
            return [Finished(MediaError("too long", f"more than {longest:g} s"))]
        pieces.append(piece)
    return pieces
