"""Training steps beside another commit: the same steps on all sides, by each side's own packages."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import checkout, steps
from bench.__main__ import main


@pytest.mark.slow
def test_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where other tests run beside this one, all turns are disturbed.
    monkeypatch.setattr(steps, "_TRIES", 1)
    monkeypatch.setitem(steps._STEPS, "small", 1)
    file = tmp_path / "steps.json"
    words = ["steps", "--against", "HEAD", "--turns", "2", "--out", str(file)]
    assert main([*words, "--configurations", "small"]) == 0
    text = file.read_text("utf-8")
    values = json.loads(text)
    assert values["before"] == "HEAD"
    found = values["configurations"]["small"]
    assert set(found["seconds"]) == {"now", "kernels", "before"}
    assert set(found["share"]) == {"now", "kernels"}
    now, before = (found["seconds"][side]["median"] for side in ("now", "before"))
    assert 0.2 < now / before < 5
    assert main([*words, "--configurations", "small", "--resume"]) == 0
    assert file.read_text("utf-8") == text, "what is there is kept"
    assert main([*words, "--threads", "1", "--resume"]) == 2


def test_a_side_that_takes_other_steps_is_named() -> None:
    losses = {"now": [1.0, 2.01], "kernels": [1.0005, 1.999], "before": [1.0, 2.0]}
    assert steps._other_steps(losses) == {
        "now": "its losses are 1.0000, 2.0100, 1.0000, 2.0000 before"
    }


class Side:
    """Stands for a worker, each of whose turns takes a second, with the seconds that it waited in each."""

    def __init__(self, *waits: float) -> None:
        self._waits, self._waited, self.turns = list(waits), 0.0, 0

    def time(self, _: str, steps: int) -> float:
        assert steps == 10
        self._waited += self._waits.pop(0) if self._waits else 0.0
        self.turns += 1
        return 0.1

    def waited(self) -> float:
        return self._waited


def test_a_disturbed_turn_is_taken_again() -> None:
    sides = {"now": Side(0.0, 0.7, 0.01), "before": Side(0.5)}
    samples, disturbed = steps._undisturbed(sides, 10, 3)  # type: ignore[arg-type]
    assert samples == {"now": [0.1] * 3, "before": [0.1] * 3}
    assert disturbed == 0
    assert [side.turns for side in sides.values()] == [5, 5]
    never = {"now": Side(*[9.0] * 99), "before": Side()}
    assert steps._undisturbed(never, 10, 2)[1] == 2  # type: ignore[arg-type]


def test_a_process_knows_how_long_it_waited() -> None:
    """Two threads that share a processor wait for each other."""
    worker = checkout.Worker.__new__(checkout.Worker)
    worker._process = SimpleNamespace(pid=os.getpid())  # type: ignore[assignment]
    done = threading.Event()

    def spin() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        while not done.is_set():
            hashlib.sha256(bytes(1 << 20))  # lets other threads run meanwhile

    before, end = worker.waited(), time.monotonic() + 60
    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while worker.waited() < before + 0.2 and time.monotonic() < end:
            time.sleep(0.1)
        assert worker.waited() >= before + 0.2
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_turns_begin_with_each_side_as_often() -> None:
    asked: list[tuple[str, int]] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def time(self, _: str, calls: int) -> float:
            asked.append((self.name, calls))
            return float(len(asked))

    sides = {name: Named(name) for name in ("now", "before")}
    samples = checkout.in_turn(sides, "", {"now": 3, "before": 4}, 2)  # type: ignore[arg-type]
    assert asked == [("now", 3), ("before", 4), ("before", 4), ("now", 3)]
    assert samples == {"now": [1.0, 4.0], "before": [2.0, 3.0]}
