"""Whoever ends the process of a run is named, noted and left out; nothing else is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.journal import Journal, Now, path_of
from bench.records import Run
from bench.watch import STOPPED, watched

ROOT = Path(__file__).parents[2]
CASE = "trunk_fbp tiny float32 forward"


def _command(result: Path, how: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.dying", str(result), how]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "ended the process (SIGKILL)"),
        ("lost", "lost the device"),
        ("hung", "did not end"),
    ],
)
def test_a_contender_that_ends_the_process_is_named_and_the_rest_is_measured(
    how: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result, told = tmp_path / "run.json", list[str]()
    patience = 8.0 if how == "hung" else None
    status = watched(_command(result, how), result, patience, told.append)
    assert status != 0
    assert told == [
        f"{said}: native in {CASE}, being compared with float64; it is left out as failed, "
        "and the rest goes on"
    ]
    fbp, trunks, both = Run.load(result).cases
    assert trunks.name == CASE
    assert trunks.left_out == {"native": f"wrong: {said} while it was compared with float64"}
    assert set(trunks.contenders) == {"eager"}
    for case in (fbp, both):
        assert set(case.contenders) == {"native", "eager"}
    assert not path_of(result).exists()


def test_one_that_raises_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result, told = tmp_path / "run.json", list[str]()
    assert watched(_command(result, "raises"), result, None, told.append) == 0
    assert told == []
    case = Run.load(result).cases[1]
    assert case.left_out == {"native": "wrong: fails: RuntimeError: invalid argument"}
    assert set(case.contenders) == {"eager"}


@pytest.mark.slow
def test_a_run_that_ended_unwatched_is_told_of_and_its_culprit_left_out(tmp_path: Path) -> None:
    result = tmp_path / "run.json"
    first = subprocess.run(_command(result, "killed"), cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL
    assert Journal(result).now == Now(CASE, "native", "compared with float64")
    again = [*_command(result, "killed"), "--resume"]
    second = subprocess.run(again, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert f"the run before ended without a word: native in {CASE}" in second.stdout
    cases = Run.load(result).cases
    assert [case.operator for case in cases] == ["fbp", "trunk_fbp", "am_fbp"]
    assert "the run ended without a word while it" in cases[1].left_out["native"]


def test_who_is_at_work_when_a_run_is_stopped_is_not_to_blame(tmp_path: Path) -> None:
    """Time that is up is nobody's fault: a later run tries the same case again."""
    result = tmp_path / "run.json"
    code = (
        "import sys; from pathlib import Path; from bench.watch import stoppable, watched\n"
        "with stoppable(): sys.exit(watched(sys.argv[2:], Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(result), *_command(result, "hung")]
    running = subprocess.Popen(command, cwd=ROOT)
    for _ in range(6000):
        time.sleep(0.1)
        if path_of(result).exists() and Journal(result).now == Now(
            CASE, "native", "compared with float64"
        ):
            break
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=600) == STOPPED
    assert not path_of(result).exists()
    assert [case.operator for case in Run.load(result).cases] == ["fbp"]


def test_a_process_that_ends_with_nobody_at_work_is_not_begun_again(tmp_path: Path) -> None:
    told: list[str] = []
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 6)"]
    assert watched(command, tmp_path / "run.json", None, told.append) == 1
    assert told[0].startswith("ended the process (SIGABRT), and no contender was at work: ")
    command = [sys.executable, "-c", "raise SystemExit(5)"]
    assert watched(command, tmp_path / "run.json", None, told.append) == 5
    assert len(told) == 1


def test_where_nobody_in_particular_was_at_work_the_case_is_given_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run.json")
    journal.note("case", "", "timed in turn")
    journal = Journal(tmp_path / "run.json")
    assert journal.blame("lost the device") == Now("case", "", "timed in turn")
    why = "lost the device while it was timed in turn"
    assert Journal(tmp_path / "run.json").failed("case", ["a", "b"]) == {"a": why, "b": why}
    assert Journal(tmp_path / "run.json").failed("other", ["a"]) == {}
    journal.settle("case")
    assert os.listdir(tmp_path) == []
