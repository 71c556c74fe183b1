"""Runs a process that may be ended by what it measures, and goes on after that."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import FrameType
from typing import NoReturn

from .journal import Journal, path_of

LOST = 70
"""Exit status of a process whose device takes no more work."""

STOPPED = 143
"""Exit status where somebody stopped it; nobody is to blame."""

_STOPS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(BaseException):
    """Somebody stops this process; not an error to be caught on the way."""


def watched(
    command: Sequence[str],
    result: Path,
    patience: float | None = None,
    say: Callable[[str], None] = print,
    output: int | None = None,
    stop: Event | None = None,
) -> int:
    """Runs a command to its end, again after every contender that ended it, and says so.

    Args:
        command: measures into a result and keeps its `Journal`; with "--resume" it goes on.
        result: the file of the result.
        patience: seconds that one contender may take for one thing, default any.
        say: is told what happened.
        output: where what it prints goes, default where this process prints.
        stop: set where it is to be stopped.

    Returns:
        The last exit status, never 0 where somebody ended the process.
    """
    died = False
    while True:
        status = _once(command, result, patience, output, stop)
        if status == STOPPED:
            return STOPPED
        how = _how(status)
        if not how:
            return status or int(died)
        died = True
        now = Journal(result).blame(how)
        if now is None:
            say(f"{how}, and no contender was at work: {' '.join(command)}")
            return 1
        say(f"{how}: {now}; it is left out as failed, and the rest goes on")
        command = [*(word for word in command if word != "--resume"), "--resume"]


def _how(status: int) -> str:
    """How a process ended that did not come to its end, or ""."""
    if status == LOST:
        return "lost the device"
    if status == _HUNG:
        return "did not end"
    return f"ended the process ({signal.Signals(-status).name})" if status < 0 else ""


_HUNG = -1000


def _once(
    command: Sequence[str],
    result: Path,
    patience: float | None,
    output: int | None,
    stop: Event | None,
) -> int:
    """The exit status, negative for a signal."""
    if stop is not None and stop.is_set():
        return STOPPED
    child = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)
    try:
        while True:
            try:
                status = child.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    raise StoppedError from None
                if patience is not None and _age(result) > patience:
                    child.kill()
                    child.wait()
                    return _HUNG
    except (StoppedError, KeyboardInterrupt):
        child.kill()
        child.wait()
        Journal(result).rest()
        return STOPPED
    if -status in _STOPS or status == STOPPED:  # it was told before this process was
        Journal(result).rest()
        return STOPPED
    return status


def _age(result: Path) -> float:
    """Seconds since a contender is at work, 0 where none is."""
    if Journal(result).now is None:
        return 0.0
    try:
        return time.time() - path_of(result).stat().st_mtime
    except FileNotFoundError:  # done in between
        return 0.0


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it, a request to end raises `StoppedError`, so that what was measured can be put in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def lost(why: object) -> NoReturn:
    """Ends this process, whose device takes no more work: not even for what would be done at its end."""
    print(f"the device takes no more work: {why}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(LOST)
