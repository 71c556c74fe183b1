"""Searches for the fastest configuration at a kernel's first call, and keeps what it found on disk.

Opt-in (FBP_AUTOTUNE=1), for it makes first calls slow and lets the device's mood decide which configuration runs.
"""

import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import tuning
from .tuning import Call, Config, Key

ENVIRONMENT = "FBP_CACHE_DIR"
_FORMAT = 1  # of the file
_GAIN = 0.98  # of the table's time, which a better one has to beat: less is within the spread


def choose(key: Key, default: Config, call: Call, device: torch.device | None) -> Config:
    """The configuration that a search finds, or has found in an earlier process.

    Only what is right by float64 at a sample of the kernel's class of size, and gives the same bits twice, is timed
    (`judge`). While a stream captures nothing can be timed, and what was not found before is the table's.

    Args:
        key: of the kernel.
        default: the table's configuration.
        call: launches the kernel.
        device: a GPU; by default the current one.
    """
    import triton

    candidates = tuning.candidates(key)
    with torch.cuda.device(device):
        kept = Choices(folder() / file_name(torch.cuda.get_device_name(), triton.__version__))
        found = kept.get(key)
        if found in candidates or found == default:
            return found
        if torch.cuda.is_current_stream_capturing():
            return default
        place = device or torch.device("cuda", torch.cuda.current_device())
        right = _right(key, default, candidates, place)
        return kept.put(key, fastest(default, right, lambda c: _milliseconds(call, c)), found)


def _right(
    key: Key, default: Config, candidates: list[Config], device: torch.device
) -> list[Config]:
    """The table's configuration and the candidates, without those that are wrong; of the table's that is told."""
    from . import judge

    configs = [default, *(config for config in candidates if config != default)]
    reasons = judge.verdicts(key, configs, tuning.chosen, device)
    right = [config for config, why in zip(configs, reasons, strict=True) if not why]
    if reasons[0]:
        what = "another is taken" if right else "and so is every other that was tried"
        warnings.warn(
            f"the table's configuration for {key} is wrong on {device}, {what}: {reasons[0]}",
            stacklevel=2,
        )
    return right or [default]


def fastest(
    default: Config, right: list[Config], milliseconds: Callable[[Config], float]
) -> Config:
    """The fastest of some configurations.

    Args:
        default: the table's, which stays unless it is beaten, where it is one of them.
        right: those that are right; what cannot run at this call's sizes is passed over, unless nothing can.
        milliseconds: times one.
    """
    times: list[tuple[float, Config]] = []
    failed: list[Exception] = []
    for config in right:
        try:
            times.append((milliseconds(config) * (_GAIN if config == default else 1), config))
        except torch.AcceleratorError:  # the device is gone for all that comes after
            raise
        except Exception as error:  # wants more than the device has
            failed.append(error)
    if not times:
        raise failed[0]
    return min(times, key=lambda timed: timed[0])[1]


def _milliseconds(call: Call, config: Config) -> float:
    from triton.testing import do_bench

    return float(do_bench(lambda: call(config), warmup=5, rep=30, return_mode="median"))


def folder() -> Path:
    """Where choices are kept: FBP_CACHE_DIR, or the platform's folder for caches."""
    asked = os.environ.get(ENVIRONMENT)
    if asked:
        base = Path(asked)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fbp_kernels" / str(_FORMAT)


def file_name(device: str, version: str) -> str:
    """The file of a device and a version of Triton."""
    return f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{version}.json"


class Choices:
    """Configurations in a file that several processes may read and write at once.

    What cannot be read or written is told in a warning, and is no reason to stop: the search is made again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: Key) -> Config | None:
        """What the file has for a key."""
        return self._read().get(key)

    def put(self, key: Key, config: Config, stale: Config | None = None) -> Config:
        """Adds a choice, unless another process was faster: then that one's is taken, so that all agree.

        Args:
            key: of the kernel.
            config: what was found.
            stale: what the file had before and is to be replaced.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                choices = self._read()
                theirs = choices.get(key)
                if theirs is not None and theirs != stale:
                    return theirs
                self._write({**choices, key: config})
        except OSError as error:
            warnings.warn(f"cannot keep the choice for {key}: {error}", stacklevel=2)
        return config

    def _read(self) -> dict[Key, Config]:
        try:
            entries: dict[str, Any] = json.loads(self.path.read_text())
            return {Key(*name.split()): Config.of(entry) for name, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(
                f"{self.path} cannot be read ({error}); its choices are searched for anew",
                stacklevel=2,
            )
            return {}

    def _write(self, choices: dict[Key, Config]) -> None:
        """In one step: who reads at the same time sees the old file or the new one."""
        text = json.dumps({str(key): config.entry() for key, config in choices.items()}, indent=1)
        handle, name = tempfile.mkstemp(dir=self.path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time, between reading and writing."""
        import fcntl  # where Triton is, this is

        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
