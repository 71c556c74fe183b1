"""Counters: zero when they are given out, and zero again when the last program has arrived."""

import pytest
import torch
import triton
import triton.language as tl

from fbp_kernels.triton import functions, workspace


def test_counters_are_zero_and_enough() -> None:
    first = workspace.counters(torch.device("cpu"), 5)
    assert first.dtype == torch.int32
    assert first.numel() >= 5
    assert not first.any()
    first.fill_(1)
    assert not workspace.counters(torch.device("cpu"), 5).any()


def test_counters_are_made_where_only_the_compiler_runs() -> None:
    assert workspace.counters(torch.device("meta"), 5).is_meta


@triton.jit
def _last(counters, arrivals, expected):
    if functions.arrive(counters + tl.program_id(1), expected):
        tl.store(arrivals + tl.program_id(1), tl.program_id(0) + 1)


def test_the_last_to_arrive_is_told_so_and_leaves_zero_behind() -> None:
    counters = workspace.counters(torch.device("cpu"), 3)
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


def test_a_full_arena_outlives_its_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that were captured count in it, by address."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(workspace, "_arenas", {})
    monkeypatch.setattr(workspace, "_full", [])
    address = workspace._take(torch.device("cpu"), workspace._ARENA).data_ptr()
    workspace._take(torch.device("cpu"), 5)
    assert address in [arena.data_ptr() for arena in workspace._full]
