"""Goals are measured as they are stated, and kept as they were measured."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import goals, resident
from bench.__main__ import main
from bench.goal_records import Goal, Goals, Reached
from bench.report import results as reported
from bench.report.page import page
from bench.shapes import USUAL
from bench.timing import LEAST
from fbp_kernels import backends, ops

from .made_up import MACHINE, case, run, spread

TINY = {"B": 3, "C": 5, "D": 7, "O": 4, "K": 3}
GOAL = Goal("fbp_biased", "tiny", TINY, "forward", "eager", 1.5)


@pytest.mark.parametrize("instruction_set", ["avx512_bf16", "avx512", "avx2", "portable"])
def test_every_goal_can_be_asked_for_once_and_names_what_there_is(instruction_set: str) -> None:
    all_goals = goals.goals(instruction_set)
    names = [goal.name for goal in all_goals]
    assert len(set(names)) == len(names) > 80
    for goal in all_goals:
        subject = goals.SUBJECTS[goal.operator]
        assert goal.sizes.keys() == subject.sizes["one"].keys()
        call = subject.make(subject.sizes["one"], goals.Draw("float32"))
        known = {"native", "eager", "compile", *call.bare, *call.others, *goals._APART}
        assert goal.peer in known


def test_the_narrow_sets_are_held_to_other_shares() -> None:
    wide, narrow = (
        {g.name: g.least for g in goals.goals(name)} for name in ("avx512_bf16", "avx2")
    )
    assert wide.keys() == narrow.keys()
    asked = {
        "fbp B=64, O K=512 forward / products": 1 / 0.55,
        "fbp B=256, O K=5000 forward / products": 1 / 0.78,
        "fbp vqa forward / products": 1 / 0.92,
        "fbp B=4096, O K=5000 forward / products": 1 / 0.92,
        "trunk_fbp clip forward / products": 1 / 0.50,
        "trunk_fbp batch forward / products": 1 / 0.90,
        "am_fbp clip forward / eager": 1.8,
        "am_fbp batch forward / eager": 1.3,
        "fbp vqa forward / eager": 1.2,
        "am_fbp clip training / eager": 1.4,
        "am_fbp batch training / eager": 1.3,
        "fbp vqa training / eager": 1.15,
    }
    assert {name: narrow[name] for name in asked} == asked
    assert wide["fbp vqa training / eager"] == 1.2


def test_no_operator_is_to_be_slower_than_eager_where_a_backend_is_chosen() -> None:
    """At every usual size, in both dtypes and modes: the choice is made from these."""
    compared = {
        (g.operator, g.label, g.dtype, g.mode): g.least
        for g in goals.goals("avx2")
        if g.peer == "eager"
    }
    for operator in ops.__all__:
        for label in goals.SUBJECTS[operator].sizes.keys() & set(USUAL) - {"one"}:
            for dtype in ("float32", "bfloat16"):
                for mode in ("forward", "training"):
                    assert compared[operator, label, dtype, mode] >= 1


def test_a_case_is_measured_with_all_of_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "block", None)
    asked = [GOAL, replace(GOAL, peer="products", least=1e9), replace(GOAL, peer="mfb")]
    eager, products, nobody = goals.measure(asked, seconds=0.01)
    assert eager.ratio is not None
    assert eager.seconds.keys() == {"native", "eager"}
    assert eager.turns + eager.hindered >= 11
    assert products.ratio is not None
    assert not products.met
    assert (nobody.ratio, nobody.met) == (None, False)
    assert "not installed" in nobody.why


def test_turns_in_which_the_machine_was_slow_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [0.002 + 0.02 * (turn % 3 == 0) for turn in range(11)]

    def interleave(runs: dict[str, goals.Run], *_: object) -> dict[str, list[float]]:
        return {name: probes if name == goals._PROBE else [0.001] * 11 for name in runs}

    monkeypatch.setattr(goals, "interleave", interleave)
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
    assert 1e-4 <= min(samples["slow"]) < 9e-4, "of a call, not of ten"


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
    reached.append(
        Reached(replace(GOAL, dtype="bfloat16"), spread(2.0), 9, seconds={"native": 1.0})
    )
    Goals(MACHINE, reached).save(tmp_path / "goals.json")
    assert Goals.load(tmp_path / "goals.json") == Goals(MACHINE, reached)
    for other in ('{"version": 0}', '{"version": 1, "machine": {}, "cases": []}'):
        (tmp_path / "goals.json").write_text(other)
        with pytest.raises(ValueError, match="not a result of `python -m bench goals`"):
            Goals.load(tmp_path / "goals.json")


def test_the_command_line_measures_what_matches_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(goals, "goals", lambda _: [GOAL, replace(GOAL, label="else")])
    command = ["goals", "* tiny *", "--threads", str(torch.get_num_threads())]
    assert main([*command, "--seconds", "0.01", "--out", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("goals-*.json")
    (reached,) = Goals.load(written).reached
    assert reached.goal == GOAL
    assert capsys.readouterr().out.startswith("fbp_biased tiny forward / eager")
    assert (
        main(["goals", *command[2:], "--seconds", "0.01", "--out", str(written), "--resume"]) == 0
    )
    assert [r.goal.label for r in Goals.load(written).reached] == ["tiny", "else"]
    assert Goals.load(written).reached[0] == reached, "was measured already"
    assert capsys.readouterr().out.startswith("fbp_biased else forward / eager")
    kept = Goals.load(written)
    Goals(kept.machine | {"commit": "0"}, kept.reached).save(written)
    assert main([*command, "--out", str(written), "--resume"]) == 2
    assert "cannot be resumed: commit is '0' there" in capsys.readouterr().err
    assert main(["goals", "nothing"]) == 2
    assert "no goal matches nothing" in capsys.readouterr().err


def test_the_page_has_all_machines_side_by_side(tmp_path: Path) -> None:
    """Two that are called the same are two columns; one that no benchmark ran on has its column, too."""

    def text() -> list[str]:
        return page(reported.devices(tmp_path), reported.goals(tmp_path)).splitlines()

    results = tmp_path / "bench" / "results"
    run(case()).save(results / "bench-made-up-9000-2026-01-02.json")
    assert "## Goals" not in text()
    zen3 = MACHINE | {"processor": "AMD EPYC", "family": "AMD Zen 3"}
    zen4 = zen3 | {"family": "AMD Zen 4", "instruction_set": "avx512_bf16", "commit": "abc+"}
    held = zen4 | {"instruction_set": "avx2", "held": "kernels: avx2"}
    first = [
        Reached(GOAL, spread(1.6), 20, 2),
        Reached(replace(GOAL, mode="training", least=2.0), spread(1.6), 20),
        Reached(replace(GOAL, peer="copy"), None, why="not built"),
    ]
    second = [replace(first[1], ratio=spread(3.0))]
    Goals(zen3, first).save(results / "goals-amd-zen3-avx2-2026-01-02.json")
    Goals(zen3, first[:1]).save(results / "goals-amd-zen3-avx2-2025-01-02.json")
    Goals(zen4, second).save(results / "goals-amd-zen4-avx512-2026-01-02.json")
    Goals(zen4, second).save(results / "goals-amd-zen4-avx512-2026-01-02-before.json")
    Goals(held, [replace(first[0], ratio=None, why="not built")]).save(
        results / "goals-amd-zen4-avx2-held-2026-01-02.json"
    )
    lines = text()
    start = lines.index("## Goals")
    legend = [line for line in lines[start:] if line.startswith("- **")]
    assert [line.partition(";")[0] for line in legend] == [
        "- **A**: AMD EPYC (Zen 3, AVX2), 2 threads",
        "- **B**: AMD EPYC (Zen 4, held to AVX2), 2 threads",
        "- **C**: AMD EPYC (Zen 4, AVX-512), 2 threads (before)",
        "- **D**: AMD EPYC (Zen 4, AVX-512), 2 threads",
    ]
    assert legend[0].endswith(": 1 of 3 reached.")
    assert "figures of commit abc, with changes, measured 2026-01-02, [goals-amd-zen4" in legend[3]
    rows = [line for line in lines[start:] if line.startswith("| fbp_biased | tiny |")]
    assert rows == [
        "| fbp_biased | tiny | float32 | forward | eager | 1.60 (1.44 to 1.76) | not built | - | - |",
        "| fbp_biased | tiny | float32 | forward and backward | eager | 1.60 (1.44 to 1.76), **missed 2.00** "
        "| - | 3.00 (2.70 to 3.30) | 3.00 (2.70 to 3.30) |",
        "| fbp_biased | tiny | float32 | forward | copy | not built | - | - | - |",
    ]


@pytest.mark.slow
def test_resident_memory_is_that_of_the_call() -> None:
    """The reference holds its two projections; ours has the same result without."""
    sizes = {"B": 4096, "C": 8, "D": 8, "O_G": 512, "K_G": 8, "H": 1, "O_M": 1, "K_M": 1}
    result, projection = 4 * 4096 * 513, 4 * 4096 * 512 * 8
    assert resident.peak(sizes, "forward", "reference") > 2 * projection
    assert result / 2 < resident.peak(sizes, "forward", "native") < projection
