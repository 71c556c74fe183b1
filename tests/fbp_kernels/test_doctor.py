"""What the doctor says of Triton and of a GPU."""

import importlib.util

import pytest
import torch
import triton

from fbp_kernels import doctor
from fbp_kernels.triton import tuning


def _line(start: str) -> str:
    (line,) = (line for line in doctor.report().splitlines() if line.strip().startswith(start))
    return line.strip()


def test_it_names_triton_and_what_runs_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted = (
        f"Triton: {triton.__version__}, interpreted (TRITON_INTERPRET=1): to check kernels"
    )
    assert _line("Triton:").startswith(interpreted)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert _line("Triton:") == f"Triton: {triton.__version__}, compiled for GPUs"


def test_it_says_that_triton_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _line("Triton:") == "Triton: not installed; GPU builds of PyTorch for Linux bring it"


@pytest.mark.parametrize(
    ("capability", "serving"),
    [((8, 0), "sm80"), ((8, 9), "sm80"), ((9, 0), "sm90"), ((10, 0), "sm100"), ((12, 0), "sm80")],
)
def test_it_says_whose_configurations_a_gpu_has(
    capability: tuple[int, int], serving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.delenv(tuning.ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Made Up 9000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    name = ".".join(map(str, capability))
    said = f"Triton kernels: capability {name} has the configurations of {serving}, not searched"
    assert _line("Triton kernels").startswith(said)
    monkeypatch.setenv(tuning.ENVIRONMENT, "1")
    assert "searched for at first calls (FBP_AUTOTUNE)" in _line("Triton kernels")
