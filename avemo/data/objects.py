"""Named files in a folder, an object store or on a web server: written and read as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from avemo.imports import needs
from avemo.storage import WriteError, write

_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(minutes=2)}


class ObjectError(OSError):
    """An object store or web server does not answer, or refuses."""


class Objects(Protocol):
    """Where files are, told by `str`."""

    def read(self, name: str) -> bytes:
        """A file.

        Raises:
            FileNotFoundError: there is none of that name.
            ObjectError: it cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Writes a file; a reader sees the old one or the new one.

        Raises:
            WriteError: it cannot be written.
        """


def open_objects(place: str) -> Objects:
    """The files of a folder, or of a URL.

    Args:
        place: a folder; or s3://BUCKET/PREFIX (also gs:// and az://), or http:// and https:// to read from. The
            environment says the rest, such as AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

    Raises:
        ValueError: it is a URL of a kind that is not known.
    """
    return _Store(place) if "://" in place else _Folder(Path(place))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / name, content)


class _Store:
    """By obstore, whose connections do not outlive a fork: it is opened anew where it is unpickled."""

    def __init__(self, url: str) -> None:
        needs(url, "obstore", extra="streams")
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        self.url = url.rstrip("/")
        try:
            self._store: Any = from_url(
                self.url, client_options={"allow_http": True}, retry_config=_RETRIES
            )
        except BaseError as error:
            raise ValueError(f"{url} cannot be read from: {_first_line(error)}") from error

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return _Store, (self.url,)

    def read(self, name: str) -> bytes:
        import obstore

        with self._told(ObjectError, f"cannot read {self.url}/{name}"):
            return bytes(obstore.get(self._store, name).bytes())

    def write(self, name: str, content: bytes) -> None:
        import obstore

        with self._told(WriteError, f"cannot write {self.url}/{name}"):
            obstore.put(self._store, name, content)

    @contextmanager
    def _told(self, kind: type[OSError], what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise kind(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
