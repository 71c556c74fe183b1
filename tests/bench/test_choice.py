"""Results become rows of the table by which backends are chosen."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.choice import _of_goals, _of_run, run_choice
from bench.choice import entered as entered_cases
from bench.goal_records import Goal, Goals, Reached
from bench.operators import SUBJECTS
from bench.records import Case, Ceilings, Measurement, Run, Spread
from fbp_kernels import choice

MACHINE = {
    "device": "made-up-9000", "gpu": "Made Up 9000", "torch": "2.13.0", "triton": "3.7.1",
    "commit": "abc", "date": "2026-01-02",
}  # fmt: skip

CPU = {
    "device": "z80-avx2", "gpu": "", "processor": "Z80", "instruction_set": "avx2", "threads": 2
}  # fmt: skip


def case(
    operator: str = "fbp",
    dtype: str = "bfloat16",
    mode: str = "forward",
    curve: str = "",
    **times: float,
) -> Case:
    subject = SUBJECTS[operator]
    measured = {
        name.replace("_", " "): Measurement(Spread(*[seconds] * 5), 5, {})
        for name, seconds in times.items()
    }
    return Case(
        operator, "tiny", curve, subject.sizes["tiny"], dtype, mode, 0.0, 0.0, 0.0, measured
    )


def run(*cases: Case, **machine: object) -> Run:
    return Run(MACHINE | machine, Ceilings({}, 1.0, {}), list(cases))


def entered(rows: list[choice.Row], made: Run) -> list[choice.Row]:
    return entered_cases(rows, made.machine, _of_run(made))


def goals(*ratios: tuple[Goal, float], **machine: object) -> Goals:
    """Goals by their ratios to a peer that takes 6 ms."""
    reached = [
        Reached(goal, Spread(*[ratio] * 5), 5, seconds={"native": 9.0, goal.peer: 6e-3})
        for goal, ratio in ratios
    ]
    return Goals(MACHINE | CPU | machine, reached)


def goal(mode: str = "forward", peer: str = "eager", dtype: str = "float32") -> Goal:
    return Goal("fbp", "tiny", SUBJECTS["fbp"].sizes["tiny"], mode, peer, 1.0, dtype)


def test_plain_calls_of_our_backends_and_the_reference_are_entered() -> None:
    times = {"native": 1e-5, "triton": 2e-5, "triton_graph": 1e-6, "eager": 3e-5, "compile": 4e-5}
    (row,) = entered([], run(case(**times), case(mode="training", native=5e-5, eager=6e-5)))
    assert row.key == ("cuda", "fbp", "half", "tiny")
    assert row.seconds == {
        "forward": {"native": 1e-5, "triton": 2e-5, "reference": 3e-5},
        "training": {"native": 5e-5, "reference": 6e-5},
    }
    assert row.source == "Made Up 9000, torch 2.13.0, Triton 3.7.1, commit abc, 2026-01-02"
    assert row.work == 3 * 4 * 3 * (5 + 7), "tiny: B = 3, O = 4, K = 3, C = 5, D = 7"
    assert row.order("forward") == ("native", "triton", "reference")


def test_a_ratio_of_turns_goes_before_one_of_medians() -> None:
    """What else the machine did hits both in a turn."""
    one = case(native=5.0, eager=6e-5)
    paired = replace(one.contenders["native"], ratios={"eager": Spread(*[2.0] * 5)})
    noisy = replace(one, contenders=one.contenders | {"native": paired})
    (row,) = entered([], run(noisy))
    assert row.seconds == {"forward": {"native": 3e-5, "reference": 6e-5}}


def test_goals_of_a_processor_are_entered_by_its_instruction_set() -> None:
    made = goals(
        (goal(), 0.8), (goal("training"), 1.5), (goal(peer="compile"), 3.0), (goal(dtype="bfloat16"), 2.0)
    )  # fmt: skip
    rows = entered_cases([], made.machine, _of_goals(made))
    assert [row.key for row in rows] == [
        ("avx2", "fbp", "float32", "tiny"),
        ("avx2", "fbp", "bfloat16", "tiny"),
    ]
    assert rows[0].seconds == {
        "forward": {"native": 7.5e-3, "reference": 6e-3},
        "training": {"native": 4e-3, "reference": 6e-3},
    }
    assert rows[0].order("forward")[0] == "reference"
    assert rows[0].order("training")[0] == "native"
    assert rows[0].source == "Z80 (AVX2), 2 threads, torch 2.13.0, commit abc, 2026-01-02"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (goals((goal(), 1.0), device="z80-kernels-avx2"), "held to avx2, but not PyTorch"),
        (goals((goal(), 1.0), instruction_set=""), "the C\\+\\+ extension was not there"),
        (goals((goal(peer="compile"), 1.0)), "no operator was timed beside eager PyTorch"),
        (Goals(MACHINE | CPU, [Reached(goal(), Spread(*[1.0] * 5), 5)]), "goals have times since"),
    ],
)
def test_what_says_nothing_of_a_choice_is_refused(
    made: Goals, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        entered_cases([], made.machine, _of_goals(made))
    made.save(tmp_path / "goals.json")
    (tmp_path / "choice.json").write_text("[]")
    assert run_choice([tmp_path / "goals.json"], tmp_path / "choice.json") == 2
    assert (tmp_path / "choice.json").read_text() == "[]"
    assert "goals.json: " in capsys.readouterr().err


def test_variants_curves_and_other_dtypes_are_left_out() -> None:
    others = [case("fbp_biased"), case(curve="B"), case(dtype="float16"), case(dtype="tf32")]
    others.append(replace(case(native=1.0), label="one"))
    rows = entered([], run(*others, case(native=1.0)))
    assert [row.key for row in rows] == [("cuda", "fbp", "half", "tiny")]
    (row,) = entered([], run(case("power_normalize", "float32", triton=1.0, eager=2.0)))
    assert row.dtype == "float32"


def test_what_was_not_measured_again_stays() -> None:
    rows = entered([], run(case(native=1e-5, triton=2e-5, eager=3e-5)))
    noted = [choice.Row(**(vars(rows[0]) | {"note": "of the native one"}))]
    (row,) = entered(noted, run(case(triton=1e-6, eager=3e-5), date="2026-02-03"))
    assert row.seconds["forward"] == {"native": 1e-5, "triton": 1e-6, "reference": 3e-5}
    assert row.source.endswith("2026-02-03")
    assert row.note == "of the native one"
    (row,) = entered(noted, run(case(native=1e-6, triton=1e-6, eager=3e-5)))
    assert row.note == "", "all of what it was on has been measured anew"


def test_the_command_writes_the_table_and_says_what_it_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast, table = tmp_path / "slow.json", tmp_path / "fast.json", tmp_path / "choice.json"
    table.write_text("[]")
    goals((goal(), 0.8), (goal("training"), 1.5)).save(slow)
    goals((goal(), 1.25)).save(fast)
    assert run_choice([slow], table) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 of 1 rows are new or measured anew; chosen otherwise:",
        "  avx2 fbp tiny float32 forward: not measured -> reference (native 0.80 times as fast as eager)",
        "  avx2 fbp tiny float32 training: not measured -> native (native 1.50 times as fast as eager)",
        "where the reference comes first:",
        "  avx2 fbp tiny float32 forward (native 0.80 times as fast as eager)",
    ]
    before = choice.table(table)
    assert run_choice([slow], table) == 0
    assert choice.table(table) == before
    assert capsys.readouterr().out.startswith("0 of 1 rows are new or measured anew; chosen other")
    assert run_choice([slow, fast], table) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  avx2 fbp tiny float32 forward: reference -> native (native 1.25 times as fast as eager)",
        "where the reference comes first:",
        "  nowhere",
    ]
    assert choice.table(table)[0].seconds["training"] == before[0].seconds["training"]


def test_the_command_line_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Path]] = []
    monkeypatch.setattr("bench.choice.run_choice", lambda paths: given.append(paths) or 0)
    assert main(["choice", str(tmp_path)]) == 0
    assert given == [[tmp_path]]
