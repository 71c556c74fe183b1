"""Goals are measured as they are stated, and kept as they were measured."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import goals, resident
from bench.__main__ import main
from bench.goal_records import Goal, Reached, load, save
from bench.report.page import page
from bench.report.results import devices
from bench.timing import LEAST
from fbp_kernels import backends

from .made_up import MACHINE, case, run, spread

TINY = {"B": 3, "C": 5, "D": 7, "O": 4, "K": 3}
GOAL = Goal("fbp_biased", "tiny", TINY, "forward", "eager", 1.5)


def test_every_goal_can_be_asked_for_once_and_names_what_there_is() -> None:
    all_goals = goals.goals()
    names = [goal.name for goal in all_goals]
    assert len(set(names)) == len(names) > 80
    for goal in all_goals:
        subject = goals.SUBJECTS[goal.operator]
        assert goal.sizes.keys() == subject.sizes["one"].keys()
        call = subject.make(subject.sizes["one"], goals.Draw("float32"))
        known = {"native", "eager", "compile", *call.bare, *call.others, *goals._APART}
        assert goal.peer in known


def test_a_case_is_measured_with_all_of_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "block", None)
    asked = [GOAL, replace(GOAL, peer="products", least=1e9), replace(GOAL, peer="mfb")]
    eager, products, nobody = goals.measure(asked, seconds=0.01)
    assert eager.ratio is not None
    assert eager.turns + eager.hindered >= 11
    assert products.ratio is not None
    assert not products.met
    assert (nobody.ratio, nobody.met) == (None, False)
    assert "not installed" in nobody.why


def test_turns_in_which_the_machine_was_slow_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = iter([0.0] * 2 + [0.02 * (i % 3 == 0) for i in range(400)])
    monkeypatch.setattr(goals, "_probe", lambda: lambda: time.sleep(0.002 + next(pauses)))
    samples, hindered = goals._free_turns({"native": lambda: None}, seconds=0.0)
    assert (len(samples["native"]), hindered) == (7, 4)


def test_short_calls_are_timed_in_groups_of_the_same_size() -> None:
    calls = {"native": 0, "slow": 0}

    def call(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    runs = {"native": lambda: call("native", 0), "slow": lambda: call("slow", 1e-4)}
    samples, _ = goals._free_turns(runs, seconds=0.0)
    assert calls["native"] == calls["slow"] > 2 * LEAST
    # A group of ten sleeps ten times as long.
    assert min(samples["slow"]) > 9e-4


def test_one_thread_is_one_and_the_others_come_back() -> None:
    threads = torch.get_num_threads()
    seen = goals._alone(torch.get_num_threads)()
    assert (seen, torch.get_num_threads()) == (1, threads)


def test_what_fails_apart_is_told_and_the_next_goal_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that ends with an error, and a kernel that is wrong."""
    memory = replace(GOAL, operator="am_fbp", sizes={"B": 0}, peer=resident.PEER)
    alone = replace(GOAL, operator="fbp", peer="one thread")
    kernel = backends.kernel("fbp", "native")

    def broken(*_: object) -> object:
        raise RuntimeError("invalid argument")

    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(broken, kernel.backward)
    )
    first, second = goals.measure([memory, alone], seconds=0.01)
    assert (first.ratio, second.ratio) == (None, None)
    assert first.why == "native ended with status 1: KeyError: 'H'"
    assert second.why == "fails: RuntimeError: invalid argument"


def test_a_goal_is_reached_by_the_median() -> None:
    assert Reached(GOAL, spread(1.5)).met
    assert not Reached(GOAL, spread(1.49)).met


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    reached = [Reached(GOAL, spread(1.6), 20, 2), Reached(GOAL, None, why="not built")]
    save(reached, MACHINE, tmp_path / "goals.json")
    assert load(tmp_path / "goals.json") == reached
    (tmp_path / "goals.json").write_text('{"version": 0}')
    with pytest.raises(ValueError, match="not a result of `python -m bench goals`"):
        load(tmp_path / "goals.json")


def test_the_command_line_measures_what_matches_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(goals, "goals", lambda: [GOAL, replace(GOAL, label="else")])
    command = ["goals", "* tiny *", "--threads", str(torch.get_num_threads())]
    assert main([*command, "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("goals-*.json")
    (reached,) = load(written)
    assert reached.goal == GOAL
    assert capsys.readouterr().out.startswith("fbp_biased tiny forward / eager")
    assert main(["goals", "nothing"]) == 2
    assert "no goal matches nothing" in capsys.readouterr().err


def test_the_page_lists_them(tmp_path: Path) -> None:
    results = tmp_path / "bench" / "results"
    run(case()).save(results / "bench-made-up-9000-2026-01-02.json")
    assert "### Goals" not in page(devices(tmp_path))
    reached = [
        Reached(GOAL, spread(1.6), 20, 2),
        Reached(replace(GOAL, least=2.0), spread(1.6), 20),
        Reached(replace(GOAL, peer="copy"), None, why="not built"),
    ]
    save(reached, MACHINE, results / "goals-made-up-9000-2026-01-02.json")
    text = page(devices(tmp_path))
    assert "1 of 3 are reached" in text
    assert "| fbp_biased | tiny | forward | eager | 1.50 | 1.60 (1.44 to 1.76) | reached |" in text
    assert (
        "| fbp_biased | tiny | forward | eager | 2.00 | 1.60 (1.44 to 1.76) | **missed** |" in text
    )
    assert "| fbp_biased | tiny | forward | copy | 1.50 | - | not built |" in text


@pytest.mark.slow
def test_resident_memory_is_that_of_the_call() -> None:
    """The reference holds its two projections; ours has the same result without."""
    sizes = {"B": 4096, "C": 8, "D": 8, "O_G": 512, "K_G": 8, "H": 1, "O_M": 1, "K_M": 1}
    result, projection = 4 * 4096 * 513, 4 * 4096 * 512 * 8
    assert resident.peak(sizes, "forward", "reference") > 2 * projection
    assert result / 2 < resident.peak(sizes, "forward", "native") < projection
