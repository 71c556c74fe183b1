"""What a run needs to go on: its resume file and the one before it, and the signals that ask it to stop."""

import io
import os
import pickle
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from avemo.signals import ENDING
from avemo.storage import write
from avemo.training.config import TrainConfig, from_dict, to_dict

_NAME, _BEFORE = "resume.ckpt", "resume.previous.ckpt"
_KEY = "avemo"  # of what says whose file it is

# What may be another when a run goes on: it does not decide the result, or only how long the run is.
_FREE = (
    "config.data.cache",
    "config.data.num_workers",
    "config.data.shards",
    "config.data.shards_gb",
    "config.trainer.checkpoint_minutes",
    "config.trainer.patience",
    "config.trainer.devices",
    "config.trainer.num_nodes",
    "config.trainer.strategy",
)
_GROWS = "config.trainer.epochs"
_SAME = 1.0  # seconds


class ResumeError(ValueError):
    """A run cannot go on from what is there."""


class StoppedError(BaseException):
    """A signal has asked the run to stop, and it is saved.

    Attributes:
        signal: which one.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.signal = received


class ResumeFiles(TorchCheckpointIO):
    """Writes a run's resume file so that a good one is always there, and reads it back if it is of this run.

    Args:
        folder: of the run.
        identity: all that decides the result: configuration, classes, features, clips; nested, as JSON can hold it.
        first: whether this is the first of the run's processes, which alone says and removes what is damaged.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], first: bool = True) -> None:
        self.path = folder / _NAME
        self.before = folder / _BEFORE
        self.identity = identity
        self.first = first
        self._found: dict[str, Any] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes the file; the one that was there stays as the one before.

        Raises:
            WriteError: it cannot be written; both are as they were.
        """
        content = io.BytesIO()
        torch.save(checkpoint | {_KEY: self.identity}, content)
        if self.path.exists():
            second_name = self.before.with_suffix(".part")
            second_name.unlink(missing_ok=True)
            os.link(self.path, second_name)
            os.replace(second_name, self.before)
        write(self.path, content.getvalue())

    def exist(self) -> bool:
        """Whether a run is there that could go on."""
        return self.path.exists() or self.before.exists()

    def find(self) -> Path | None:
        """The file to go on from, read and checked; None where there is none.

        Where the last one is damaged, and that is told, it is the one before.

        Raises:
            ResumeError: there are files and none can be read, or it is one of another run.
        """
        damaged = None
        for path in (self.path, self.before):
            if not path.exists():
                continue
            try:
                self._found = _read(path)
            except ResumeError as error:
                damaged = damaged or error
                continue
            self._compare(path, self._found.get(_KEY))
            if damaged and self.first:
                print(f"warning: {damaged}; going on from {path}", file=sys.stderr)
                self.path.unlink()  # else it would take the good one's place when the next is written
            return path
        if damaged:
            raise ResumeError(
                f"{damaged}, and there is no other to go on from; choose another --out"
            ) from damaged
        return None

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """What `find` has read."""
        assert self._found is not None
        found, self._found = self._found, None
        return found

    def _compare(self, path: Path, identity: Any) -> None:
        if not isinstance(identity, dict):
            raise ResumeError(f"{path} is no resume file of `avemo train`; choose another --out")
        try:  # what could not be set yet when it was written has its default
            config = to_dict(from_dict(TrainConfig, identity["config"]))
        except (KeyError, ValueError) as error:
            raise ResumeError(
                f"cannot go on from {path}, it is of another version: {error}"
            ) from error
        was, now = _flat(identity | {"config": config}), _flat(self.identity)
        changed = [
            f"{name.removeprefix('config.')} was {was.get(name)}, now {now.get(name)}"
            for name in sorted({*was, *now})
            if was.get(name) != now.get(name)
            and name not in _FREE
            and not (name == _GROWS and was.get(name, 0) <= now[name])
        ]
        if changed:
            raise ResumeError(
                f"cannot go on from {path}, it is of another run: {'; '.join(changed)}"
            )


def _read(path: Path) -> dict[str, Any]:
    """A resume file, checked against the checksums of its parts, which `torch.load` does not look at."""
    content = io.BytesIO(path.read_bytes())
    try:
        bad = zipfile.ZipFile(content).testzip()
        if bad is not None:
            raise ResumeError(f"{path} is damaged (the checksum of {bad} is not that of its bytes)")
        content.seek(0)
        found: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
        return found
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise ResumeError(f"{path} is damaged ({' '.join(str(error).split())})") from error
    except pickle.UnpicklingError as error:
        raise ResumeError(f"{path} holds more than numbers and tensors, and is not read") from error


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        leaves |= _flat(value, name + ".") if isinstance(value, dict) else {name: value}
    return leaves


class StopRequest:
    """Whether a signal has asked for the end; one that comes more than a second later ends at once.

    What comes sooner is the same one again: Slurm sends it to every process of a job, and whatever started this one
    passes it on.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def heard(self) -> Iterator[None]:
        """At its end signals do what they did at its beginning. In another thread than the main one none is heard."""
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.getsignal(each) for each in ENDING}
        try:
            yield
        finally:
            self._restore()

    def listen(self) -> None:
        """From now on signals are remembered. After Lightning has set its handlers, which end a run unsaved."""
        for each in self._before:
            signal.signal(each, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        del frame
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            print(f"\n{self.signal.name}: saving; another one ends at once", file=sys.stderr)
        elif time.monotonic() - self._since > _SAME:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)


class RunKeeper(pl.callbacks.Checkpoint):
    """Saves a run after every epoch, within long ones, and when it is asked to stop.

    Args:
        files: where it is saved.
        minutes: after which a run is saved within an epoch.
        stop: looked at after every step but an epoch's last: then the end of the epoch is awaited.
    """

    def __init__(self, files: ResumeFiles, minutes: float, stop: StopRequest) -> None:
        self.files, self.minutes, self.stop = files, minutes, stop
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.saved = time.monotonic()
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients that are still being summed are not saved
        own = time.monotonic() - self.saved >= 60 * self.minutes
        late, received = _agreed(trainer, own, self.stop.signal or 0)
        if (late or received) and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (received,) = _agreed(trainer, self.stop.signal or 0)
        self._save(trainer, received)

    def _save(self, trainer: pl.Trainer, received: int) -> None:
        trainer.save_checkpoint(self.files.path)
        self.saved = time.monotonic()
        if received:
            raise StoppedError(signal.Signals(received))


def _agreed(trainer: pl.Trainer, *numbers: int) -> list[int]:
    """The largest of each number over all processes: what one of them has to do, all have to."""
    if trainer.world_size == 1:
        return list(numbers)
    device = trainer.strategy.root_device
    largest = trainer.strategy.reduce(torch.tensor(numbers, device=device), reduce_op="max")
    return [int(number) for number in largest]
