"""Choosing a backend, and saying why one cannot run."""

import subprocess
import sys
from typing import Any

import pytest
import torch

import fbp_kernels as fk
from fbp_kernels import backends, native, triton

from .checks import fused

CALL = (torch.randn(2, 3), torch.randn(2, 4), torch.randn(3, 6), torch.randn(4, 6), 2)
TRUNKS = tuple(torch.randn(s) for s in ((2, 5, 3), (2, 5, 4), (5, 3, 6), (5, 4, 6)))
CALLS: dict[str, tuple[Any, ...]] = {
    "fbp": CALL,
    "trunk_fbp": (*TRUNKS, 2),
    "am_fbp": (*CALL[:2], *TRUNKS[:2], *CALL[2:4], *TRUNKS[2:], 2, 2),
    "attention_pool": (torch.randn(2, 5, 3), torch.randn(3, 4), torch.ones(4), torch.ones(4), 2.0),
    "local_response_norm": (torch.randn(2, 3, 4),),
    "conv2d": (torch.randn(2, 3, 4, 5), torch.randn(6, 3, 3, 3)),
    "dropout": (torch.randn(2, 3),),
    "power_normalize": (torch.randn(2, 3),),
}
TRITON = [o for o in CALLS if "triton" in fused(o)]


def status(operator: str, backend: str, device: str = "cpu") -> backends.BackendStatus:
    listed = fk.available_backends(device)
    return next(s for s in listed if (s.operator, s.backend) == (operator, backend))


def test_the_native_extension_is_built_here() -> None:
    assert native.MISSING == ""
    for operator in fk.ops.__all__:
        assert status(operator, "native").available


def test_every_operator_is_listed_with_every_backend_and_reasons() -> None:
    listed = fk.available_backends()
    operators = {s.operator for s in listed}
    assert operators == set(fk.ops.__all__)
    assert len(listed) == len(operators) * len(backends.BACKENDS)
    assert all(s.available != bool(s.reason) for s in listed)
    assert all(s.available for s in listed if s.backend == "reference")


def test_operators_without_a_fused_kernel_say_so_and_never_fall_back_silently() -> None:
    assert "no triton kernel for batch_norm" in status("batch_norm", "triton").reason
    with pytest.raises(RuntimeError, match="batch_norm cannot run on backend 'triton'"):
        fk.batch_norm(torch.randn(2, 3, 4), torch.ones(3), torch.zeros(3), backend="triton")


def test_an_operator_may_have_kernels_for_some_devices_alone() -> None:
    assert status("dropout", "native").available
    monkey = status("dropout", "native", "cuda")
    assert not monkey.available
    if not native.CUDA_MISSING:
        assert monkey.reason == "this version has no native kernel for dropout on cuda"
    assert backends.resolve("dropout", None, "cuda") == "reference"


def float64(*tensors: Any) -> list[Any]:
    return [t.double() if isinstance(t, torch.Tensor) else t for t in tensors]


def test_triton_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.why_not("cpu") == "", "the tests run with Triton's interpreter"
    assert "have no float64" in triton.why_not("cpu", torch.float64)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "run on a GPU, the tensors are on cpu (TRITON_INTERPRET=1" in triton.why_not("cpu")
    assert triton.why_not("cuda") == ""
    monkeypatch.setattr(triton, "_INSTALLED", False)
    assert triton.why_not("cuda") == "Triton is not installed"


def test_calls_do_not_look_up_whether_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile of torch 2.11 does not trace that: a graph break in every call on a GPU."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: pytest.fail("looked up in a call"))
    for device in ("cpu", "cuda"):
        backends.resolve("fbp", "triton", device, torch.float32)


@pytest.mark.parametrize("operator", TRITON)
def test_triton_refuses_float64_by_name(operator: str) -> None:
    assert status(operator, "triton").available
    with pytest.raises(
        RuntimeError,
        match=f"{operator} cannot run on backend 'triton': the Triton kernels have no float64",
    ):
        getattr(fk, operator)(*float64(*CALLS[operator]), backend="triton")


@pytest.mark.parametrize("operator", fk.ops.__all__)
def test_nobody_gets_the_interpreter_who_did_not_ask(operator: str) -> None:
    chosen = backends.resolve(operator, None, "cpu", torch.float32)
    assert chosen == ("native" if status(operator, "native").available else "reference")


def test_the_environment_may_ask_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBP_BACKEND", "triton")
    for operator in TRITON:
        assert backends.resolve(operator, None, "cpu", torch.float32) == "triton"
        with pytest.raises(RuntimeError, match="float64"):
            backends.resolve(operator, None, "cpu", torch.float64)


def test_importing_does_not_import_triton() -> None:
    code = (
        "import sys, fbp_kernels; fbp_kernels.available_backends(); print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_native_does_not_claim_other_devices() -> None:
    assert "are on mps" in status("fbp", "native", "mps").reason


def test_the_environment_variable_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBP_BACKEND", "reference")
    assert backends.resolve("fbp", None, "cpu") == "reference"
    assert backends.resolve("fbp", "native", "cpu") == "native", "an argument goes before it"
    monkeypatch.setenv("FBP_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="no triton kernel"):
        fk.batch_norm(torch.randn(2, 3, 4), torch.ones(3), torch.zeros(3))
    monkeypatch.setenv("FBP_BACKEND", "best")
    with pytest.raises(ValueError, match="environment variable FBP_BACKEND is 'best'"):
        fk.fbp(*CALL)
    monkeypatch.delenv("FBP_BACKEND")
    assert backends.resolve("fbp", None, "cpu") == "native"


def test_a_missing_extension_is_reported_and_the_reference_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "MISSING", "the C++ extension was not built: no C++ compiler")
    assert status("fbp", "native").reason == native.MISSING
    assert backends.resolve("fbp", None, "cpu") == "reference"
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        fk.fbp(*CALL, backend="native")


def test_a_broken_library_does_not_break_the_import(tmp_path) -> None:
    package = tmp_path / "fbp_kernels"
    package.mkdir()
    (package / "_native.so").write_bytes(b"not a library")
    code = (
        f"import fbp_kernels; fbp_kernels.__path__.insert(0, r'{package}')\n"
        "from fbp_kernels import native; print(native._load())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "does not load with torch" in done.stdout


def test_doctor_prints_the_table() -> None:
    command = [sys.executable, "-m", "fbp_kernels", "doctor"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for s in fk.available_backends():
        row = next(r for r in printed.splitlines() if r.split()[:2] == [s.operator, s.backend])
        assert row.split()[2].startswith("yes" if s.available else "no")
        assert s.reason in row
