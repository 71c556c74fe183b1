"""TF32 is read, set and put back whichever of PyTorch's settings a process uses, and however it mixes them."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fbp_kernels import tf32
from fbp_kernels.native import _hand_on_tf32
from fbp_kernels.triton import tuning

MATMUL = "torch.backends.cuda.matmul"
STATEMENTS = {  # what a process may say, and whether products round after that alone
    f"{MATMUL}.allow_tf32 = True": True,
    f"{MATMUL}.allow_tf32 = False": False,
    f"{MATMUL}.fp32_precision = 'tf32'": True,
    f"{MATMUL}.fp32_precision = 'ieee'": False,
    "torch.backends.fp32_precision = 'tf32'": True,
    "torch.backends.fp32_precision = 'ieee'": False,
    "torch.backends.cudnn.fp32_precision = 'tf32'": True,  # that of all of CUDA, whatever its name
    "torch.backends.mkldnn.matmul.fp32_precision = 'ieee'": False,
    "torch.set_float32_matmul_precision('high')": True,
    "torch.set_float32_matmul_precision('medium')": True,
    "torch.set_float32_matmul_precision('highest')": False,
}


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Settings as a new process has them, and after the test as they were before."""
    with tf32.products(False):
        _reset()
        yield
        _reset()


def _reset() -> None:
    torch.set_float32_matmul_precision("highest")
    for setting in (
        torch.backends,
        torch.backends.cudnn,
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    ):
        setting.fp32_precision = "none"


def _seen() -> list[Any]:
    """All that can be read, and where PyTorch refuses to be read."""
    readers: list[Callable[[], Any]] = [
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.fp32_precision,  # type: ignore[attr-defined]
        lambda: torch.backends.cudnn.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        torch.get_float32_matmul_precision,
    ]
    return [_read(reader) for reader in readers]


def _read(reader: Callable[[], Any]) -> Any:
    try:
        return reader()
    except RuntimeError:
        return "refused"


_EACH = """
import os, sys
from fbp_kernels import tf32
import torch
for statement, rounds in {statements}.items():
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{{statement}}: see above")
        continue
    exec(statement)
    assert tf32.allowed() is rounds, "before"
    for allow in (True, False):
        with tf32.products(allow):
            assert tf32.allowed() is allow, "within"
    assert tf32.allowed() is rounds, "after"
    os._exit(0)
"""


def test_every_setting_is_seen_by_a_process_that_said_nothing_else() -> None:
    code = _EACH.format(statements=STATEMENTS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_said_is_no_rounding() -> None:
    assert not tf32.allowed()


@pytest.mark.parametrize("first", STATEMENTS)
def test_mixed_settings_are_read_and_put_back(first: str) -> None:
    refused = 0
    for second, allow in itertools.product(STATEMENTS, (True, False)):
        _reset()
        exec(first), exec(second)
        before, rounded = _seen(), tf32.allowed()
        refused += "refused" in before
        with tf32.products(allow), tf32.products(not allow), tf32.products(allow):
            assert tf32.allowed() is allow
            assert tuning.dtype_class(torch.float32) == ("tf32" if allow else "float32")
            assert torch.backends.cuda.matmul.allow_tf32 is allow, "the old setting says so, too"
        assert _seen() == before, f"{first}; {second}; allow {allow}"
        assert tf32.allowed() is rounded
    assert refused or "mkldnn" in first, "no mixture that PyTorch refuses to read"


def test_a_setting_that_was_inherited_still_is() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with tf32.products(False):
        pass
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    assert not tf32.allowed()


def test_it_is_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), tf32.products(True):
        raise ValueError("inside")
    assert not tf32.allowed()


@pytest.mark.parametrize("statement", [s for s, rounds in STATEMENTS.items() if rounds])
def test_the_cuda_library_is_told(statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.ops.fbp_native, "allow_tf32", told.append, raising=False)
    exec(statement)
    _hand_on_tf32()
    _reset()
    _hand_on_tf32()
    assert told == [True, False]
