"""Another commit of this repository, measured beside what is checked out: in turn, by processes of their own."""

import importlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def exported(commit: str, folder: Path, *parts: str) -> Path:
    """Parts of a commit, in a folder.

    Args:
        commit: any name of it.
        folder: made if needed.
        parts: folders of the repository.
    """
    command = ["git", "-C", str(ROOT), "archive", commit, *parts]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def measured_as_here(checkout: Path, *modules: str) -> None:
    """Gives a checkout today's modules of the benchmarks, and this one, whatever it had for that."""
    (checkout / "bench").mkdir(exist_ok=True)
    for name in ("__init__", "checkout", *modules):
        shutil.copy(ROOT / "bench" / f"{name}.py", checkout / "bench")


class Worker:
    """A process that has what a checkout can do ready, and times calls when it is told to.

    Args:
        checkout: its working directory.
        module: of the benchmarks; its `serve` is called in the process, and ends in `answer`.
        arguments: of `serve`.
        environment: of the process, by default that of this one.

    Attributes:
        ready: what the process said that it has ready.
    """

    def __init__(
        self,
        checkout: Path,
        module: str,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.checkout", module, *arguments],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: Any = self._read()

    def time(self, case: str, calls: int) -> float:
        """Seconds of one call, the mean of a group."""
        assert self._process.stdin is not None
        print(json.dumps([case, calls]), file=self._process.stdin, flush=True)
        return float(self._read())

    def waited(self) -> float:
        """Seconds that its threads were ready and had no processor, so far; 0 where the system does not say."""
        files = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(1e-9 * int(file.read_text().split()[1]) for file in files)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that measures ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def workers(
    checkouts: Mapping[str, Path],
    module: str,
    arguments: list[str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Worker]]:
    """A worker for each checkout, for as long."""
    begun: dict[str, Worker] = {}
    try:
        for name, path in checkouts.items():
            begun[name] = Worker(path, module, arguments, environment)
        yield begun
    finally:
        for worker in begun.values():
            worker.close()


def in_turn(
    workers: Mapping[str, Worker], case: str, calls: Mapping[str, int], turns: int
) -> dict[str, list[float]]:
    """Seconds of a call by each worker, turn by turn; each begins as often as the others."""
    samples: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(turns):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            samples[name].append(workers[name].time(case, calls[name]))
    return samples


def answer(ready: object, time: Callable[[str, int], float]) -> None:
    """Says what a worker has ready, and gives the seconds of calls until nobody asks any more."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        case, calls = json.loads(line)
        print(time(case, calls), flush=True)


def _work(module: str, arguments: list[str]) -> None:
    """Runs a module of this checkout with this checkout's packages, where an editable install would be found first."""
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    import fbp_kernels

    assert Path(fbp_kernels.__file__).is_relative_to(ROOT), fbp_kernels.__file__
    importlib.import_module(f"bench.{module}").serve(*arguments)


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2:])
