"""Commands of the command line, several at once, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

from avemo.data.worker import without_main
from avemo.machine import processors
from avemo.signals import ENDING


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        words: its name and arguments.
        log: the file that receives what it says, after what is there.
    """

    words: tuple[str, ...]
    log: Path


def run_at_once(jobs: Sequence[Job], count: int, done: Callable[[Job], None]) -> None:
    """Runs commands, some at once; each has its share of the processors, unless OMP_NUM_THREADS says how many.

    A signal that asks to stop is passed on, and what the commands save then is awaited. If this process is killed,
    they end with it.

    Args:
        jobs: the commands.
        count: how many at once, at least 1.
        done: called with each command that ended well, in this process.

    Raises:
        ChildProcessError: a command failed, after the others have come to their end; or a process was lost, after
            the others have been stopped.
    """
    threads = max(1, processors() // count)
    # Spawned, since this process may hold threads that a fork would break.
    pool = ProcessPoolExecutor(
        min(count, len(jobs)) or 1, multiprocessing.get_context("spawn"), _begin, (threads,)
    )
    failed = {}
    with _stoppable(), pool:
        try:
            with without_main():
                under_way = {pool.submit(_run, job): job for job in jobs}
            for future in as_completed(under_way):
                job, error = under_way[future], future.exception()
                if isinstance(error, (BrokenProcessPool, SystemExit)):
                    raise ChildProcessError(
                        f"one of {len(jobs)} commands was killed or stopped, and the others with it; "
                        f"what it said may be in {job.log}"
                    )
                if error is None:
                    done(job)
                else:
                    failed[job] = error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if failed:
        job, error = next(iter(failed.items()))
        raise ChildProcessError(
            f"{len(failed)} of {len(jobs)} commands failed, the first with: {error}; see {job.log}"
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Has signals that ask to stop end the block by an exception, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        print(f"\n{signal.Signals(number).name}: commands save and stop", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


_busy = _stopped = False  # of a process that runs commands


def _begin(threads: int) -> None:
    """Prepares a process for commands."""
    from avemo.imports import in_a_process_of_its_own

    in_a_process_of_its_own()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.setpgrp()  # what the terminal sends is passed on; it would end a process between commands
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends a command that does not hear signals itself; between commands, the process has to stay for the others'."""
    global _stopped
    del frame
    _stopped = True
    if _busy:
        raise SystemExit(128 + number)


def _run(job: Job) -> None:
    """Runs a command in this process."""
    global _busy, _stopped
    from avemo.cli import run

    if _stopped:
        raise SystemExit(128 + signal.SIGTERM)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    _busy = True
    try:
        run(job.words)
    except SystemExit:
        _stopped = True
        raise
    except Exception as error:
        print(f"avemo: error: {error}", file=sys.stderr)
        raise
    finally:
        _busy = False
        sys.stdout.flush()
        sys.stderr.flush()
