"""Captured graphs: one that fails while it is captured leaves nothing half done for the next."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from bench import contenders


class Streams:
    """Stands in for CUDA's streams and graphs, as PyTorch has them: a capture that cannot be ended stays current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        self.invalid = False
        self.underway: list[object] = []
        self.error = False
        streams = self

        class Stream:
            def wait_stream(self, other: object) -> None:
                pass

        class Graph:
            def __init__(self) -> None:
                self.captured = False

            def reset(self) -> None:
                if self in streams.underway:
                    streams.underway.remove(self)

            def replay(self) -> None:
                assert self.captured

        class Capture:
            def __init__(self, graph: Graph) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                assert not streams.underway
                assert streams.current == "default"
                streams.current = "capturing"
                streams.underway.append(self.graph)

            def __exit__(self, *_: object) -> None:
                if streams.invalid:
                    streams.invalid, streams.error = False, True
                    raise RuntimeError("operation failed due to a previous error during capture")
                streams.underway.remove(self.graph)
                self.graph.captured = True
                streams.current = "default"

        @contextmanager
        def on(stream: Stream) -> Iterator[None]:
            yield

        def synchronize() -> None:
            if self.error:
                self.error = False  # an error is told once
                raise RuntimeError("previous error")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch.cuda, "current_stream", self._current)
        monkeypatch.setattr(torch.cuda, "set_stream", self._set)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def _current(self) -> "_At":
        return _At(self.current)

    def _set(self, stream: "_At") -> None:
        self.current = stream.name


class _At:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: object) -> None:
        pass


def test_a_launch_that_fails_while_captured_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = Streams(monkeypatch)
    good = (torch.ones(1),)

    def fails() -> tuple[Tensor, ...]:
        if streams.current == "capturing":
            streams.invalid = True
            raise RuntimeError("invalid argument")
        return good

    with pytest.raises(RuntimeError):
        contenders._replayed(fails)
    assert streams.current == "default"
    assert streams.underway == []
    assert not streams.error
    assert contenders._replayed(lambda: good)() is good


def test_a_call_that_fails_by_itself_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)

    def fails() -> tuple[Tensor, ...]:
        raise RuntimeError("invalid argument")

    with pytest.raises(RuntimeError, match="invalid argument"):
        contenders._replayed(fails)
    assert streams.current == "default"
    assert streams.underway == []


def test_a_replayed_call_holds_what_its_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph knows addresses alone; memory that is freed would be somebody else's, or nobody's."""
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(contenders, "_captured", lambda run: (MagicMock(), run()))

    def call() -> tuple[contenders.Thunk, weakref.ref[Tensor]]:
        cotangent = torch.ones(3)
        return lambda: (cotangent + 1,), weakref.ref(cotangent)

    run, cotangent = call()
    replay = contenders._replayed(run)
    del run
    gc.collect()
    assert cotangent() is not None
    assert torch.equal(replay()[0], torch.full((3,), 2.0))
