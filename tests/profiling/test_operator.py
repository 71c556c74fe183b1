"""`python -m profiling.operator`: the floor, the tables, the errors."""

from pathlib import Path

import pytest
import torch

from bench.operators import OPERATORS, Draw
from bench.operators.call import cotangents
from bench.records import Ceilings
from profiling import operator
from profiling.report import PROFILE, Profile


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither real ceilings nor a second of timing."""
    found = Ceilings({"float32": 1e9}, 1e8, {"float32": "torch.mm"})
    monkeypatch.setattr(operator.ceilings, "measure", lambda *_: found)
    monkeypatch.setattr(operator, "_SECONDS", 0.0)


def test_the_floor_is_the_larger_of_arithmetic_and_memory() -> None:
    sizes = {"B": 4, "C": 8, "D": 16, "O": 2, "K": 3}
    call = OPERATORS["fbp"].make(sizes, Draw("float32"))
    flops = 2 * 4 * 6 * (8 + 16)
    moved = 4 * (4 * 8 + 4 * 16 + 8 * 6 + 16 * 6 + 4 * 2)
    slow_memory = Ceilings({"float32": 1e9}, 1e6, {"float32": "torch.mm"})
    bound = operator.floor(call, "forward", "float32", slow_memory, seconds=0.01)
    assert (bound["flops"], bound["bytes"]) == (flops, moved)
    assert bound["binds"] == "memory"
    assert bound["times_floor"] == pytest.approx(0.01 / (moved / 1e6))
    assert bound["achieved_bytes"] == pytest.approx(moved / 0.01)
    slow_arithmetic = Ceilings({"float32": 1e4}, 1e9, {"float32": "torch.mm"})
    bound = operator.floor(call, "training", "float32", slow_arithmetic, seconds=2.0)
    assert bound["binds"] == "arithmetic"
    assert bound["times_floor"] == pytest.approx(2.0 / (3 * flops / 1e4))
    assert bound["achieved_flops"] == pytest.approx(3 * flops / 2.0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("mode", operator.MODES)
def test_every_operator_can_be_profiled(name: str, mode: str, tmp_path: Path) -> None:
    arguments = [name, "--shape", "tiny", "--mode", mode, "--steps", "1", "--device", "cpu"]
    assert operator.main([*arguments, "--backend", "reference", "--out", str(tmp_path)]) == 0
    profile = Profile.load(tmp_path / PROFILE)
    account = profile.account
    for rows in (account.ranges, account.operations):
        assert sum(r.total_ms for r in rows) == pytest.approx(account.total_ms, rel=1e-4)
    forward = next(r for r in account.ranges if r.name == "forward")
    assert forward.forward_ms > 0
    assert (forward.backward_ms > 0) == (mode == "training")
    assert profile.floor is not None
    assert profile.floor["flops_ceiling"] == 1e9
    draw = Draw("float32")
    call = OPERATORS[name].make(OPERATORS[name].sizes["tiny"], draw)
    held = sum(t.nbytes for t in (*call.tensors, *cotangents(call, draw)))
    if name != "local_response_norm":  # whose made-up gradient is contiguous, its map is not
        assert profile.memory["start_bytes"] == held


def test_the_shape_defaults_to_the_operators_first(tmp_path: Path) -> None:
    assert operator.main(["power_normalize", "--steps", "1", "--out", str(tmp_path)]) == 0
    assert Profile.load(tmp_path / PROFILE).title.startswith("power_normalize, clip, training")


def test_the_profile_says_what_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fbp", "--shape", "tiny", "--device", "cpu", "--steps", "1"]
    assert operator.main([*arguments, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "binds; the operator takes" in told
    assert "times its floor" in told
    assert "## By kind" not in told  # there are no modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fbp", "--shape", "nonesuch"], "--shape of fbp is one of clip, batch, vqa, web"),
        (["am_fbp", "--shape", "vqa"], "got 'vqa'"),  # which has no trunks
        (["fbp", "--shape", "tiny", "--backend", "triton"], "fbp cannot run on backend 'triton'"),
        (["fbp", "--device", "cuda"], "PyTorch finds no GPU"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert operator.main(arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("python -m profiling.operator: error: ")
    assert message in error


@pytest.mark.parametrize("arguments", [["nonesuch"], ["fbp", "--backend", "nonesuch"], []])
def test_wrong_names_are_told_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        operator.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m profiling.operator" in capsys.readouterr().err
