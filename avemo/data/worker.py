"""Runs one function over many items in worker processes that may crash without harm."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from avemo.data.reasons import MediaError

Task = Callable[[Any], Any]

PRELOAD = ["av", "cv2", "numpy", "safetensors.numpy"]
"""Libraries that workers need and that are slow to import."""


@dataclass(frozen=True)
class WorkerDeath:
    """A worker process ended in the middle of an item: a crash in native code, no memory left, or
    no time."""

    how: str
    late: bool = False


def ended(death: WorkerDeath) -> MediaError:
    """The reason for a clip at which a worker ended."""
    return MediaError("too much time" if death.late else "decoder crashed", death.how)


@dataclass(frozen=True)
class _Failed:
    """An exception of the function itself, which is a fault of the whole run."""

    message: str


class _End:
    """Follows the last result of an item that has several."""


class _Worker:
    def __init__(
        self, setup: Callable[..., Task], arguments: tuple[Any, ...], memory: int | None
    ) -> None:
        processes = context()
        self.connection, theirs = processes.Pipe()
        self.process: BaseProcess = processes.Process(
            target=_serve, args=(theirs, setup, arguments, memory), daemon=True
        )
        with without_main():
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


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hides the running script: a new process would run it anew, and nothing of it is needed there."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def context(preload: Sequence[str] = PRELOAD) -> Any:
    """Not a fork of this process: that would copy locks which threads of other libraries hold.

    A fork server imports the slow libraries once for all workers, the replaced ones included: those of the first call.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload])
    return context


def warm_up() -> None:
    """Begins with the imports of workers to come, and does not wait for them."""
    if context().get_start_method() == "forkserver":
        from multiprocessing.forkserver import ensure_running

        ensure_running()


def _serve(
    connection: Connection,
    setup: Callable[..., Task],
    arguments: tuple[Any, ...],
    memory: int | None,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    task = setup(*arguments)
    if memory is not None:
        bound_memory(memory)
    try:
        connection.send((True, None))  # ready
        while True:
            for message in _messages(task, connection.recv()):
                connection.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        os._exit(0)


def _messages(task: Task, item: Any) -> Iterator[tuple[bool, Any]]:
    """The results of an item, each with whether it is the last."""
    try:
        result = task(item)
        if isinstance(result, Iterator):
            for part in result:
                yield False, part
            result = _End()
    except Exception as error:
        result = _Failed(f"{type(error).__name__}: {error}")
    yield True, result


def bound_memory(extra: int) -> None:
    """Lets this process take so many bytes more than it has now: then allocations fail, not the
    machine. Linux alone holds a process to that."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + extra if hard == resource.RLIM_INFINITY else min(now + extra, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def process_all(
    items: Iterable[Any],
    setup: Callable[..., Task],
    arguments: tuple[Any, ...],
    *,
    workers: int,
    timeout: float,
    memory: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Calls a function for every item, in processes of their own.

    Args:
        items: what to work on; picklable.
        setup: called once in each worker with `arguments`; gives the function. Importable by name.
            An exception of the function ends the run: what an item may fail with, it must return.
            An iterator that it returns is worked off there: its parts are the item's results, and
            it waits while no one takes them.
        arguments: for `setup`.
        workers: number of processes.
        timeout: seconds to a result after which an item is given up and its worker replaced.
        memory: bytes that a worker may take on top of what it has after `setup`; none by default.

    Yields:
        Each item with a result, in the order in which they come: one for each item, or as many as
        its iterator has. The last one is a :class:`WorkerDeath` where the worker died or did not
        come back in time; the other items are not touched by that.

    Raises:
        RuntimeError: a worker could not start, or the function raised an exception.
    """
    queue = deque(items)
    pool: list[_Worker] = []
    try:
        while queue or pool:
            while queue and len(pool) < workers:
                worker = _Worker(setup, arguments, memory)
                worker.item = queue.popleft()
                pool.append(worker)
            wait([worker.connection for worker in pool], timeout=1.0)
            for worker in list(pool):
                # As it is now: one that ended while the caller had another's result is not late.
                if worker.connection.poll():
                    last, result = _receive(worker)
                    if not worker.ready:
                        if isinstance(result, WorkerDeath):
                            raise RuntimeError(f"a worker process could not start: {result.how}")
                        worker.ready = True
                        worker.give(worker.item)
                        continue
                    if isinstance(result, _Failed):
                        raise RuntimeError(f"a worker process failed: {result.message}")
                elif time.monotonic() - worker.since > timeout:
                    last, result = True, WorkerDeath(f"no result within {timeout:g} s", late=True)
                else:
                    continue
                item = worker.item
                if not last:
                    yield item, result
                    worker.since = time.monotonic()
                    continue
                if isinstance(result, WorkerDeath) or not queue:
                    worker.stop()
                    pool.remove(worker)
                else:
                    worker.give(queue.popleft())
                if not isinstance(result, _End):
                    yield item, result
    finally:
        for worker in pool:
            worker.stop()


def _receive(worker: _Worker) -> tuple[bool, Any]:
    try:
        message: tuple[bool, Any] = worker.connection.recv()
        return message
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return True, WorkerDeath(f"the process ended with {how}")
