"""The shim in the place of the native backend's library."""

from collections.abc import Iterator

import pytest
import torch

from fbp_kernels import native

from . import shim as shim_module
from .shim import Shim


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shim]:
    """Runs what the test calls of the native backend through the CUDA sources."""
    shim = shim_module.load()
    monkeypatch.setattr(native, "operation", lambda name: getattr(shim, name))
    shim.spoiled()
    calls, threads = shim.calls, torch.get_num_threads()
    torch.set_num_threads(1)  # the reference's tensors are small, and others test beside
    yield shim
    torch.set_num_threads(threads)
    shim.tf32(False)
    shim.fixed_order = shim.fixed_capability = None
    shim.multiprocessors(4)
    shim.terms()
    shim.fail_launch(-1)
    assert shim.calls > calls, "the test did not run the CUDA kernels"
    assert shim.spoiled() == 0, "memory around a tensor was written to"
