"""The reader of ncu's table, and the wrapper around a stand-in for ncu. There is no real one here."""

import json
import sys
from pathlib import Path

import pytest

from profiling import ncu

TABLE = Path(__file__).parent / "data" / "ncu.csv"


def _text() -> str:
    return TABLE.read_text("utf-8")


def test_counters_are_read_in_base_units() -> None:
    forward, backward = ncu.parse(_text())
    assert forward == ncu.Counters(
        kernel="fbp_fwd_kernel",
        grid="(64, 4, 1)",
        block="(128, 1, 1)",
        seconds=pytest.approx(9.824e-6),
        dram_percent=41.27,
        dram_bytes=3_538_944 + 65_536,
        tensor_percent=37.5,
        sm_percent=48.12,
        occupancy_percent=23.44,
        registers=168,
        stalls={"long_scoreboard": 4.07, "wait": 2.5, "barrier": 1.25, "short_scoreboard": 0.31},
    )
    assert list(forward.stalls) == ["long_scoreboard", "wait", "barrier", "short_scoreboard"]
    assert backward.kernel.startswith("void (anonymous namespace)::fbp_bwd_kernel<float, 128>(")
    assert backward.seconds == pytest.approx(21.3125e-6)
    assert backward.tensor_percent is None  # "n/a"


def test_a_warp_that_issues_is_not_stalled() -> None:
    assert all("selected" not in counters.stalls for counters in ncu.parse(_text()))


def test_other_units_are_scaled() -> None:
    text = _text().replace('"nsecond"', '"us"').replace('"byte","byte"', '"Kbyte","byte"')
    forward = ncu.parse(text)[0]
    assert forward.seconds == pytest.approx(9824e-6)
    assert forward.dram_bytes == pytest.approx(3_538_944e3 + 65_536)


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ValueError, match=r"gpu__time_duration\.sum has the unit 'fortnight'"):
        ncu.parse(_text().replace('"nsecond"', '"fortnight"'))


def test_what_ncu_did_not_measure_is_none() -> None:
    text = _text().replace("dram__bytes_write.sum", "other").replace("launch__registers", "no")
    forward = ncu.parse(text)[0]
    assert forward.dram_bytes is None
    assert forward.registers is None
    cells = [cell.strip() for cell in ncu.table([forward]).splitlines()[2].split("|")]
    assert (cells[6], cells[10]) == ("-", "-")


def test_the_table_tells_three_reasons() -> None:
    lines = ncu.table(ncu.parse(_text())).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "`fbp_fwd_kernel`", "(64, 4, 1)", "(128, 1, 1)", "9.8", "41.3", "3.60", "37.5", "48.1",
        "23.4", "168", "long scoreboard 4.1, wait 2.5, barrier 1.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ncu printed no table"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "ncu printed no table"),
        (
            "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access counters\n",
            "ERR_NVGPUCTRPERM",
        ),
        ('"ID","Kernel Name","Metric Name"\n"0","k","m"\n', "no row of units"),
        ('"ID","Kernel Name"\n', "no row of units"),
        ('"ID","Kernel Name"\n"",""\n"0"\n', "2 columns, but one row has 1"),
    ],
)
def test_a_table_that_is_none_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ncu.parse(text)


def test_a_missing_ncu_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ncu.main(["fbp", "--shape", "clip"]) == 2
    assert "there is no ncu on the PATH" in capsys.readouterr().err
    assert ncu.main(["--ncu", str(tmp_path / "ncu"), "fbp"]) == 2
    assert f"there is no ncu at {tmp_path / 'ncu'}" in capsys.readouterr().err


def _stand_in(folder: Path, *, status: int = 0, table: str = "") -> Path:
    """A program that leaves its arguments beside itself and a table where ncu would."""
    program = folder / "ncu"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"open({str(folder / 'arguments.json')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
        f"open(sys.argv[sys.argv.index('--log-file') + 1], 'w').write({table!r})\n"
        "print('what the operator prints')\n"
        "print('==ERROR== it does not work', file=sys.stderr)\n"
        f"sys.exit({status})\n"
    )
    program.chmod(0o755)
    return program


def test_ncu_watches_one_call_of_the_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = _stand_in(tmp_path, table=_text())
    odd = "; touch /never"  # would end a shell's command; here it is a name
    assert ncu.main(["--ncu", str(program), "fbp", "--shape", odd]) == 0
    assert "`fbp_fwd_kernel`" in capsys.readouterr().out
    given = json.loads((tmp_path / "arguments.json").read_text())
    options, operator = given[: given.index(sys.executable)], given[given.index(sys.executable) :]
    assert operator == [
        sys.executable, "-m", "profiling.operator", "fbp", "--shape", odd,
        "--device", "cuda", "--external", "--steps", "1",
    ]  # fmt: skip
    assert options[:2] == ["--profile-from-start", "off"]
    assert "--csv" in options
    assert options[options.index("--page") + 1] == "raw"
    assert options[options.index("--print-units") + 1] == "base"


def test_a_failing_ncu_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = _stand_in(tmp_path, status=3)
    assert ncu.main(["--ncu", str(program), "fbp"]) == 2
    assert "ncu ended with status 3: ==ERROR== it does not work" in capsys.readouterr().err


def test_an_unknown_operator_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = _stand_in(tmp_path, table=_text())
    with pytest.raises(SystemExit) as stopped:
        ncu.main(["--ncu", str(program), "nonesuch"])
    assert stopped.value.code == 2
    assert "invalid choice: 'nonesuch'" in capsys.readouterr().err
    assert not (tmp_path / "arguments.json").exists()


def test_a_table_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ncu.main(["--csv", str(TABLE)]) == 0
    assert "`fbp_fwd_kernel`" in capsys.readouterr().out
    assert ncu.main(["--csv", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


def test_nothing_to_do_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ncu.main([])
    assert stopped.value.code == 2
    assert "name an operator" in capsys.readouterr().err


def test_the_line_for_a_step_counts_in_the_fusion_only() -> None:
    line = ncu.step_command(["--config", "full", "--out", "some where"])
    assert "--nvtx-include avemo@fusion/" in line
    assert line.endswith("python -m profiling.step --config full --external")
