"""Results of a GPU become rows of the table by which backends are chosen there."""

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.choice import entered, run_choice
from bench.operators import SUBJECTS
from bench.records import Case, Ceilings, Measurement, Run, Spread
from fbp_kernels import choice

MACHINE = {
    "gpu": "Made Up 9000", "torch": "2.13.0", "triton": "3.7.1", "commit": "abc", "date": "2026-01-02"
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


def test_plain_calls_of_our_backends_and_the_reference_are_entered() -> None:
    times = {"native": 1e-5, "triton": 2e-5, "triton_graph": 1e-6, "eager": 3e-5, "compile": 4e-5}
    (row,) = entered([], run(case(**times), case(mode="training", native=5e-5, eager=6e-5)))
    assert (row.operator, row.dtype, row.label) == ("fbp", "half", "tiny")
    assert row.seconds == {
        "forward": {"native": 1e-5, "triton": 2e-5, "reference": 3e-5},
        "training": {"native": 5e-5, "reference": 6e-5},
    }
    assert row.source == "Made Up 9000, torch 2.13.0, Triton 3.7.1, commit abc, 2026-01-02"
    assert row.work == 3 * 4 * 3 * (5 + 7), "tiny: B = 3, O = 4, K = 3, C = 5, D = 7"
    assert row.order == ("native", "triton", "reference")


def test_variants_curves_and_other_dtypes_are_left_out() -> None:
    others = [case("fbp_biased"), case(curve="B"), case(dtype="float16"), case(dtype="tf32")]
    assert entered([], run(*others)) == []
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


def test_a_run_of_a_processor_is_refused() -> None:
    with pytest.raises(ValueError, match="the table is of GPUs"):
        entered([], run(case(native=1.0), gpu=None))


def test_the_command_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, table = tmp_path / "run.json", tmp_path / "choice.json"
    table.write_text("[]")
    run(case(native=1e-5, eager=3e-5)).save(result)
    assert run_choice([result], table) == 0
    assert "-> native, triton, reference" in capsys.readouterr().out
    (row,) = choice.table(table)
    assert row.seconds == {"forward": {"native": 1e-5, "reference": 3e-5}}
    run_choice([result], table)
    assert choice.table(table) == [row]


def test_the_command_line_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[Path]] = []
    monkeypatch.setattr("bench.choice.run_choice", lambda paths: given.append(paths) or 0)
    assert main(["choice", str(tmp_path)]) == 0
    assert given == [[tmp_path]]
