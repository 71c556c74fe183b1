"""Counters: zero when they are given out, and zero again when the last program has arrived."""

import pytest
import torch
import triton
import triton.language as tl

from fbp_kernels.triton import functions, workspace

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def new(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_arenas", "_streams"):
        monkeypatch.setattr(workspace, name, {})
    monkeypatch.setattr(workspace, "_full", [])


def test_counters_are_zero_enough_and_a_streams_own() -> None:
    first = workspace.counters(CPU, 1, 5)
    assert first.dtype == torch.int32
    assert first.numel() >= 5
    assert not first.any()
    assert workspace.counters(CPU, 1, 4).data_ptr() == first.data_ptr()
    first.fill_(1)
    assert not workspace.counters(CPU, 2, 5).any()
    assert not workspace.counters(CPU, 1, first.numel() + 1).any()


def test_counters_begin_where_kernels_are_compiled_for() -> None:
    """A launch that is prepared takes any, and so all have to be aligned as those of the first launch were."""
    for stream, count in enumerate((4097, 5001, 5, 4098)):
        assert workspace.counters(CPU, stream, count).data_ptr() % 16 == 0
    assert [workspace._take(CPU, count).data_ptr() % 16 for count in (1, 2, 3, 5)] == [0] * 4


def test_launches_of_a_kind_keep_what_a_stream_was_given() -> None:
    give = workspace.counting(CPU, 5)
    first, other = give(1), give(2)
    assert give(1) is first
    assert first.data_ptr() == workspace.counters(CPU, 1, 5).data_ptr() != other.data_ptr()


def test_a_captured_graph_has_counters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the stream was given before: a replay may run beside what follows on it."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    give = workspace.counting(torch.device("cuda", 0), 5)
    before = give(1)
    capturing = True
    graphs = {give(1).data_ptr() for _ in range(3)}
    capturing = False
    assert give(1) is before
    assert len(graphs) == 3
    assert before.data_ptr() not in graphs


@triton.jit
def _last(counters, arrivals, expected):
    if functions.arrive(counters + tl.program_id(1), expected):
        tl.store(arrivals + tl.program_id(1), tl.program_id(0) + 1)


def test_the_last_to_arrive_is_told_so_and_leaves_zero_behind() -> None:
    counters = workspace.counters(CPU, 0, 3)[:3]
    for _ in range(2):
        arrivals = torch.zeros(3, dtype=torch.int32)
        _last[(4, 3)](counters, arrivals, 4)
        assert arrivals.tolist() == [4, 4, 4], "the interpreter runs programs in order"
        assert not counters.any()


@triton.jit
def _tiles(rows_out, columns_out, rows, columns, GROUP: tl.constexpr):
    row, column = functions.swizzle(tl.program_id(0), rows, columns, GROUP)
    tl.store(rows_out + tl.program_id(0), row)
    tl.store(columns_out + tl.program_id(0), column)


def test_swizzle_visits_every_tile_once_and_groups_rows() -> None:
    for rows, columns, group in ((5, 3, 2), (1, 4, 8), (7, 1, 3)):
        at = [torch.empty(rows * columns, dtype=torch.int32) for _ in range(2)]
        _tiles[(rows * columns,)](*at, rows, columns, GROUP=group)
        tiles = list(zip(*(t.tolist() for t in at), strict=True))
        assert sorted(tiles) == [(r, c) for r in range(rows) for c in range(columns)]
        high = min(group, rows)
        assert [t[0] for t in tiles[:high]] == list(range(high))
        assert {t[1] for t in tiles[:high]} == {0}


def test_a_full_arena_outlives_its_successor() -> None:
    """Graphs that were captured count in it, by address."""
    address = workspace._take(CPU, workspace._ARENA).data_ptr()
    workspace._take(CPU, 5)
    assert address in [arena.data_ptr() for arena in workspace._full]
