"""Reads a trace of torch.profiler: which range every operation, kernel and allocation belongs to.

In the forward, that is the innermost open range of `profiling.ranges`. In the backward it is the range in which
the forward operation ran that put the node into autograd's graph: nodes are numbered in the order of their
creation, a forward operation's event carries the number that the next node will get, a backward
event that of its own node. So node n was created by the last forward operation whose number is at most n.

The format is Chrome's trace events (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU), as Kineto
writes it; all times are microseconds.
"""

import gzip
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiling.ranges import PREFIX

STEP, DATA, FORWARD, LOSS, BACKWARD, OPTIMIZER = (
    "step", "data", "forward", "loss", "backward", "optimizer",
)  # fmt: skip
PHASES = (DATA, FORWARD, LOSS, BACKWARD, OPTIMIZER)
EVALUATE = "autograd::engine::evaluate_function: "
_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_ROUNDING = 0.002  # microseconds by which a child may seem to outlive its parent


@dataclass(eq=False)
class Span:
    """Something that ran on a thread of the host.

    Attributes:
        name: an operation's, or a range's without its prefix.
        is_range: whether it is one of our ranges.
        is_operation: whether it is an operation of PyTorch (not a range, not a call of the driver).
        thread: where it ran.
        start: when.
        end: when it ended.
        args: the event's, such as "Sequence number".
        parent: what it ran in.
        inside: time of what ran directly in it.
        owner: the range that it belongs to.
        backward: whether it ran in the backward of its owner.
    """

    name: str
    is_range: bool
    is_operation: bool
    thread: int
    start: float
    end: float
    args: dict[str, Any] = field(default_factory=dict)
    parent: "Span | None" = None
    inside: float = 0.0
    owner: str = ""
    backward: bool = False

    @property
    def duration(self) -> float:
        return self.end - self.start

    @property
    def itself(self) -> float:
        """Its time without what ran in it."""
        return max(self.duration - self.inside, 0.0)

    def ancestors(self) -> Iterator["Span"]:
        """Itself, then outwards."""
        span: Span | None = self
        while span is not None:
            yield span
            span = span.parent


@dataclass(frozen=True)
class Kernel:
    """Something that ran on the device, and the call on the host that launched it, where that is known."""

    name: str
    start: float
    end: float
    launch: Span | None


@dataclass(frozen=True)
class Allocation:
    """Bytes that an allocator gave out (above 0) or took back (below 0).

    Attributes:
        time: when.
        size: bytes.
        address: of the block.
        on_host: whether it is the host's memory.
        span: what ran, if anything.
    """

    time: float
    size: int
    address: int
    on_host: bool
    span: Span | None


class Trace:
    """The events of a trace, put in relation.

    Args:
        events: "traceEvents" of the file.

    Raises:
        ValueError: the trace holds no step of ours.

    Attributes:
        steps: the ranges around whole steps, in order.
        spans: all that ran on the host, parents first.
        kernels: all that ran on a device.
        allocations: in the order of time.
    """

    def __init__(self, events: Iterable[dict[str, Any]]) -> None:
        events = list(events)
        self.spans = _nested(events)
        self.steps = [s for s in self.spans if s.is_range and s.name == STEP]
        if not self.steps:
            raise ValueError(f"the trace holds no range {PREFIX + STEP!r}; was it recorded here?")
        self._by_thread: dict[int, list[Span]] = {}
        for span in self.spans:
            self._by_thread.setdefault(span.thread, []).append(span)
        self._starts = {t: [s.start for s in spans] for t, spans in self._by_thread.items()}
        _assign_owners(self.spans, self.steps[0].thread)
        self.kernels = _kernels(events, self.spans)
        self.allocations = [self._allocation(e) for e in events if e.get("name") == "[memory]"]
        self.allocations.sort(key=lambda a: a.time)

    @classmethod
    def load(cls, path: Path) -> "Trace":
        """Reads a trace, gzipped where its name ends in .gz.

        Raises:
            ValueError: it is no trace, or holds no step of ours.
        """
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            events = json.loads(raw)["traceEvents"]
        except (gzip.BadGzipFile, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a trace of torch.profiler") from None
        return cls(events)

    def running(self, thread: int, time: float) -> Span | None:
        """The innermost span that ran on a thread at a time."""
        spans = self._by_thread.get(thread, [])
        place = bisect_right(self._starts.get(thread, []), time)
        if place == 0:
            return None
        return next((s for s in spans[place - 1].ancestors() if time <= s.end), None)

    def in_step(self, step: Span) -> list[Span]:
        """What ran on any thread during a step, the step's own range included."""
        return [s for s in self.spans if step.start <= s.start and s.end <= step.end + _ROUNDING]

    def milliseconds(self, span: Span) -> float:
        """What a span took: on a device, of the kernels launched in it; else of the host."""
        if not self.kernels:
            return span.duration / 1e3
        inside = (k for k in self.kernels if k.launch and span in k.launch.ancestors())
        return sum(k.end - k.start for k in inside) / 1e3

    def _allocation(self, event: dict[str, Any]) -> Allocation:
        args = event["args"]
        return Allocation(
            event["ts"],
            args["Bytes"],
            args["Addr"],
            args["Device Type"] == 0,
            self.running(event["tid"], event["ts"]),
        )


def _nested(events: list[dict[str, Any]]) -> list[Span]:
    """The host's spans, each knowing its parent, ordered by start and parents before children."""
    spans = []
    for event in events:
        category = event.get("cat")
        if event.get("ph") == "X" and category in _HOST:
            name = event["name"]
            start = event["ts"]
            spans.append(
                Span(
                    name.removeprefix(PREFIX),
                    category == "user_annotation" and name.startswith(PREFIX),
                    category == "cpu_op",
                    event["tid"],
                    start,
                    start + event["dur"],
                    event.get("args", {}),
                )
            )
    spans.sort(key=lambda s: (s.start, -s.end))
    stacks: dict[int, list[Span]] = {}
    for span in spans:
        stack = stacks.setdefault(span.thread, [])
        while stack and stack[-1].end + _ROUNDING < span.end:
            stack.pop()
        if stack:
            span.parent = stack[-1]
            span.parent.inside += span.duration
        stack.append(span)
    return spans


def _assign_owners(spans: list[Span], thread: int) -> None:
    """Finds every span's range; `thread` is the one that takes the steps. Forwards come before their backwards."""
    numbers: list[int] = []
    creators: list[Span] = []
    for span in spans:
        number = span.args.get("Sequence number", -1)
        if span.is_range:
            span.owner, span.backward = span.name, span.name == BACKWARD
        elif span.name.startswith(EVALUATE):
            place = bisect_right(numbers, number)
            # A node without a number, one that accumulates a gradient, belongs to nobody.
            span.owner = creators[place - 1].owner if place else BACKWARD
            span.backward = True
        elif span.parent is not None:
            span.owner, span.backward = span.parent.owner, span.parent.backward
        else:  # a thread of autograd, between two nodes
            span.owner, span.backward = BACKWARD, True
        made_forward = span.is_operation and not span.args.get("Fwd thread id")
        if made_forward and span.thread == thread and number >= (numbers[-1] if numbers else 0):
            numbers.append(number)  # a thread's numbers only rise; others are of no graph
            creators.append(span)


def _kernels(events: list[dict[str, Any]], spans: list[Span]) -> list[Kernel]:
    """What ran on devices, each with the call that launched it, found by their common number."""
    launches = {s.args["correlation"]: s for s in spans if "correlation" in s.args}
    return [
        Kernel(
            event["name"],
            event["ts"],
            event["ts"] + event["dur"],
            launches.get(event.get("args", {}).get("correlation")),
        )
        for event in events
        if event.get("ph") == "X" and event.get("cat") in _DEVICE
    ]
