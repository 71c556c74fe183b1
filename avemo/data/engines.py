"""What the work on many items runs on: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal

from avemo.data.worker import Task, WorkerDeath, bound_memory, process_all

EngineName = Literal["local", "ray"]


Engine = Callable[..., Iterator[tuple[Any, Any]]]
"""As :func:`avemo.data.worker.process_all`, for functions that have one result for each item."""


def ray_all(
    items: Iterable[Any],
    setup: Callable[..., Task],
    arguments: tuple[Any, ...],
    *,
    workers: int,
    timeout: float,
    memory: int | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Calls a function for every item, in actors of the cluster that RAY_ADDRESS names, or of one on this machine.

    Arguments, what is yielded and raised are as for :func:`avemo.data.worker.process_all`; paths in them must be the
    same on all nodes. The item that a lost worker or node had is a :class:`WorkerDeath`, and another actor takes its
    place.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ValueError("engine ray needs the package ray: pip install 'avemo[ray]'") from error

    died, failed = ray.exceptions.RayActorError, ray.exceptions.RayTaskError
    ours = not ray.is_initialized()
    if ours:
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **here)
    actor_of = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
    queue, free = deque(items), deque[Any]()
    busy: dict[Any, tuple[Any, Any, float]] = {}  # by what is awaited: actor, item, since when

    def start(count: int) -> None:
        fresh = [actor_of.remote(setup, arguments, memory) for _ in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in fresh])
        except died as error:
            raise RuntimeError(f"a worker process could not start: {_told(error)}") from error
        free.extend(fresh)

    try:
        start(min(workers, len(queue)))
        while queue or busy:
            while queue and free:
                actor, item = free.popleft(), queue.popleft()
                busy[actor.work.remote(item)] = actor, item, time.monotonic()
            ray.wait(list(busy), timeout=1.0)
            # All that are done: one that ended while the caller had another's result is not late.
            done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
            late = [ref for ref, (_, _, since) in busy.items() if _over(since, timeout)]
            for ref in dict.fromkeys([*done, *late]):
                actor, item, _ = busy.pop(ref)
                if ref in done:
                    try:
                        result = ray.get(ref)
                    except died as error:
                        result = WorkerDeath(f"the process ended: {_told(error)}")
                    except failed as error:
                        raise RuntimeError(f"a worker process failed: {_told(error)}") from error
                else:
                    ray.kill(actor)
                    result = WorkerDeath(f"no result within {timeout:g} s", late=True)
                if not isinstance(result, WorkerDeath):
                    free.append(actor)
                elif queue:
                    start(1)
                yield item, result
    finally:
        for actor in (*free, *(actor for actor, _, _ in busy.values())):
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _over(since: float, timeout: float) -> bool:
    return time.monotonic() - since > timeout


def _told(error: Exception) -> str:
    """Ray's words in one line, without where in our code it was."""
    return str(error).strip().splitlines()[-1].strip()


class _Actor:
    """A worker process of Ray."""

    def __init__(
        self, setup: Callable[..., Task], arguments: tuple[Any, ...], memory: int | None
    ) -> None:
        self._task = setup(*arguments)
        if memory is not None:
            bound_memory(memory)

    def ready(self) -> None:
        """Answers when the worker can begin."""

    def work(self, item: Any) -> Any:
        return self._task(item)


ENGINES: dict[EngineName, Engine] = {"local": process_all, "ray": ray_all}
