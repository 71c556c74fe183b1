"""Choosing a backend, and saying why one cannot run."""

import subprocess
import sys

import pytest
import torch

import fbp_kernels as fk
from fbp_kernels import backends, native

CALL = (torch.randn(2, 3), torch.randn(2, 4), torch.randn(3, 6), torch.randn(4, 6), 2)


def status(operator: str, backend: str, device: str = "cpu") -> backends.BackendStatus:
    listed = fk.available_backends(device)
    return next(s for s in listed if (s.operator, s.backend) == (operator, backend))


def test_the_native_extension_is_built_here() -> None:
    assert native.MISSING == ""
    for operator in ("fbp", "trunk_fbp", "am_fbp", "local_response_norm", "batch_norm"):
        assert status(operator, "native").available


def test_every_operator_is_listed_with_every_backend_and_reasons() -> None:
    listed = fk.available_backends()
    operators = {s.operator for s in listed}
    assert operators == set(fk.ops.__all__)
    assert len(listed) == len(operators) * len(backends.BACKENDS)
    assert all(s.available != bool(s.reason) for s in listed)
    assert all(s.available for s in listed if s.backend == "reference")


def test_operators_without_a_fused_kernel_say_so_and_never_fall_back_silently() -> None:
    assert "no native kernel for power_normalize" in status("power_normalize", "native").reason
    with pytest.raises(RuntimeError, match="power_normalize cannot run on backend 'native'"):
        fk.power_normalize(torch.randn(2, 3), backend="native")
    with pytest.raises(RuntimeError, match="attention_pool cannot run on backend 'native'"):
        fk.attention_pool(
            torch.randn(1, 2, 3),
            torch.randn(3, 2),
            torch.randn(2),
            torch.randn(2),
            1.0,
            backend="native",
        )


def test_native_does_not_claim_other_devices() -> None:
    assert "CPU" in status("fbp", "native", "cuda").reason


def test_the_environment_variable_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FBP_BACKEND", "reference")
    assert backends.resolve("fbp", None, "cpu") == "reference"
    assert backends.resolve("fbp", "native", "cpu") == "native", "an argument goes before it"
    monkeypatch.setenv("FBP_BACKEND", "native")
    with pytest.raises(RuntimeError, match="no native kernel"):
        fk.power_normalize(torch.randn(2, 3))
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
