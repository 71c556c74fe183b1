"""The shim itself: it runs right kernels right, and tells of mistakes; see `tests/cuda_shim/probes.cpp`."""

import ctypes
import mmap

import pytest
import torch

from .shim import ORDERS, Shim, load


@pytest.fixture
def library() -> Shim:
    library = load()
    library.device(9, 4)
    return library


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("some_skip_the_barrier", "40 wait at the barrier probes.cpp"),
        ("different_barriers", "threads meet at different barriers"),
        ("a_lane_skips_the_shuffle", "31 wait in __shfl_xor_sync"),
        ("the_mask_lacks_the_lane", "the mask lacks the lane that asks"),
        ("lanes_at_different_shuffles", "lanes of a warp meet in"),
        ("lanes_in_different_operations", "lanes of a warp meet in"),
        ("beyond_shared_memory", "outside of all memory that there is"),
        ("a_little_beyond_shared_memory", "dynamic shared memory was written beyond its end"),
        ("misaligned", "an access that is not aligned"),
        ("misaligned_in_shared_memory", "an access that is not aligned"),
        ("a_copy_from_a_misaligned_place", "copy that is not aligned"),
        ("a_copy_to_a_misaligned_place", "copy that is not aligned"),
        ("beyond_an_array", "not within an array"),
        ("a_copy_that_nobody_waits_for", "ends before it has waited for its copies"),
        ("a_fragment_that_is_not_aligned", "not a multiple of 32 bytes"),
        ("nobody", "a trap"),
        ("a_block_skips_the_barrier_of_its_cluster", "32 wait at the cluster's barrier probes.cpp"),
        ("a_block_that_the_cluster_lacks", "the cluster has no block"),
        ("static_memory_of_another_block", "not in dynamic shared memory"),
        ("a_barrier_that_is_not_there", "the barrier is not initialised"),
        ("more_arrivals_than_are_counted", "more arrivals than the barrier counts"),
        ("a_barrier_that_copies_do_not_know", "no fence since the barrier was initialised"),
        ("bytes_that_never_come", "128 wait for a phase of an mbarrier"),
        ("a_bulk_copy_to_a_misaligned_place", "not a multiple of 128"),
        ("registers_that_nobody_gave", "wait for registers"),
        ("a_product_without_a_fence", "without a wgmma fence"),
        ("a_product_that_nobody_waits_for", "ends before it has waited for its products"),
        ("an_operand_outside_of_shared_memory", "outside of shared memory"),
        ("warps_that_multiply_different_things", "ask for different products"),
    ],
)
def test_mistakes_are_errors(library: Shim, kernel: str, said: str) -> None:
    for order in ORDERS:
        library.order(order, 3)
        found = library.probe(kernel)
        assert found.startswith(f"{kernel}: block (") or "beyond its end" in found
        assert said in found


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("a_bulk_copy_that_nobody_waits_for", "ends before its bulk copies have come"),
        ("registers_of_some_warps", "not all warps of a warpgroup"),
    ],
)
def test_mistakes_that_show_when_a_block_ends(library: Shim, kernel: str, said: str) -> None:
    library.order("forward")  # what is asynchronous takes place as late as can be
    assert said in library.probe(kernel)


@pytest.mark.parametrize("layout", ["columns", "depth", "registers"])
@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_operands_of_products_lie_as_descriptors_say(
    library: Shim, chunks: int, layout: str
) -> None:
    """Lines of 16 to 128 bytes, laid by bulk copies with the swizzle for them."""
    for order in ORDERS:
        library.order(order, 5)
        assert library.probe(f"layouts_{chunks}_{layout}") == ""


@pytest.mark.parametrize(
    "kernel",
    [
        "a_bulk_copy_read_too_early",
        "written_without_a_proxy_fence",
        "no_barrier",
        "not_written",
        "not_waited_for",
        "no_barrier_before_a_neighbour_is_read",
        "no_barrier_after_a_neighbour_was_read",
    ],
)
def test_mistakes_of_order_spoil_results(library: Shim, kernel: str) -> None:
    for order in ORDERS:
        library.order(order, 3)
        assert library.probe(kernel) == "wrong"


def test_results_that_depend_on_the_order_of_blocks_differ(library: Shim) -> None:
    found = []
    for order in ORDERS[:2]:
        library.order(order)
        found.append(library.probe("last_block_wins"))
    assert found == ["wrong", ""]


@pytest.mark.parametrize(
    "kernel",
    [
        "barriers", "boxes", "multicast", "handed_registers", "written_before_a_proxy_fence", "clusters",
        "warps", "half_product", "bfloat16_product", "tf32_product", "tf32_of_registers", "rounding",
    ],
)  # fmt: skip
def test_right_kernels_have_right_results(library: Shim, kernel: str) -> None:
    for order in ORDERS:
        library.order(order, 7)
        assert library.probe(kernel) == ""


def test_what_lands_in_the_turn_of_another_block_is_not_lost(library: Shim) -> None:
    for seed in range(300):
        library.order("shuffled", seed)
        assert library.probe("copy_of_one_block") == ""


@pytest.mark.parametrize("end", [True, False])
def test_guarded_tensors_are_nan_and_meet_a_page(library: Shim, end: bool) -> None:
    library.spoiled()
    with library.guarded(end):
        x = torch.empty(5)
    assert x.isnan().all()
    # Of the 32 bytes at the end, the last 12 can be touched, but not changed.
    assert x.data_ptr() % mmap.PAGESIZE == (mmap.PAGESIZE - 32 if end else 0)
    del x
    assert library.spoiled() == 0


def test_what_changes_around_a_guarded_tensor_is_found(library: Shim) -> None:
    library.spoiled()
    with library.guarded():
        x = torch.empty(5)
    ctypes.memset(x.data_ptr() + 20, 0, 1)
    del x
    assert library.spoiled() == 1
