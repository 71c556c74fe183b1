"""Files that outlive a crash: written as a whole or not at all, into folders that have one writer at a time."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "writing.lock"


class WriteError(OSError):
    """A file could not be written, most often because the disk is full; what was there before is as it was."""


class FolderInUseError(OSError):
    """Another process is writing into the folder."""


def write(path: Path, content: bytes | str) -> None:
    """Writes a file: a reader sees the old one or the new one, whatever happens meanwhile, a loss of power included.

    Args:
        path: the file, in a folder that exists.
        content: text is encoded in UTF-8.

    Raises:
        WriteError: it cannot be written.
    """
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name of a file to write, which takes another's place in one step when all is done, as in `write`.

    After an exception, what was there is as it was.

    Args:
        path: the file, in a folder that exists.

    Raises:
        WriteError: it cannot be written.
    """
    # Beside it, for only within a file system is a move one step. Named by process: two may write the same file.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error}; what was there before is as it was"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Makes a folder's new names last; where folders cannot be opened there is nothing to do."""
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def one_writer(folder: Path, activity: str) -> Iterator[None]:
    """Keeps other processes out of a folder; the lock goes with the process, however it ends.

    What a writer that was killed had not finished is removed, and so is a folder that is still empty in the end.

    Args:
        folder: made if needed.
        activity: what to tell those who are kept out, such as "avemo train".

    Raises:
        FolderInUseError: another process is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    lock = _lock(path)
    try:
        os.write(lock, f"{activity}, process {os.getpid()} on {platform.node()}".encode())
        for unfinished in folder.glob("*.part"):
            unfinished.unlink()
        yield
    finally:
        path.unlink()
        os.close(lock)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lock(path: Path) -> int:
    """The handle of a file that this process alone holds locked."""
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Not `flock`: a process that is forked would hold that too, and may live longer.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before removes it at the end: then this is the lock of nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.ftruncate(handle, 0)
                    return handle
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(handle, 1000).decode(errors="replace") or "another process"
            os.close(handle)
            raise FolderInUseError(
                f"{path.parent} is being written by {holder}; wait for it to end, or choose another folder"
            ) from error
        os.close(handle)
