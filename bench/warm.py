"""Compiles peers before they are measured, several at a time, so that who measures finds their kernels compiled.

A peer's compiler chooses kernels by timing them. Here, where many run at once, such times mean nothing; what it chose
is left in a folder of each process alone, and what others find are the compiled kernels, in TRITON_CACHE_DIR. Whoever
measures chooses again, alone on the device, among kernels that are there.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from .names import asked_as, is_ours, plain
from .plan import OperatorPlan
from .suite import Choice, operator_suite

Job = tuple[OperatorPlan, str]
_SLOWEST = "max-autotune"


def jobs(choice: Choice, operators: Sequence[str]) -> list[Job]:
    """Every peer of every case, those that take longest first; a graph replays what its plain form compiles."""
    found = [
        (plan, name)
        for operator in operators
        for plan in operator_suite(operator)(choice)
        if isinstance(plan, OperatorPlan)
        for name in choice.names(plan)
        if not is_ours(name) and name == plain(name)
    ]
    return sorted(found, key=lambda job: asked_as(job[1]) != _SLOWEST)


def run_warm(choice: Choice, operators: Sequence[str], processes: int) -> int:
    """Compiles, and prints what took how long.

    Returns:
        0, or 1 where something failed.
    """
    if choice.device == "cuda" and not os.environ.get("TRITON_CACHE_DIR"):
        print("TRITON_CACHE_DIR is not set: nobody would find what is compiled", file=sys.stderr)
        return 2
    failed = 0
    for line, right in _outcomes(jobs(choice, operators), processes):
        print(line, flush=True)
        failed += not right
    print(f"{failed} failed")
    return 1 if failed else 0


def _outcomes(due: list[Job], processes: int) -> Iterator[tuple[str, bool]]:
    context = multiprocessing.get_context("spawn")
    # A process for each: compilers keep much, and give up on a function after some sizes.
    with ProcessPoolExecutor(processes, context, _alone, max_tasks_per_child=1) as pool:
        futures = {pool.submit(_compile, *job): job for job in due}
        for future in as_completed(futures):
            plan, name = futures[future]
            try:
                yield f"{plan.name}: {name}: {future.result():.0f} s", True
            except BrokenProcessPool as error:
                yield f"{plan.name}: {name}: not compiled, a process ended: {error}", False
            except Exception as error:
                yield f"{plan.name}: {name}: {type(error).__name__}: {error}".splitlines()[0], False


def _alone() -> None:
    """What this process's compilers choose is nobody else's."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="warm-")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")


def _compile(plan: OperatorPlan, name: str) -> float:
    """Runs a contender once; gives the seconds that it took."""
    start = time.monotonic()
    plan.call_once(name)
    return time.monotonic() - start
