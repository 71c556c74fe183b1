"""What reaches the driver when kernels are launched: Triton's own launcher, at a stub that runs nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

HERE = Path(__file__).parent
INCLUDE = Path(triton.__file__).parent / "backends" / "nvidia" / "include"


@pytest.mark.slow
def test_kernels_get_their_arguments_in_order_and_are_compiled_once_for_any_batch(
    tmp_path: Path,
) -> None:
    stub = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", f"-I{INCLUDE}", str(HERE / "driver_stub.c"), "-o", str(stub)],
        check=True,
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),  # modules there are linked to the stub
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "launching.py"), str(stub)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    variants = {entry["compiled"]: entry["variants"] for entry in lines if "compiled" in entry}
    assert len(variants) == 3
    assert set(variants.values()) == {1}, "a batch of another size compiled something"
    launches = [entry for entry in lines if "kernel" in entry]
    assert {entry["kernel"] for entry in launches} >= {
        "forward_kernel", "projection_gradients_kernel", "gradients_kernel",
        "weights_backward_kernel", "inputs_backward_kernel", "parameters_backward_kernel",
        "local_response_norm_forward_kernel", "power_normalize_forward_kernel",
    }  # fmt: skip
    for entry in launches:
        assert entry["launched"] == 1, entry
        assert entry["in order"], entry
        assert entry["tensors"] >= 2, entry
        assert len(set(entry["grid"])) == 1, entry
        assert len(set(entry["threads"])) == 1, entry
