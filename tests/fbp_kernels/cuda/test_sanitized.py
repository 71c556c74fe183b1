"""What `bench/gpu.sh` runs under compute-sanitizer on a GPU reaches the kernels that only Hopper has."""

import pytest

from bench.operators import SUBJECTS, Draw
from bench.operators.call import forward, on_backend

from .shim import Shim

SERVED = [
    ("tiny", "bfloat16", False),
    ("few", "bfloat16", True),
    ("many", "bfloat16", True),
    ("many", "tf32", True),
]


@pytest.mark.parametrize(("label", "dtype", "served"), SERVED)
def test_the_shapes_for_hoppers_kernels_are_served_by_them(
    shim: Shim, label: str, dtype: str, served: bool
) -> None:
    """Told by the threads of a block: the same sizes with inputs of stride 0 have those of the tiles."""
    shim.fixed_capability = 9
    shim.tf32(dtype == "tf32")
    threads = []
    for name in ("am_fbp", "am_fbp_tiles"):
        call = SUBJECTS[name].make(SUBJECTS[name].sizes[label], Draw(dtype))
        run = forward(on_backend(call.function, "native"), call.tensors)
        threads.append(shim.threads(run))
    assert (threads[0] != threads[1]) == served
