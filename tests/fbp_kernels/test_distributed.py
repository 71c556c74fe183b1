"""Training in several processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import distributed
from .checks import fused


@pytest.mark.slow
@pytest.mark.parametrize("backend", [*fused("am_fbp"), "reference"])
def test_two_processes_get_the_gradients_of_the_whole_batch(backend: str, tmp_path: Path) -> None:
    out = tmp_path / "gradients.pt"
    script = str(Path(distributed.__file__))
    arguments = [str(tmp_path / "meeting"), str(out)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, backend, str(rank), *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    network = distributed.model("reference")
    distributed.loss(network, distributed.batch()).backward()
    got = torch.load(out, weights_only=True)
    assert got.keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)
