"""One case that is to be measured: an operator at given sizes, in one dtype and mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from . import contenders, device, memory, verify
from .contenders import Contender, UnavailableError
from .names import is_ours
from .operators import SUBJECTS
from .operators.call import Call, Draw, arithmetic, cotangents, leaves, moved_bytes, rounding
from .records import Case, Measurement, Spread, case_name
from .timing import Clock, Note, interleave, ratio


def _unheard(contender: str, doing: str) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """How everything in a run is measured.

    Attributes:
        device: "cpu" or "cuda".
        seconds: for the turns of one case.
        clock: of the device.
        note: told who is at work.
    """

    device: str
    seconds: float
    clock: Clock
    note: Note = _unheard


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: the record, whose floor is not known before the machine's ceilings are.
        samples: seconds of every turn, by contender.
        wrong: contenders that computed something else, and how it showed; they are left out of the case.
    """

    case: Case
    samples: dict[str, list[float]]
    wrong: dict[str, str]


@dataclass(frozen=True)
class Checked:
    """What a comparison with float64 showed.

    Attributes:
        ready: contenders that are right, with the inputs of the last draw.
        left_out: those that cannot run here, and why.
        wrong: those that compute something else or fail, and how it shows.
        worst: by contender, the largest share that any result took of what its error may be.
    """

    ready: dict[str, Contender]
    left_out: dict[str, str]
    wrong: dict[str, str]
    worst: dict[str, float]


class Trial:
    """Tries contenders one by one, and keeps what came of each: one that fails is no reason to lose the others.

    Args:
        names: of the contenders.
        device: "cpu" or "cuda".
        note: told who is at work.
    """

    def __init__(self, names: list[str], device: str, note: Note) -> None:
        self._names, self._device, self._note = names, device, note
        self.ready: dict[str, Contender] = {}
        self._errors: dict[str, verify.Errors] = {}
        self._left_out: dict[str, str] = {}
        self._wrong: dict[str, str] = {}

    @property
    def left(self) -> list[str]:
        """The contenders that have not failed yet."""
        return [n for n in self._names if n not in self._left_out and n not in self._wrong]

    def errors(self, name: str, rule: verify.Rule) -> verify.Errors:
        """Where the errors of a contender are collected."""
        return self._errors.setdefault(name, verify.Errors(rule))

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Within it a contender runs; what it raises is kept and ends the block.

        Raises:
            DeviceLostError: the device takes no more work.
        """
        self._note(name, "compared with float64")
        try:
            yield
        except UnavailableError as error:
            self._left_out[name] = str(error)
        except verify.WrongResultError as error:
            self._wrong[name] = str(error)
        except Exception as error:
            self._fails(name, "fails", error)

    @contextmanager
    def of_all(self) -> Iterator[None]:
        """Within it runs what all of them are compared with; where that fails, none is right.

        Raises:
            DeviceLostError: the device takes no more work.
        """
        self._note("", "computed by the reference")
        try:
            yield
        except Exception as error:
            for name in self.left:
                self._fails(name, "cannot be compared, the reference fails", error, shared=True)

    def _fails(self, name: str, how: str, error: Exception, *, shared: bool = False) -> None:
        why = f"{how}: {device.reason(error)}"
        if not device.answers(self._device):
            raise device.DeviceLostError(f"{name} {why}") from error
        # What the reference needs, too, is no fault of ours.
        ours = is_ours(name) and not (shared and isinstance(error, torch.OutOfMemoryError))
        (self._wrong if ours else self._left_out)[name] = why

    def verdict(self) -> Checked:
        """What all draws together showed."""
        for name in self.left:
            with self.of(name):
                if name in self._errors:
                    self._errors[name].check()
        right = {name: self.ready[name] for name in self.left}
        worst = {name: errors.worst() for name, errors in self._errors.items()}
        return Checked(right, self._left_out, self._wrong, worst)


class Plan(Protocol):
    """A case that can be measured."""

    @property
    def name(self) -> str:
        """What identifies it in a run."""
        ...

    @property
    def contenders(self) -> list[str]:
        """All that can be asked for."""
        ...

    @property
    def family(self) -> tuple[str, str, str]:
        """Cases of one family and curve share what was compiled: operator, curve, mode."""
        ...

    def measure(self, names: list[str], settings: Settings) -> Outcome:
        """Verifies the contenders named, then times them in turn."""
        ...


@dataclass(frozen=True)
class OperatorPlan:
    """A subject of `bench.operators`, forward or in training.

    Attributes:
        operator: its name there.
        label: of the sizes.
        sizes: by the field's letters.
        dtype: of the inputs.
        mode: "forward" or "training".
        device: "cpu" or "cuda".
        curve: the size that is varied, or "".
    """

    operator: str
    label: str
    sizes: dict[str, int]
    dtype: str
    mode: str
    device: str
    curve: str = ""

    @property
    def name(self) -> str:
        return case_name(self.operator, self.label, self.dtype, self.mode)

    @property
    def family(self) -> tuple[str, str, str]:
        return (self.operator, self.curve, self.mode)

    @cached_property
    def contenders(self) -> list[str]:
        smallest = SUBJECTS[self.operator].sizes["one"]
        call = SUBJECTS[self.operator].make(smallest, Draw("float32"))
        names = contenders.names(call, self.mode, self.device)
        # Tuning is for one size: along a curve it would be compiled and tuned anew at every point.
        return [name for name in names if not (self.curve and name == "max-autotune")]

    def measure(self, names: list[str], settings: Settings) -> Outcome:
        with rounding(self.dtype):
            settings.note("", "given its inputs")
            call, _ = self._inputs(seed=0)
            flops, moved = arithmetic(call, self.mode), moved_bytes(call, self.mode)
            checked = self.check(names, settings.note)
            ready, wrong = checked.ready, checked.wrong
            left_out = checked.left_out | {n: f"wrong: {why}" for n, why in wrong.items()}
            runs = {name: contender.run for name, contender in ready.items()}
            samples = (
                interleave(runs, settings.seconds, settings.clock, note=settings.note)
                if runs
                else {}
            )
            measured = {}
            for name, contender in ready.items():
                settings.note(name, "looked at for its memory")
                measured[name] = _measurement(name, samples, contender, self.mode, settings.device)
        case = Case(
            self.operator, self.label, self.curve, self.sizes, self.dtype, self.mode,
            flops, moved, 0.0, measured, left_out,
        )  # fmt: skip
        return Outcome(case, samples, wrong)

    def _inputs(self, seed: int) -> tuple[Call, tuple[torch.Tensor, ...]]:
        draw = Draw(self.dtype, self.device, seed)
        call = SUBJECTS[self.operator].make(self.sizes, draw)
        return call, cotangents(call, draw)

    def call_once(self, name: str) -> None:
        """Runs one contender, for what that leaves in caches."""
        with rounding(self.dtype):
            call, cot = self._inputs(seed=0)
            contenders.prepare(name, call, self.mode, cot, dynamic=bool(self.curve)).run()
            device.wait(self.device)

    def check(self, names: list[str], note: Note = _unheard) -> Checked:
        """Compares the results of the contenders named with float64, under the rounding of the case's dtype.

        Raises:
            DeviceLostError: the device takes no more work.
        """
        trial = Trial(names, self.device, note)
        with rounding(self.dtype):
            first = self._inputs(seed=0)
            numbers = sum(t.numel() for t in first[0].tensors)
            for seed in reversed(range(verify.draws(numbers))):  # the last one is timed
                call, cot = self._inputs(seed) if seed else first
                with trial.of_all():
                    plain = contenders.prepare("eager", call, self.mode, cot).run()
                    truth = _truth(call, self.mode, cot)
                    unrounded = self._unrounded(call, cot, plain)
                for name in trial.left:
                    with trial.of(name):
                        contender = contenders.prepare(
                            name, call, self.mode, cot, dynamic=bool(self.curve)
                        )
                        with verify.poisoned_memory():
                            got = contender.run()
                            device.wait(self.device)
                        if contender.rule is None:
                            verify.require_finite(got)
                        else:
                            trial.errors(name, contender.rule).add(got, plain, truth, unrounded)
                        if is_ours(name):
                            verify.require_same_bits(got, contender.run)
                        trial.ready[name] = contender
        return trial.verdict()

    def _unrounded(
        self, call: Call, cot: tuple[torch.Tensor, ...], plain: tuple[torch.Tensor, ...]
    ) -> tuple[bool, ...]:
        """The results that PyTorch does not round although TF32 is allowed, because a size is 1."""
        if self.dtype != "tf32" or 1 not in self.sizes.values():
            return ()
        with rounding("float32"):
            whole = contenders.prepare("eager", call, self.mode, cot).run()
        return tuple(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))


def _truth(call: Call, mode: str, cot: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    doubles = tuple(t.double() for t in call.tensors)
    if mode == "forward":
        return contenders.forward(call.reference, doubles)()
    return contenders.training(call.reference, doubles, tuple(t.double() for t in cot))()


def _measurement(
    name: str, samples: dict[str, list[float]], contender: Contender, mode: str, device: str
) -> Measurement:
    bare = contender.rule is None
    kept = None
    if mode == "training":
        given = leaves(contender.tensors)
        kept = memory.kept_bytes(lambda: contender.function(*given), given)
    return Measurement(
        Spread.of(samples[name]),
        len(samples[name]),
        ratios(name, samples),
        None if bare else memory.peak_bytes(contender.run, device),
        kept,
        memory.launches(contender.run) if device == "cuda" else None,
    )


def ratios(name: str, samples: dict[str, list[float]]) -> dict[str, Spread]:
    """Every other contender's time over that of `name`, where `name` is ours."""
    if not is_ours(name):
        return {}
    return {peer: ratio(samples, name, peer) for peer in samples if peer != name}
