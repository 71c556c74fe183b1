"""A run from end to end: what is measured lands in the file, and a slower kernel is found by `compare`."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler import profile

from bench import ceilings, timing, warm
from bench.__main__ import main
from bench.operators import OPERATORS
from bench.parity import RIGHT, WRONG, Found, Verdict
from bench.plan import OperatorPlan, Settings
from bench.records import Ceilings, Run
from bench.session import Replay, Session, with_floor
from bench.suite import Choice
from bench.timing import CpuClock
from fbp_kernels import backends, reference

from .made_up import CEILINGS, MACHINE, case
from .made_up import run as made_up_run

ROOT = Path(__file__).parents[2]
CHOICE = Choice(
    labels=("clip",),
    curves=(),
    dtypes=("float32",),
    modes=("forward",),
    backends=("native",),
    peers=("eager",),
    device="cpu",
)
PLAN = OperatorPlan("fbp", "clip", OPERATORS["fbp"].sizes["clip"], "float32", "forward", "cpu")


class OperatorClock:
    """Each of PyTorch's operators that runs, ours among them, takes a millisecond, however busy the machine is."""

    def turn(self, runs: list[timing.Run]) -> list[float]:
        return [1e-3 * self._operators(run) for run in runs]

    def _operators(self, run: timing.Run) -> int:
        with profile(use_kineto=False) as recorded:
            run()
        return len(recorded.function_events)


def _measured(path: Path) -> Path:
    session = Session(CHOICE, seconds=0.0, out=path, timer=OperatorClock())
    for name in CHOICE.names(PLAN):
        session.choose(PLAN, name)
    session.outcome(PLAN)
    return path  # written after every case


@pytest.mark.parametrize(
    ("calls", "status", "verdict"), [(1, 0, "unchanged"), (2, 1, "REGRESSION")]
)
def test_a_deliberately_slowed_kernel_is_flagged_and_an_unchanged_one_is_not(
    calls: int,
    status: int,
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: CEILINGS)
    old = _measured(tmp_path / "old.json")
    kernel = backends.kernel("fbp", "native")

    def repeated(*arguments: object) -> object:
        for _ in range(calls - 1):
            kernel.forward(*arguments)
        return kernel.forward(*arguments)

    monkeypatch.setitem(
        backends._kernels["fbp"], "native", backends.Kernel(repeated, kernel.backward)
    )
    new = _measured(tmp_path / "new.json")
    capsys.readouterr()
    assert main(["compare", str(old), str(new)]) == status
    timed = [line for line in capsys.readouterr().out.splitlines() if "speed against eager" in line]
    assert len(timed) == 1
    assert timed[0].split()[:5] == [verdict, "fbp", "clip", "float32", "forward"]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_command_line_measures_and_writes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    arguments = ["run", "--shapes", "tiny", "--seconds", "0.01", "--out", str(out)]
    done = _bench(*arguments, "--operators", "fbp_biased", "--peers", "eager", "products")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.load(out)
    forward, training = run.cases
    assert (forward.mode, training.mode) == ("forward", "training")
    assert set(forward.contenders) == {"native", "triton", "eager", "products"}
    assert set(training.contenders) == {"native", "triton", "eager"}
    assert not forward.left_out
    assert forward.contenders["native"].kept_bytes is None
    assert training.contenders["native"].kept_bytes == 2 * 3 * 12 * 4  # both projections, (B, O*K)
    assert training.contenders["native"].peak_bytes is not None
    assert run.machine["threads"] == 2
    assert run.ceilings.bytes > 0
    assert forward.floor_seconds == pytest.approx(
        max(forward.flops / run.ceilings.flops["float32"], forward.bytes / run.ceilings.bytes)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--operators", "fpb"], "invalid choice: 'fpb'"),
        (["run", "--shapes", "clipp"], "invalid choice: 'clipp'"),
        (["parity", "--backends", "cuda"], "invalid choice: 'cuda'"),
        ([], "required: command"),
    ],
)
def test_what_does_not_exist_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def _parity(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = main(["parity", "--shapes", "tiny", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_parity_says_what_every_backend_takes(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = _parity(capsys, "--operators", "fbp", "batch_norm")
    assert status == 0
    assert any(line.startswith("batch_norm tiny float32 forward") for line in lines)
    assert sum(line.endswith("%") for line in lines) + sum(" left out: " in x for x in lines) == 8
    right, left_out = (sum(w in line for line in lines[:-1]) for w in ("%", " left out: "))
    assert lines[-1] == f"8 asked for: {right} right, 0 wrong, {left_out} left out"


def test_parity_of_nothing_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("--operators", "fbp", "--backends", "native")
    monkeypatch.delitem(backends._kernels["fbp"], "native")
    status, lines = _parity(capsys, *only)
    assert status == 1
    assert lines[-1] == "2 asked for: 0 right, 0 wrong, 2 left out"
    assert main(["parity", "--shapes", "vqa", "--operators", "trunk_fbp"]) == 1
    assert "trunk_fbp has none of the shapes asked for" in capsys.readouterr().out


def test_parity_tells_of_every_contender_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that raises has no error to print, but is as wrong as one that is off."""

    def fails(*_: object) -> object:
        raise RuntimeError("invalid argument")

    def off(*arguments: object) -> object:
        pooled, *kept = right.forward(*arguments)
        return (pooled + 1, *kept)

    right = backends.kernel("fbp", "native")
    only = ("--operators", "fbp", "trunk_fbp", "--backends", "native")
    for forward, how in (
        (fails, "-  WRONG: fails: RuntimeError: invalid argument"),
        (off, "WRONG: result 0 is off by"),
    ):
        broken = backends.Kernel(forward, right.backward)
        monkeypatch.setitem(backends._kernels["fbp"], "native", broken)
        status, lines = _parity(capsys, *only)
        assert status == 1
        assert sum(line.startswith("fbp tiny") and how in line for line in lines) == 2
        assert sum(line.startswith("trunk_fbp tiny") and "WRONG" not in line for line in lines) == 2
        assert lines[-1] == "4 asked for: 2 right, 2 wrong, 0 left out"


def test_parity_in_tf32_runs_in_tf32(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results and reference alike; and only there, whatever happens."""
    seen: dict[str, set[str]] = {"native": set(), "eager": set()}
    kernel, eager = backends.kernel("fbp", "native"), reference.fbp
    failing = False

    def forward(*arguments: object) -> object:
        seen["native"].add(torch.backends.cuda.matmul.fp32_precision)
        if failing:
            raise RuntimeError("invalid argument")
        return kernel.forward(*arguments)

    def backward(*arguments: object) -> object:
        seen["native"].add(torch.backends.cuda.matmul.fp32_precision)
        return kernel.backward(*arguments)

    def plain(*arguments: Any, **how: Any) -> Tensor:
        seen["eager"].add(torch.backends.cuda.matmul.fp32_precision)
        return eager(*arguments, **how)

    monkeypatch.setitem(backends._kernels["fbp"], "native", backends.Kernel(forward, backward))
    monkeypatch.setattr(reference, "fbp", plain)
    before = torch.backends.cuda.matmul.fp32_precision
    only = ("--operators", "fbp", "--backends", "native")
    for status, failing in ((0, False), (1, True)):  # noqa: B007 (read by the kernel)
        for names in seen.values():
            names.clear()
        assert _parity(capsys, *only, "--dtypes", "tf32")[0] == status
        # The shapes of what is drawn as the results' gradients are asked for before.
        assert seen["native"] == {"tf32"}
        assert "tf32" in seen["eager"]
        assert torch.backends.cuda.matmul.fp32_precision == before
    seen["native"].clear()
    failing = False
    assert _parity(capsys, *only)[0] == 0
    assert "tf32" not in seen["native"]


@pytest.mark.slow
def test_parity_goes_on_and_shares_its_work_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parity.json"
    arguments = ["parity", "--shapes", "tiny", "--backends", "native", "--processes", "2"]
    arguments += ["--operators", "fbp", "power_normalize", "--out", str(out), "--modes"]
    assert main([*arguments, "forward"]) == 0
    assert "in the file: 2 asked for: 2 right, 0 wrong, 0 left out" in capfd.readouterr().out
    first = Found.load(out)
    assert set(first.cases) == {f"{o} tiny float32 forward" for o in ("fbp", "power_normalize")}
    # Known ones are not compared again, whatever has become of them.
    name = "fbp tiny float32 forward"
    wrong = Found(first.machine, first.cases | {name: {"native": Verdict(WRONG, 3.0, "off by 3")}})
    wrong.save(out)
    assert main([*arguments, "forward", "training", "--resume"]) == 1
    printed = capfd.readouterr().out
    assert "300%  WRONG: off by 3  (known)" in printed
    assert f"WRONG: native in {name}: off by 3" in printed
    assert "in the file: 4 asked for: 3 right, 1 wrong, 0 left out" in printed
    second = Found.load(out)
    assert second.cases[name] == {"native": Verdict(WRONG, 3.0, "off by 3")}
    assert os.listdir(tmp_path) == ["parity.json"]
    Found(first.machine | {"commit": "another"}, first.cases).save(out)
    assert main([*arguments, "forward", "--resume"]) == 2
    assert "parity.json cannot be resumed: commit is 'another' there" in capfd.readouterr().err


def test_parity_is_merged_and_what_differs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = Verdict(RIGHT, 0.5), Verdict(WRONG, 2.0, "off")
    paths = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    Found(MACHINE, {"one": {"native": right}}).save(paths[0])
    other = {"one": {"native": wrong, "triton": right}, "two": {"native": wrong}}
    Found(MACHINE | {"date": "2026-03-04"}, other).save(paths[1])
    assert main(["merge", *map(str, paths[:2]), "--out", str(paths[2])]) == 0
    assert "one of native is in" in capsys.readouterr().out
    merged = Found.load(paths[2])
    assert merged.cases["one"] == {"native": right, "triton": right}
    assert merged.cases["two"] == {"native": wrong}
    made_up_run(case()).save(paths[2])
    assert main(["merge", str(paths[0]), str(paths[2]), "--out", str(paths[2])]) == 2
    assert "c.json is of another kind than" in capsys.readouterr().err


def test_runs_are_merged_and_what_differs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / name) for name in ("a.json", "b.json", "c.json")]
    first = made_up_run(case(native=2.0))
    first.save(Path(paths[0]))
    faster = Ceilings({"float32": 4e11, "tf32": 1e12}, 1e10, {"float32": "a", "tf32": "b"})
    second = made_up_run(case(native=3.0), case("am_fbp", dtype="tf32"), date="2026-03-04")
    replace(second, ceilings=faster).save(Path(paths[1]))
    assert main(["merge", *paths[:2], "--out", paths[2]]) == 0
    assert f"fbp clip float32 forward is in {paths[1]}, too" in capsys.readouterr().out
    merged = Run.load(Path(paths[2]))
    assert [c.name for c in merged.cases] == [
        "fbp clip float32 forward",
        "am_fbp clip tf32 forward",
    ]
    assert merged.cases[0].contenders == first.cases[0].contenders
    assert merged.ceilings.flops == faster.flops
    # The floors are those of the ceilings that both measured together.
    assert merged.cases[0].floor_seconds == max(1e8 / 4e11, 1e7 / 2e10)
    for other in ({"commit": "another"}, {"torch": "2.12.0"}, {"device": "nvidia-h100"}):
        made_up_run(case(), **other).save(Path(paths[1]))
        assert main(["merge", *paths[:2], "--out", paths[2]]) == 2
        (name,) = other
        assert f"cannot be merged with {paths[0]}: {name} is {other[name]!r} there" in (
            capsys.readouterr().err
        )


@pytest.mark.slow
def test_peers_are_compiled_by_processes_of_their_own(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["warm", "--shapes", "tiny", "--operators", "power_normalize", "--modes", "forward"]
    assert main([*arguments, "--peers", "eager", "products", "--processes", "1"]) == 0
    printed = capfd.readouterr().out
    assert re.search(r"power_normalize tiny float32 forward: eager: \d+ s", printed)
    assert "0 failed" in printed


def test_what_takes_longest_is_compiled_first_and_no_graph() -> None:
    choice = replace(CHOICE, peers=("compile", "max-autotune"), device="cuda")
    found = [(plan.label, name) for plan, name in warm.jobs(choice, ["fbp"])]
    assert found == [("clip", "max-autotune"), ("clip", "compile")]


def test_nothing_is_compiled_where_nobody_would_find_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert warm.run_warm(replace(CHOICE, device="cuda"), ["fbp"], 1) == 2
    assert "TRITON_CACHE_DIR is not set" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    arguments = ["run", "--shapes", "tiny", "--operators", "fbp", "--modes", "forward"]
    arguments += [
        "--peers",
        "eager",
        "--backends",
        "native",
        "--seconds",
        "0.01",
        "--out",
        str(out),
    ]
    assert _bench(*arguments).returncode == 0
    first = Run.load(out)
    assert _bench(*arguments, "--resume", "--dtypes", "float32", "bfloat16").returncode == 0
    second = Run.load(out)
    assert [case.dtype for case in second.cases] == ["float32", "bfloat16"]
    assert second.cases[0].contenders == first.cases[0].contenders
    assert set(second.ceilings.flops) == {"float32", "bfloat16"}
    Run(first.machine | {"commit": "another"}, first.ceilings, first.cases).save(out)
    done = _bench(*arguments, "--resume")
    assert done.returncode != 0
    assert "run.json cannot be resumed: commit is 'another' there" in done.stdout + done.stderr


def test_a_replayed_timer_gives_the_durations_that_were_measured() -> None:
    replay = Replay()
    replay.load([0.5, 2.0])
    first, second = -replay() + replay(), -replay() + replay()
    assert (first, second) == (0.5, 2.0)


def test_the_floor_is_the_larger_of_arithmetic_and_traffic() -> None:
    ceilings = Ceilings({"float32": 100.0}, 10.0, {"float32": "torch.mm"})
    case = PLAN.measure(["eager"], Settings("cpu", 0.0, CpuClock())).case
    assert with_floor(case, ceilings).floor_seconds == max(case.flops / 100, case.bytes / 10)


def test_a_curve_varies_one_size() -> None:
    points = OPERATORS["fbp"].points("B")
    assert next(iter(points)) == "B=1"
    assert list(points)[-1] == "B=16384"
    clip = OPERATORS["fbp"].sizes["clip"]
    assert all(sizes == clip | {"B": sizes["B"]} for sizes in points.values())
