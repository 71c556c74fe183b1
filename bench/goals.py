"""What the CPU kernels are held to, each goal as a ratio of times taken in turn: `python -m bench goals`.

Two virtual cores of a shared machine are sometimes one physical core for seconds. So a product of known size is timed
beside every turn, and turns where it took much longer than usual are thrown out and counted.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fbp_kernels import ops

from . import machine, resident
from .goal_records import Goal, Goals, Reached
from .operators import SUBJECTS
from .operators.call import Draw
from .plan import OperatorPlan
from .records import Spread
from .shapes import CURVES, SMALLEST, USUAL
from .timing import Run, clock, interleave, ratio

_PROBE, _PROBE_SIDE = "probe", 256
_HINDERED = 1.5  # times the probe's usual time
# A turn of the fastest contender lasts about so long, up to so many calls: one call of microseconds would be timed with
# the caches as other contenders left them.
_TURN_SECONDS, _MOST_CALLS = 1e-3, 10
_CHOSEN = ("float32", "bfloat16")  # dtypes in which everybody is compared with eager


@dataclass(frozen=True)
class _Held:
    """What the bilinear kernels are held to on an instruction set, by the size of a call.

    Attributes:
        products: the share of the bare products' time that they may take, by size: "clip" up to a batch of 64,
            "batch" up to 256, "vqa" above.
        trunks: the same of the products of all trunks.
        eager: how many times faster than eager PyTorch they are to be.
        training: the same, forward and backward.
    """

    products: dict[str, float]
    trunks: dict[str, float]
    eager: dict[str, float]
    training: dict[str, float]


_WIDE = _Held(
    products={"clip": 0.60, "batch": 0.80, "vqa": 0.90},
    trunks={"clip": 0.88, "batch": 0.88},
    eager={"clip": 1.9, "batch": 1.3, "vqa": 1.3},
    training={"clip": 1.5, "batch": 1.5, "vqa": 1.2},
)
_NARROW = _Held(
    products={"clip": 0.55, "batch": 0.78, "vqa": 0.92},
    trunks={"clip": 0.50, "batch": 0.90},
    eager={"clip": 1.8, "batch": 1.3, "vqa": 1.2},
    training={"clip": 1.4, "batch": 1.3, "vqa": 1.15},
)


def goals(instruction_set: str) -> list[Goal]:
    """All goals, cases with the same inputs next to each other.

    Args:
        instruction_set: of the kernels: where vectors are half as wide, less of the time is anybody's to save.
    """
    held = _WIDE if instruction_set.startswith("avx512") else _NARROW
    special = [*_products(held), *_trunks(held), *_training(held), *_curves(), *_others()]
    return [*special, *_never_slower(special)]


def _products(held: _Held) -> Iterator[Goal]:
    """Global pooling against the two bare products, and against eager PyTorch."""
    narrow, wide = {"C": 256, "D": 512, "O": 128, "K": 4}, {"C": 256, "D": 512, "O": 1000, "K": 5}
    for widths in (narrow, wide):
        for B in (1, 2, 4, 8, 16, 32, 64, 256):
            sizes = {"B": B} | widths
            label = f"B={B}, O K={widths['O'] * widths['K']}"
            size = "clip" if B <= 64 else "batch"
            yield Goal("fbp", label, sizes, "forward", "products", 1 / held.products[size])
            yield Goal("fbp", label, sizes, "forward", "eager", held.eager[size])
    square = {"B": 4096, "C": 512, "D": 512, "O": 1000, "K": 5}
    for label, sizes in (("vqa", _sizes("fbp", "vqa")), ("B=4096, O K=5000", square)):
        yield Goal("fbp", label, sizes, "forward", "products", 1 / held.products["vqa"])
        yield Goal("fbp", label, sizes, "forward", "eager", held.eager["vqa"])
    yield Goal("fbp", "vqa", _sizes("fbp", "vqa"), "forward", "one thread", 1.8)


def _trunks(held: _Held) -> Iterator[Goal]:
    for operator in ("trunk_fbp", "am_fbp"):
        for label in ("clip", "batch"):
            sizes = _sizes(operator, label)
            if operator == "trunk_fbp":
                yield Goal(operator, label, sizes, "forward", "products", 1 / held.trunks[label])
            yield Goal(operator, label, sizes, "forward", "eager", held.eager[label])


def _training(held: _Held) -> Iterator[Goal]:
    for operator in ("fbp", "fbp_biased", "trunk_fbp", "am_fbp"):
        for label, least in held.training.items():
            if label in SUBJECTS[operator].sizes:
                yield Goal(operator, label, _sizes(operator, label), "training", "eager", least)


def _curves() -> Iterator[Goal]:
    for mode in ("forward", "training"):
        for B in CURVES["B"]:
            sizes = _sizes("fbp", "clip") | {"B": B}
            for peer in ("eager", "compile"):
                yield Goal("fbp", f"B={B}", sizes, mode, peer, 1.0)


def _others() -> Iterator[Goal]:
    for operator in ("local_response_norm", "local_response_norm_apart"):
        for label in ("conv1", "conv2"):
            sizes = _sizes(operator, label)
            for mode in ("forward", "training"):
                yield Goal(operator, label, sizes, mode, "eager", 20)
                yield Goal(operator, label, sizes, mode, "plain", 5)
            yield Goal(operator, label, sizes, "forward", "copy", 1 / 1.6)
    frames = _sizes("attention_pool", "clip")
    yield Goal("attention_pool", "clip", frames, "training", "eager", 2)
    one = _sizes("am_fbp", "one")
    yield Goal("am_fbp", "one", one, "forward", "eager", 1 / 0.35)
    yield Goal("am_fbp", "one", one, "training", "eager", 1 / 0.60)
    web = _sizes("am_fbp", "web")
    for mode in ("forward", "training"):
        yield Goal("am_fbp", "web", web, mode, resident.PEER, 1.0)


def _never_slower(special: Sequence[Goal]) -> Iterator[Goal]:
    """Every operator against eager PyTorch, where nothing better is asked for: by these a backend is chosen.

    Not at a size of 1, which has no arithmetic to be faster in.
    """
    asked = {goal.name for goal in special}
    for operator in ops.__all__:
        for label, sizes in SUBJECTS[operator].sizes.items():
            if label not in USUAL or label in SMALLEST:
                continue
            for dtype in _CHOSEN:
                for mode in ("forward", "training"):
                    goal = Goal(operator, label, sizes, mode, "eager", 1.0, dtype)
                    if goal.name not in asked:
                        yield goal


def _sizes(operator: str, label: str) -> dict[str, int]:
    return SUBJECTS[operator].sizes[label]


def measure(chosen: Iterable[Goal], seconds: float) -> Iterator[Reached]:
    """Measures goals; those of one case together, in turn.

    Args:
        chosen: the goals.
        seconds: for the turns of a case.
    """
    cases: dict[tuple[str, str, str, str, bool], list[Goal]] = {}
    for goal in chosen:
        case = (goal.operator, goal.label, goal.dtype, goal.mode, goal.peer in _APART)
        cases.setdefault(case, []).append(goal)
    for together in cases.values():
        torch.compiler.reset()
        apart = _APART.get(together[0].peer)
        yield from apart(together, seconds) if apart else _case(together, seconds)


def _case(together: list[Goal], seconds: float) -> Iterator[Reached]:
    first = together[0]
    plan = OperatorPlan(
        first.operator, first.label, first.sizes, first.dtype, first.mode, "cpu", "B"
    )
    checked = plan.check(["native", *(goal.peer for goal in together)])
    missing = checked.left_out | checked.wrong
    runs: dict[str, Run] = {name: contender.run for name, contender in checked.ready.items()}
    samples, hindered = _free_turns(runs, seconds)
    for goal in together:
        why = next((missing[name] for name in ("native", goal.peer) if name in missing), "")
        if why:
            yield Reached(goal, None, why=why)
        else:
            turns = len(samples["native"])
            spread = ratio(samples, "native", goal.peer)
            times = {name: median(samples[name]) for name in ("native", goal.peer)}
            yield Reached(goal, spread, turns, hindered, seconds=times)


def _threads(together: list[Goal], seconds: float) -> Iterator[Reached]:
    """The time on one thread over that on all."""
    for goal in together:
        plan = OperatorPlan(goal.operator, goal.label, goal.sizes, "float32", goal.mode, "cpu")
        checked = plan.check(["native"])
        missing = checked.left_out | checked.wrong
        if missing:
            yield Reached(goal, None, why=missing["native"])
            continue
        run = checked.ready["native"].run
        samples, hindered = _free_turns({"native": run, goal.peer: _alone(run)}, seconds)
        yield Reached(goal, ratio(samples, "native", goal.peer), len(samples["native"]), hindered)


def _alone(run: Run) -> Run:
    def on_one_thread() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return on_one_thread


def _memory(together: list[Goal], seconds: float) -> Iterator[Reached]:
    """Eager's peak of resident memory over ours, each in a process of its own."""
    for goal in together:
        try:
            ours, eager = (
                resident.peak(goal.sizes, goal.mode, who) for who in ("native", "reference")
            )
        except RuntimeError as error:
            yield Reached(goal, None, why=str(error))
        else:
            yield Reached(goal, Spread.of([eager / ours]), 1)


_APART: dict[str, Callable[[list[Goal], float], Iterator[Reached]]] = {
    "one thread": _threads,
    resident.PEER: _memory,
}


def _free_turns(runs: dict[str, Run], seconds: float) -> tuple[dict[str, list[float]], int]:
    """Seconds of a call, in the turns in which the machine gave all its cores, and how many others there were."""
    once = interleave(runs, 0.0, clock("cpu"))
    fastest = min(map(median, once.values()))
    calls = int(np.clip(_TURN_SECONDS / fastest, 1, _MOST_CALLS))
    repeated = {name: _repeated(run, calls) for name, run in runs.items()}
    samples = interleave(repeated | {_PROBE: _probe()}, seconds, clock("cpu"))
    probe = np.array(samples.pop(_PROBE))
    free = probe < _HINDERED * np.quantile(probe, 0.25)
    kept = {name: list(np.array(times)[free] / calls) for name, times in samples.items()}
    return kept, int((~free).sum())


def _repeated(run: Run, calls: int) -> Run:
    def group() -> None:
        for _ in range(calls):
            run()

    return group


def _probe() -> Run:
    draw = Draw("float32")
    left, right = draw(_PROBE_SIDE, _PROBE_SIDE), draw(_PROBE_SIDE, _PROBE_SIDE)
    out = draw.empty(_PROBE_SIDE, _PROBE_SIDE)
    return lambda: torch.mm(left, right, out=out)


def run_goals(patterns: Sequence[str], seconds: float, out: Path | None, *, resume: bool) -> int:
    """Measures the goals whose names match, prints them, and writes them where `out` says.

    Args:
        patterns: of names; none for all goals.
        seconds: for the turns of a case.
        out: the file, if there is to be one; it has what was measured so far at any time.
        resume: keep what the file has, and measure the others.

    Returns:
        0, whatever was reached; 2 where no goal matches, or what there is cannot be resumed.
    """
    here = machine.describe("cpu")
    every = goals(here["instruction_set"])
    chosen = [g for g in every if not patterns or any(fnmatch(g.name, p) for p in patterns)]
    if not chosen:
        print(f"no goal matches {', '.join(patterns)}", file=sys.stderr)
        return 2
    try:
        before = _before(out, here) if resume else []
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    done = {r.goal.name for r in before}
    reached = list(before)
    for result in measure([g for g in chosen if g.name not in done], seconds):
        reached.append(result)
        print(line(result), flush=True)
        if out is not None:
            Goals(machine.describe("cpu"), _in_order(reached, every)).save(out)
    print(f"{sum(r.met for r in reached)} of {len(reached)} reached")
    return 0


def _before(out: Path | None, here: dict[str, Any]) -> list[Reached]:
    """What a file has that is to be resumed; nothing where it is not there yet.

    Raises:
        ValueError: it is of another machine, software or commit.
    """
    if out is None or not out.is_file():
        return []
    found = Goals.load(out)
    machine.require_same(found.machine, here, f"{out} cannot be resumed")
    return found.reached


def _in_order(reached: Sequence[Reached], every: Sequence[Goal]) -> list[Reached]:
    place = {goal.name: i for i, goal in enumerate(every)}
    return sorted(reached, key=lambda r: place[r.goal.name])


def line(result: Reached) -> str:
    """A goal in a line."""
    goal = result.goal
    start = f"{goal.name:<58} at least {goal.least:5.2f}"
    if result.ratio is None:
        return f"{start}  not measured: {result.why}"
    r = result.ratio
    verdict = "reached" if result.met else "MISSED"
    return f"{start}  {r.median:6.2f} ({r.low:.2f} to {r.high:.2f})  {verdict}"
