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
        assert not (first and entry["prepared"]), f"not met before, and not bound: {entry}"
        assert all(entry["prepared"]), entry
        assert entry["direct"], f"Triton's launcher was not understood: {entry}"
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


@pytest.mark.slow
def test_prepared_launches_keep_to_their_device_stream_graph_and_table(
    tmp_path: Path,
) -> None:
    found = {entry.pop("what"): entry for entry in lines("placing.py", tmp_path)}
    assert all(entry["tensor"] for entry in found.values())
    bound = {what: entry["bound"] for what, entry in found.items() if entry["bound"]}
    again = found.pop("forgotten")
    assert bound == {"first on 0": [0], "first on 1": [1], "forgotten": [0]}
    (grid,) = {entry["grid"] for entry in found.values()}
    assert again["grid"] == 2 * grid, "as another table has it, only where what was is forgotten"
    functions = {what: entry["function"] for what, entry in found.items()}
    on_1 = {functions[what] for what in ("first on 1", "again on 1")}
    assert len(on_1) == 1
    assert (
        {functions[what] for what in found if not what.endswith("on 1")}
        == {functions["first on 0"]}
        != on_1
    )
    assert all(entry["on"] == int(what.endswith("on 1")) for what, entry in found.items())
    assert found["again on 0, 1 is the current one"]["current"] == 1, "set back"
    assert {what for what, entry in found.items() if entry["stream"] == 8} == {"another stream"}

    counters = {what: entry["counters"] for what, entry in found.items()}
    own = counters["again on 0"]
    assert counters["again on 0, 1 is the current one"] == counters["after the capture"] == own
    graphs = [counters["captured"], counters["captured again"]]
    others = [counters["again on 1"], counters["another stream"], *graphs]
    assert len({own, *others}) == 5, "a graph counts for good, whatever runs beside its replays"
