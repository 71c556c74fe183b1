"""What `avemo serve` bears: many clients at once, each asking again as soon as it is answered.

Nothing may be lost: every request is answered, by a prediction or by status 429. The server is a process of its own.
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import machine
from .records import Spread

VERSION = 2
_START_SECONDS = 180
_ALONE, _FIRST = (
    22,
    2,
)  # times that a clip is asked about when nobody else does; the first ones start processes
_PAUSE = 0.5  # seconds that a client waits after a 429, less than it is told to: overload is what is measured


@dataclass
class Load:
    """What came of it.

    Attributes:
        clients: at once.
        seconds: of asking.
        statuses: answers by HTTP status; "lost" where there was none.
        different: predictions other than the first one of the same clip.
        latency: seconds to a prediction; None where there was none.
        alone: seconds to a prediction when nobody else asks.
        warm: seconds that `avemo predict` takes of the same clip once it is started: reading, asking and drawing.
        clip_seconds: of the clip.
        memory: bytes of the server with its processes, one figure a second.
    """

    clients: int
    seconds: float
    statuses: dict[str, int] = field(default_factory=dict)
    different: int = 0
    latency: Spread | None = None
    alone: Spread | None = None
    warm: Spread | None = None
    clip_seconds: float = 0.0
    memory: list[int] = field(default_factory=list)


def run_load(checkpoint: Path, clip: Path, clients: int, seconds: float) -> Load:
    """Starts a server and puts it under load.

    Args:
        checkpoint: its model.
        clip: what every client sends.
        clients: how many.
        seconds: how long they ask.
    """
    load = Load(clients, seconds)
    load.warm, load.clip_seconds = _warm(checkpoint, clip)
    with running(checkpoint) as (address, pid):
        asyncio.run(_ask(load, address, clip.read_bytes(), pid))
    return load


@contextmanager
def running(checkpoint: Path) -> Iterator[tuple[str, int]]:
    """The address and the process of a server that answers until the context is left.

    Raises:
        RuntimeError: it does not start.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "avemo", "serve", str(checkpoint), "--port", port]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{address}/api/about", trust_env=False).raise_for_status()
                break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server of {checkpoint} does not start")
            time.sleep(0.1)
        yield address, server.pid
    finally:
        server.terminate()
        server.wait()


def _warm(checkpoint: Path, clip: Path) -> tuple[Spread, float]:
    """Seconds that `predict` takes of a clip in a process that has done so before, and seconds of the clip."""
    from avemo.evaluation.clips import results
    from avemo.evaluation.decoding import Piece, decoder, windows_of
    from avemo.training.checkpoint import load
    from avemo.training.description import wanted

    trained, model = load(checkpoint), wanted(checkpoint)
    windows = windows_of(model.seconds, None, None)
    decode = decoder(model.features, None, windows, model.needs)
    samples = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(_ALONE):
            begun = time.monotonic()
            pieces = list(decode((0, clip)))
            numbered = ((0, piece) for piece in pieces)
            list(results(trained, [clip], numbered, windows, [Path(folder, "picture")], "svg"))
            samples.append(time.monotonic() - begun)
    seconds = sum(piece.duration for piece in pieces if isinstance(piece, Piece))
    return Spread.of(samples[_FIRST:]), seconds


async def _ask(load: Load, address: str, content: bytes, pid: int) -> None:
    import httpx

    bounds = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=address, timeout=120, limits=bounds, trust_env=False
    ) as client:
        alone = []
        expected = None
        for _ in range(_ALONE):
            begun = time.monotonic()
            response = await client.post("/api/predictions", content=content)
            response.raise_for_status()
            expected = response.json()
            alone.append(time.monotonic() - begun)
        load.alone = Spread.of(alone[_FIRST:])
        end = time.monotonic() + load.seconds
        statuses: Counter[str] = Counter()
        taken: list[float] = []

        async def one() -> None:
            while time.monotonic() < end:
                begun = time.monotonic()
                try:
                    answer = await client.post("/api/predictions", content=content)
                except httpx.HTTPError:
                    statuses["lost"] += 1
                    continue
                statuses[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    taken.append(time.monotonic() - begun)
                    load.different += answer.json() != expected
                else:
                    await asyncio.sleep(_PAUSE)

        async def watch() -> None:
            while time.monotonic() < end:
                load.memory.append(_memory(pid))
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(one() for _ in range(load.clients)))
    load.statuses = dict(sorted(statuses.items()))
    load.latency = Spread.of(taken) if taken else None


def _memory(pid: int) -> int:
    """Bytes that a process and those below it hold, what they share counted in parts."""
    import psutil

    total = 0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended
            total += process.memory_full_info().pss
    return total


def main() -> int:
    """The command line; the exit status is 1 where something was lost or differed."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--out", type=Path, help="file or folder; there it is serve-DEVICE-DATE.json"
    )
    given = parser.parse_args()
    load = run_load(given.checkpoint, given.clip, given.clients, given.seconds)
    answered = ", ".join(f"{status}: {count}" for status, count in load.statuses.items())
    print(f"{load.clients} clients for {load.seconds:g} s: {answered}; {load.different} differ")
    spreads = (("predict, warm", load.warm), ("alone", load.alone), ("under load", load.latency))
    for what, spread in spreads:
        if spread:
            print(f"{what}: {spread.median:.3f} s ({spread.low:.2f} to {spread.high:.2f})")
    if load.memory:
        third = max(1, len(load.memory) // 3)
        parts = (load.memory[:third], load.memory[-third:])
        print(
            "memory, first and last third: {:.0f} and {:.0f} MB".format(
                *(max(p) / 1e6 for p in parts)
            )
        )
    if given.out:
        machine.save_result(given.out, "cpu", "serve", {"version": VERSION, "load": asdict(load)})
    return int(load.different > 0 or "lost" in load.statuses)


if __name__ == "__main__":
    raise SystemExit(main())
