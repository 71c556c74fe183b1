"""The fuzzer on the installed extension, between guard pages; `python tests/fuzz` runs it under sanitizers."""

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fbp_kernels  # noqa: F401 (loads the extension)

HERE = Path(__file__).parent


def test_every_drawn_call_is_served_or_refused(tmp_path: Path) -> None:
    command = [sys.executable, HERE, "--guard", "--build", tmp_path]
    done = subprocess.run([*command, "--cases", "200"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operators, kinds = done.stdout.split(": ")
    for operator in ("fbp", "trunk_fbp", "am_fbp", "lrn", "batch_norm"):
        assert operator in operators
    counts = {kind: int(n) for n, kind in (part.split() for part in kinds.split(", "))}
    assert min(counts[kind] for kind in ("valid", "edge", "refused")) > 20, counts


def arguments(**changes: Any) -> list[Any]:
    named = {"a": torch.ones(2, 3), "v": torch.ones(2, 4), "p": torch.ones(3, 6)}
    named |= {"q": torch.ones(4, 6)} | changes
    return [*named.values(), None, None, None, 2, False, 0.0, False]


@pytest.mark.parametrize(
    ("changes", "wrong", "message"),
    [
        ({}, "factor", "was not refused: factor"),
        ({"p": torch.ones(2, 6)}, "", "(?s)was refused: .*p has shape"),
        ({"q": torch.full((4, 6), math.nan)}, "", "result 0 is not finite"),
    ],
)
def test_what_cannot_be_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], wrong: str, message: str
) -> None:
    monkeypatch.syspath_prepend(HERE)
    runner, draws = (importlib.import_module(name) for name in ("runner", "draws"))
    draw = next(d for d in map(draws.Draw, range(100)) if not d.edge)
    call = draws.Call("fbp_forward", arguments(**changes), wrong)
    fuzz = runner.Fuzz("fbp_native")
    with pytest.raises(runner.FuzzError, match=message):
        fuzz._run(call, draw, "case")


def test_a_case_is_the_same_wherever_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    draws = importlib.import_module("draws")
    for number in range(20):
        first, again = (draws.Draw(number).tensor(3, 4, 5) for _ in range(2))
        assert first.stride() == again.stride()
        torch.testing.assert_close(first, again, rtol=0, atol=0, equal_nan=True)
