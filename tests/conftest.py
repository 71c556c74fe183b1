"""Before anything imports Triton or PyTorch: what both are told through the environment."""

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

# An interpreter stands in for a GPU.
os.environ["TRITON_INTERPRET"] = "1"
# Tests run in several processes: a thread that waits must not keep a core from the others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out, and says so, what is slow and would begin after SLOW_TESTS_UNTIL (seconds since 1970)."""
    until = os.environ.get("SLOW_TESTS_UNTIL")
    if until and item.get_closest_marker("slow") and time.time() > float(until):
        pytest.skip("slow, and its time was over (SLOW_TESTS_UNTIL)")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """What is imported stays: to look for cycles in it, again and again, took a sixth of the collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def choices_of_gpus() -> dict[Any, Any]:
    """What there is to choose if no processor had been measured."""
    from fbp_kernels import backends, choice, ops  # noqa: F401

    gpus = [row for row in choice.table() if row.target == choice.GPU]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "measured", lambda: gpus)
        patch.setattr(backends, "_choices", {})
        backends.read_table()
        return backends._choices


@pytest.fixture(autouse=True)
def no_processor_measured(choices_of_gpus: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which backend a test gets does not depend on figures that are taken anew."""
    from fbp_kernels import backends

    monkeypatch.setattr(backends, "_choices", choices_of_gpus)
