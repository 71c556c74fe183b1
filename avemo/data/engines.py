"""What the work on many items runs on: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal

from avemo.data.worker import Task, WorkerDeath, bound_memory, process_all
from avemo.imports import needs

EngineName = Literal["local", "ray"]

# Until there is room for a first worker; clusters that grow by themselves take minutes.
_START_SECONDS = 600.0

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
    place as soon as the cluster has room for one; those that there are go on meanwhile.

    Raises:
        ValueError: Ray is not installed.
        RuntimeError: also where the cluster has no room for any worker.
    """
    needs("engine ray", "ray", extra="ray")
    ray: Any = import_module("ray")

    died, failed = ray.exceptions.RayActorError, ray.exceptions.RayTaskError
    ours = not ray.is_initialized()
    if ours:
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **here)
    actor_of = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Actor)
    queue, free = deque(items), deque[Any]()
    starting: dict[Any, Any] = {}  # actors, by what is awaited
    busy: dict[Any, tuple[Any, Any, float]] = {}  # likewise: actor, item, since when
    stuck = time.monotonic()  # since when there is no worker at all

    def start(count: int) -> None:
        for _ in range(count):
            actor = actor_of.remote(setup, arguments, memory)
            starting[actor.ready.remote()] = actor

    def started(ref: Any) -> None:
        actor = starting.pop(ref)
        try:
            ray.get(ref)
        except died as error:
            if error.actor_init_failed or not busy:
                raise RuntimeError(f"a worker process could not start: {_told(error)}") from error
            start(1)  # its node was lost
        else:
            free.append(actor)

    def result_of(ref: Any, actor: Any) -> Any:
        try:
            return ray.get(ref)
        except died as error:
            ray.kill(actor)  # one that cannot be reached may live, and take the place of the next
            return WorkerDeath(f"the process ended: {_told(error)}")
        except failed as error:
            raise RuntimeError(f"a worker process failed: {_told(error)}") from error

    try:
        start(min(workers, len(queue)))
        while queue or busy:
            while queue and free:
                actor, item = free.popleft(), queue.popleft()
                busy[actor.work.remote(item)] = actor, item, time.monotonic()
            if busy:
                stuck = time.monotonic()
            elif _over(stuck, _START_SECONDS):
                raise RuntimeError(
                    f"no worker could start within {_START_SECONDS:g} s: the Ray cluster has no free processor"
                )
            ray.wait([*busy, *starting], timeout=1.0)
            # All that are done: one that ended while the caller had another's result is not late.
            awaited = [*busy, *starting]
            done, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
            late = [ref for ref, (_, _, since) in busy.items() if _over(since, timeout)]
            for ref in dict.fromkeys([*done, *late]):
                if ref in starting:
                    started(ref)
                    continue
                actor, item, _ = busy.pop(ref)
                if ref in done:
                    result = result_of(ref, actor)
                else:
                    ray.kill(actor)
                    result = WorkerDeath(f"no result within {timeout:g} s", late=True)
                if not isinstance(result, WorkerDeath):
                    free.append(actor)
                elif queue:
                    start(1)
                yield item, result
    finally:
        for actor in (*free, *starting.values(), *(actor for actor, _, _ in busy.values())):
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
