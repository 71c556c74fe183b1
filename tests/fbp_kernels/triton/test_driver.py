"""What reaches the driver when kernels are launched: Triton's own launcher, at a stub that runs nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import stub

HERE = Path(__file__).parent
ROOT = Path(stub.__file__).parents[1]


def lines(program: str, folder: Path) -> list[dict[str, Any]]:
    """What a program here prints that launches at the stub, built into a folder."""
    environment = stub.build(folder) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / program), str(folder / stub.LIBRARY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_prepared_launches_are_what_triton_would_have_launched(tmp_path: Path) -> None:
    found = lines("preparing.py", tmp_path)
    assert len(found) > 60
    for entry in found:
        first = entry["turn"] == "first"
        launches = entry["bound"] if first else len(entry["prepared"])
        assert launches, entry
        assert entry["bound"] == (launches if first else 0), f"met before, bound again: {entry}"
        assert all(entry["prepared"]), entry
        if entry["turn"] == "heard":
            assert entry["heard"] == 2 * launches, (
                f"by a profiler, here and as Triton does it: {entry}"
            )


@pytest.mark.slow
def test_kernels_get_their_arguments_in_order_and_are_compiled_once_for_any_batch(
    tmp_path: Path,
) -> None:
    found = lines("launching.py", tmp_path)
    variants = {entry["compiled"]: entry["variants"] for entry in found if "compiled" in entry}
    assert len(variants) == 3
    assert set(variants.values()) == {1}, "a batch of another size compiled something"
    launches = [entry for entry in found if "kernel" in entry]
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
