"""A worker that dies costs its own item and no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avemo.data.worker import PRELOAD, WorkerDeath, process_all
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


def test_results_of_an_iterator_come_one_by_one() -> None:
    items = [3, "crash after 2", 0, 2]
    got = list(process_all(items, crashing.streaming, (), workers=1, timeout=30.0))
    assert got == [
        (3, 0),
        (3, 1),
        (3, 2),
        ("crash after 2", 0),
        ("crash after 2", 1),
        ("crash after 2", WorkerDeath("the process ended with SIGSEGV")),
        (2, 0),
        (2, 1),
    ]


def test_time_is_counted_for_each_result() -> None:
    slow = process_all([4], crashing.streaming, (1.0,), workers=1, timeout=3.5)
    assert [result for _, result in slow] == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_memory_is_bounded() -> None:
    bounded = process_all(
        ["eat", 1], crashing.refusing, (), workers=1, timeout=30.0, memory=1 << 28
    )
    got = dict(bounded)
    assert got["eat"].startswith("too much memory: more than 2 GiB")
    assert got[1] == 1
    free = dict(process_all(["eat"], crashing.refusing, (), workers=1, timeout=30.0))
    assert free == {"eat": 1 << 30}


def test_a_script_without_a_guard_can_use_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from avemo.data.worker import process_all\n"
        "from tests.avemo.data import crashing\n"
        "print(list(process_all([1], crashing.setup, (10,), workers=1, timeout=60.0)))\n"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[(1, 11)]\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no fork server")
def test_slow_libraries_are_imported_before_there_are_workers() -> None:
    script = """
from avemo.data.worker import process_all, warm_up
from tests.avemo.data import crashing
warm_up()
print(list(process_all(["name"], crashing.imported, (), workers=1, timeout=60.0)))
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(repr(name) in done.stdout for name in PRELOAD)
