"""Takes an upload piece by piece to a file that does not outlive its request."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import Request


class TooLargeError(ValueError):
    """An upload has more bytes than are allowed."""


@asynccontextmanager
async def received(request: Request, most: int) -> AsyncIterator[Path]:
    """The request's body as a file, which is gone afterwards.

    Args:
        request: its body is the file's bytes.
        most: bytes.

    Raises:
        TooLargeError: there are more, which is seen before they are taken where the request says how many.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise TooLargeError
    handle, name = tempfile.mkstemp(prefix="avemo-", suffix=".upload")
    path = Path(name)
    try:
        taken = 0
        with os.fdopen(handle, "wb") as file:
            async for chunk in request.stream():
                taken += len(chunk)
                if taken > most:
                    raise TooLargeError
                file.write(chunk)
        yield path
    finally:
        path.unlink(missing_ok=True)
