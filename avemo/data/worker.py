"""Runs one function over many items in worker processes that may crash without harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

Task = Callable[[Any], Any]

PRELOAD = ["av", "cv2", "librosa.core.spectrum", "librosa.filters", "safetensors.numpy"]
"""Libraries that workers need and that are slow to import."""


@dataclass(frozen=True)
class WorkerDeath:
    """A worker process ended in the middle of an item: a crash in native code, or no memory left."""

    how: str


@dataclass(frozen=True)
class _Failed:
    """An exception of the function itself, which is a fault of the whole run."""

    message: str


class _Worker:
    def __init__(self, setup: Callable[..., Task], arguments: tuple[Any, ...]) -> None:
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, setup, arguments), daemon=True
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.item: Any = None
        self.since = time.monotonic()

    def give(self, item: Any) -> None:
        self.item, self.since = item, time.monotonic()
        # A worker that died meanwhile shows when its answer is awaited.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(item)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _context() -> Any:
    """Not a fork of this process: that would copy locks which threads of other libraries hold.

    A fork server imports the slow libraries once for all workers, the replaced ones included.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _serve(connection: Connection, setup: Callable[..., Task], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    task = setup(*arguments)
    try:
        connection.send(None)  # ready
        while True:
            item = connection.recv()
            try:
                result = task(item)
            except Exception as error:
                result = _Failed(f"{type(error).__name__}: {error}")
            connection.send(result)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        os._exit(0)


def process_all(
    items: Iterable[Any],
    setup: Callable[..., Task],
    arguments: tuple[Any, ...],
    *,
    workers: int,
    timeout: float,
) -> Iterator[tuple[Any, Any]]:
    """Calls a function for every item, in processes of their own.

    Args:
        items: what to work on; picklable.
        setup: called once in each worker with `arguments`; gives the function. Importable by name.
            An exception of the function ends the run: what an item may fail with, it must return.
        arguments: for `setup`.
        workers: number of processes.
        timeout: seconds after which an item is given up and its worker replaced.

    Yields:
        Each item with its result, in the order of completion. The result is a :class:`WorkerDeath`
        where the worker died or did not come back in time; the other items are not touched by that.

    Raises:
        RuntimeError: a worker could not start, or the function raised an exception.
    """
    queue = deque(items)
    pool: list[_Worker] = []
    try:
        while queue or pool:
            while queue and len(pool) < workers:
                worker = _Worker(setup, arguments)
                worker.item = queue.popleft()
                pool.append(worker)
            ready = wait([worker.connection for worker in pool], timeout=1.0)
            for worker in list(pool):
                if worker.connection in ready:
                    result = _receive(worker)
                    if not worker.ready:
                        if isinstance(result, WorkerDeath):
                            raise RuntimeError(f"a worker process could not start: {result.how}")
                        worker.ready = True
                        worker.give(worker.item)
                        continue
                    if isinstance(result, _Failed):
                        raise RuntimeError(f"a worker process failed: {result.message}")
                elif time.monotonic() - worker.since > timeout:
                    result = WorkerDeath(f"no result within {timeout:g} s")
                else:
                    continue
                item = worker.item
                if isinstance(result, WorkerDeath) or not queue:
                    worker.stop()
                    pool.remove(worker)
                else:
                    worker.give(queue.popleft())
                yield item, result
    finally:
        for worker in pool:
            worker.stop()


def _receive(worker: _Worker) -> Any:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return WorkerDeath(f"the process ended with {how}")
