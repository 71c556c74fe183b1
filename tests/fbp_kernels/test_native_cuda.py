"""The native backend on CUDA tensors, as far as it shows without a GPU: what is said and chosen, and that it links."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fbp_kernels import backends, doctor, native, ops, tf32, triton

ROOT = Path(__file__).parents[2]
BILINEAR = ("fbp", "trunk_fbp", "am_fbp")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library of CUDA kernels were there, and Triton not interpreted."""
    monkeypatch.setattr(native, "CUDA_MISSING", "")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_without_the_library_the_reason_is_that_of_the_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "CUDA_MISSING", "no CUDA compiler was found")
    assert native.why_not("cuda") == "no CUDA compiler was found"
    assert native.why_not("cpu") == ""
    with pytest.raises(RuntimeError, match="fbp cannot run on backend 'native': no CUDA compiler"):
        backends.resolve("fbp", "native", "cuda", torch.float32)
    assert "CUDA kernels: no CUDA compiler was found" in doctor.report()


def test_the_build_leaves_its_reason_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_native_cuda_missing.txt").write_text("no CUDA compiler was found\n")
    monkeypatch.setattr("fbp_kernels.__path__", [os.fspath(tmp_path)])
    expected = "the library of CUDA kernels was not built: no CUDA compiler was found"
    assert native._load("_native_cuda") == expected


def test_what_the_cuda_kernels_do_not_have_is_said_and_not_chosen(built: None) -> None:
    assert backends.resolve("fbp", None, "cuda", torch.float64) == "reference"
    with pytest.raises(RuntimeError, match="native CUDA kernels have no float64"):
        backends.resolve("fbp", "native", "cuda", torch.float64)
    assert backends.resolve("fbp", None, "cpu", torch.float64) == "native"


PLAIN = {
    "conv2d",
    "dropout",
}  # cuDNN is there; PyTorch's dropout is one kernel each way, whose mask a GPU draws


def test_no_operator_is_left_behind_on_a_gpu(built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for triton_there in (True, False):
        if not triton_there:
            monkeypatch.setattr(triton, "why_not", lambda *_: "Triton is not installed")
        for status in backends.available_backends("cuda"):
            chosen = backends.resolve(status.operator, None, "cuda", torch.bfloat16)
            if status.operator in PLAIN:
                assert chosen == "reference", status.operator
                continue
            assert chosen == "native" or (triton_there and chosen == "triton"), status.operator


def test_the_setting_for_tf32_is_handed_on_when_it_changes(
    built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.ops.fbp_native, "allow_tf32", told.append, raising=False)
    monkeypatch.setattr(native, "operation", lambda name: lambda *arguments: arguments)
    call = native.raw("anything")
    for allow in (False, True, True, False):
        with tf32.products(allow):
            assert call(1, 2) == (1, 2)
    assert told == [True, False]


@pytest.mark.slow
def test_the_library_builds_and_loads_where_torch_has_no_cuda(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    tools = {name: shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
             for name in ("cmake", "ninja")}  # fmt: skip
    if not all(tools.values()):
        pytest.skip("cmake and ninja are not both installed")
    # PTX is enough to link: what the assembler makes of it is `fbp_kernels.tools.ptxas`' business.
    for command in (
        ["-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
         f"-DPython_EXECUTABLE={sys.executable}", "-DFBP_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=90a-virtual"],
        ["--build", tmp_path, "--target", "_native_cuda"],
    ):  # fmt: skip
        done = subprocess.run(
            [str(tools["cmake"]), *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    alone = tuple(  # on the CPU
        f"fbp_native::{operator}"
        for operator in ops.__all__
        if "cuda" not in backends.kernel(operator, "native").devices
    )
    assert "fbp_native::fbp" not in alone
    code = (
        "import torch, fbp_kernels\n"
        f"torch.ops.load_library({os.fspath(tmp_path / '_native_cuda.so')!r})\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "kernels = torch._C._dispatch_get_registrations_for_dispatch_key('CPU')\n"
        "operators = [name for name in kernels if name.startswith('fbp_native::')]\n"
        "assert len(operators) >= 14\n"
        f"alone = {alone}\n"
        "for name in operators:\n"
        "    assert has(name, 'CUDA') != name.startswith(alone), name\n"
        "torch.ops.fbp_native.allow_tf32(True)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
