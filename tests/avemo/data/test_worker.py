"""A worker that dies costs its own item and no other."""

import pytest

from avemo.data.worker import WorkerDeath, process_all
from tests.avemo.data import crashing


def results(items: list, *, workers: int, timeout: float = 600.0) -> dict:
    return dict(process_all(items, crashing.setup, (10,), workers=workers, timeout=timeout))


@pytest.mark.parametrize("workers", [1, 2])
def test_crashes_are_told_and_others_go_on(workers: int) -> None:
    got = results([1, "crash", 2, "exit", 3, 4], workers=workers)
    assert {k: got[k] for k in (1, 2, 3, 4)} == {1: 11, 2: 12, 3: 13, 4: 14}
    assert got["crash"] == WorkerDeath("the process ended with SIGSEGV")
    assert got["exit"] == WorkerDeath("the process ended with exit status 3")


def test_hanging_item_is_given_up() -> None:
    got = results(["hang", 1, 2], workers=1, timeout=5.0)
    assert got == {"hang": WorkerDeath("no result within 5 s", late=True), 1: 11, 2: 12}


def test_faults_of_the_run_stop_it() -> None:
    with pytest.raises(RuntimeError, match="OSError: disk full"):
        results([1, "raise"], workers=1)
    with pytest.raises(RuntimeError, match="could not start: the process ended with exit status 1"):
        list(process_all([1], crashing.broken_setup, (), workers=1, timeout=600.0))
    assert results([], workers=2) == {}
