"""Compares systems on the same clips, over several seeds and folds, as tables of papers do."""

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from avemo.data.cache import SPLITS
from avemo.evaluation.evaluate import evaluation_folder
from avemo.evaluation.metrics import (
    MEASURES,
    RESAMPLES,
    Estimate,
    accuracy,
    bootstrap,
    combine,
    holm,
    mcnemar,
)
from avemo.evaluation.predictions import FILE, Predictions, read_predictions
from avemo.storage import write
from avemo.text import printable

Unit = Literal["clip", "speaker"]
Pairs = Literal["first", "all"]
_NAMED = 3  # clips that an error shows


@dataclass(frozen=True)
class SystemResult:
    """What a system achieves.

    Attributes:
        name: of the system.
        runs: on all clips: one per seed; a run may be put together from folds.
        clips: of each run.
        measures: each measure's mean over the runs, by name.
        accuracies: of each run.
        confusion: rows the truth, columns the prediction, summed over the runs.
    """

    name: str
    runs: int
    clips: int
    measures: dict[str, Estimate]
    accuracies: list[float]
    confusion: list[list[int]]


@dataclass(frozen=True)
class PairResult:
    """Whether two systems differ.

    Attributes:
        first: name of the system that may be ahead.
        second: name of the other.
        difference: of the accuracies, with the p-value of the paired bootstrap.
        mcnemar: p-value of McNemar's exact test; of several runs, their tests' combined.
        bootstrap_holm: p-value of the bootstrap after Holm's correction over all pairs.
        mcnemar_holm: likewise of McNemar's test.
        only_first: clips that the first system alone recognises, in each run.
        only_second: clips that the second system alone recognises, in each run.
    """

    first: str
    second: str
    difference: Estimate
    mcnemar: float
    bootstrap_holm: float
    mcnemar_holm: float
    only_first: list[int]
    only_second: list[int]


@dataclass(frozen=True)
class Comparison:
    """All that comparison.json holds.

    Attributes:
        classes: rows of the confusion matrices.
        unit: what the bootstrap draws.
        systems: in the order asked for.
        pairs: each later system against the first, or all pairs.
    """

    classes: tuple[str, ...]
    unit: Unit
    systems: list[SystemResult]
    pairs: list[PairResult]

    def against_first(self, name: str) -> PairResult | None:
        """The comparison of a system with the first one, which has none."""
        first = self.systems[0].name
        return next((p for p in self.pairs if (p.first, p.second) == (name, first)), None)


class _Run(NamedTuple):
    """A system's answers to all clips.

    Attributes:
        label: of each clip, by path.
        predicted: of each clip, by path.
        speaker: of each clip, by path.
    """

    label: dict[str, str]
    predicted: dict[str, str]
    speaker: dict[str, str]


def compare(
    runs: list[Path],
    *,
    split: str = "test",
    unit: Unit = "clip",
    pairs: Pairs = "first",
    resamples: int = RESAMPLES,
    seed: int = 0,
    out: Path = Path("runs/comparison"),
) -> Comparison:
    """Compares systems by what `avemo evaluate` left of them: accuracy, F1, intervals and p-values.

    Each RUN is a system: the folder of a training run, or a folder of such folders, one per seed or
    fold, whose files of predictions are found by themselves. Runs on the same clips count as seeds,
    runs on other clips are put together as folds. The folder `out` receives comparison.json, systems.csv
    and pairs.csv.

    Args:
        runs: the systems; the first is the one that the others are held against.
        split: which evaluation of each run.
        unit: what the bootstrap draws: clips, or speakers with all their clips, which says how sure
            the figures are for people whom nobody has heard yet.
        pairs: test each later system against the first, or all systems against each other.
        resamples: of each bootstrap.
        seed: of the bootstraps.
        out: folder for the results.

    Returns:
        What comparison.json holds.

    Raises:
        FileNotFoundError: a folder has no predictions for the split.
        ValueError: the systems were not evaluated on the same clips, one is there twice, or an argument is out of
            range.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    there: dict[Path, Path] = {}
    for run in runs:
        if first := there.get(run.resolve()):
            raise ValueError(f"runs must name each run once, got {first} and {run}")
        there[run.resolve()] = run
    systems = {
        name: [read_predictions(file) for file in files]
        for name, files in _named({run: find_predictions(run, split) for run in runs}).items()
    }
    result = compare_systems(systems, unit=unit, pairs=pairs, resamples=resamples, seed=seed)
    save(out, result)
    print(table(result))
    print(f"saved in {out}")
    return result


def find_predictions(folder: Path, split: str) -> list[Path]:
    """The files of predictions of a run, or of all runs in a folder, sorted.

    Raises:
        FileNotFoundError: there are none, or no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    wanted = evaluation_folder(folder, split) / FILE
    own = [file for file in (folder / FILE, wanted) if file.is_file()]
    files = own[:1] or sorted(folder.rglob(str(wanted.relative_to(folder))))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no predictions of the split {split!r}: run `avemo evaluate` with the "
            f"checkpoints in it and `--split {split}`"
        )
    return files


def compare_systems(
    systems: Mapping[str, Sequence[Predictions]],
    *,
    unit: Unit = "clip",
    pairs: Pairs = "first",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares systems by their predictions.

    Args:
        systems: the predictions of each system's runs, by name; each system has as many runs on all
            clips as the others, or one.
        unit: what the bootstrap draws.
        pairs: each later system against the first, or all against each other.
        resamples: of each bootstrap.
        seed: of the bootstraps.

    Raises:
        ValueError: clips, their labels or the numbers of runs do not fit together.
    """
    if not systems:
        raise ValueError("there must be at least one system to compare")
    runs = {name: _put_together(name, found) for name, found in systems.items()}
    _check_same(runs)
    classes = tuple(
        dict.fromkeys(c for found in systems.values() for p in found for c in p.classes)
    )
    reference = next(iter(runs.values()))[0]
    paths = sorted(reference.label)
    units = _units(reference, paths, unit)
    counts = {
        name: torch.stack([_counts(run, paths, units, classes) for run in found])
        for name, found in runs.items()
    }
    results = [
        SystemResult(
            name,
            runs=len(found),
            clips=len(paths),
            measures={
                key: bootstrap(measure, counts[name], resamples=resamples, seed=seed)
                for key, measure in MEASURES.items()
            },
            accuracies=accuracy(counts[name].sum(1)).tolist(),
            confusion=counts[name].sum((0, 1)).long().tolist(),
        )
        for name, found in runs.items()
    ]
    first = results[0].name
    chosen = [(name, first) for name in list(runs)[1:]]
    if pairs == "all":
        chosen += itertools.combinations(list(runs)[1:], 2)
    differences = [
        bootstrap(accuracy, counts[a], counts[b], resamples=resamples, seed=seed) for a, b in chosen
    ]
    rights = [_rights(runs[a], runs[b], paths) for a, b in chosen]
    tests = [combine([mcnemar(right) for right in each]) for each in rights]
    corrected = zip(holm([d.p_value for d in differences]), holm(tests), strict=True)
    return Comparison(
        classes,
        unit,
        results,
        [
            PairResult(
                *names,
                difference,
                test,
                *both,
                only_first=[right.count((True, False)) for right in each],
                only_second=[right.count((False, True)) for right in each],
            )
            for names, difference, test, both, each in zip(
                chosen, differences, tests, corrected, rights, strict=True
            )
        ],
    )


def _named(files: Mapping[Path, list[Path]]) -> dict[str, list[Path]]:
    """Systems by the names of their folders, or by their paths where two have one name."""
    names = [run.resolve().name for run in files]
    unique = len(set(names)) == len(names)
    return {
        name if unique else str(run): found
        for name, (run, found) in zip(names, files.items(), strict=True)
    }


def _put_together(name: str, files: Sequence[Predictions]) -> list[_Run]:
    """Runs on all clips: a file goes to the first run that has none of its clips yet."""
    runs: list[_Run] = []
    for classes, clips in files:
        paths = {clip.path for clip in clips}
        run = next((run for run in runs if not paths & run.label.keys()), None)
        if run is None:
            run = _Run({}, {}, {})
            runs.append(run)
        for clip in clips:
            run.label[clip.path] = classes[clip.label]
            run.predicted[clip.path] = classes[clip.predicted]
            run.speaker[clip.path] = clip.speaker
    for number, run in enumerate(runs[1:], start=2):
        _check_pair(f"{name}, run 1", runs[0], f"{name}, run {number}", run)
    return runs


def _check_same(systems: Mapping[str, list[_Run]]) -> None:
    (first, (reference, *_)), *others = systems.items()
    for name, runs in others:
        _check_pair(first, reference, name, runs[0])
    several = {name: len(runs) for name, runs in systems.items() if len(runs) > 1}
    if len(set(several.values())) > 1:
        numbers = ", ".join(f"{name} {count}" for name, count in several.items())
        raise ValueError(
            f"systems must have equally many runs on all clips, or one; there are: {numbers}"
        )


def _check_pair(name: str, ours: _Run, other: str, theirs: _Run) -> None:
    for lacks, has, missing in (
        (other, name, ours.label.keys() - theirs.label.keys()),
        (name, other, theirs.label.keys() - ours.label.keys()),
    ):
        if missing:
            shown = ", ".join(map(printable, sorted(missing)[:_NAMED]))
            more = ", ..." if len(missing) > _NAMED else ""
            raise ValueError(
                f"systems must be compared on the same clips, but {lacks} lacks {len(missing)} "
                f"that {has} has: {shown}{more}"
            )
    for path, label in ours.label.items():
        if theirs.label[path] != label:
            raise ValueError(
                f"the label of {printable(path)} is {label!r} for {name}, "
                f"but {theirs.label[path]!r} for {other}"
            )


def _units(run: _Run, paths: Sequence[str], unit: Unit) -> Tensor:
    """The number of each clip's unit, int64 (clips,)."""
    if unit == "clip":
        return torch.arange(len(paths))
    unknown = [path for path in paths if not run.speaker[path]]
    if unknown:
        raise ValueError(
            f"unit=speaker needs the speaker of every clip; {len(unknown)} have none, "
            f"such as {printable(unknown[0])}"
        )
    speakers = {name: i for i, name in enumerate(sorted(set(run.speaker.values())))}
    return torch.tensor([speakers[run.speaker[path]] for path in paths])


def _counts(run: _Run, paths: Sequence[str], units: Tensor, classes: Sequence[str]) -> Tensor:
    """The confusion matrix of every unit: int64 (units, classes, classes)."""
    place = {name: i for i, name in enumerate(classes)}
    label = torch.tensor([place[run.label[path]] for path in paths])
    predicted = torch.tensor([place[run.predicted[path]] for path in paths])
    counts = torch.zeros(int(units.max()) + 1, len(classes), len(classes), dtype=torch.long)
    return counts.index_put_((units, label, predicted), torch.tensor(1), accumulate=True)


def _rights(
    ours: list[_Run], theirs: list[_Run], paths: Sequence[str]
) -> list[list[tuple[bool, bool]]]:
    """For each run and clip, whether either system is right; a single run stands for as many as the
    other system has."""
    count = max(len(ours), len(theirs))
    both = zip(ours * (count // len(ours)), theirs * (count // len(theirs)), strict=True)
    return [
        [(a.predicted[p] == a.label[p], b.predicted[p] == b.label[p]) for p in paths]
        for a, b in both
    ]


def save(out: Path, result: Comparison) -> None:
    """Writes comparison.json, systems.csv and pairs.csv."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "comparison.json", json.dumps(asdict(result), indent=1) + "\n")
    write_table(out / "systems.csv", _system_rows(result))
    write_table(out / "pairs.csv", _pair_rows(result))


def write_table(file: Path, rows: Sequence[Sequence[object]]) -> None:
    """Writes a table as CSV, its first row the header."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write(file, text.getvalue())


def _system_rows(result: Comparison) -> list[list[object]]:
    header: list[object] = ["system", "runs", "clips"]
    for name in MEASURES:
        header += [name, f"{name}_low", f"{name}_high"]
    return [
        header,
        *(
            [s.name, s.runs, s.clips]
            + [x for m in s.measures.values() for x in (m.value, *m.interval)]
            for s in result.systems
        ),
    ]


def _pair_rows(result: Comparison) -> list[Sequence[object]]:
    header: list[object] = ["first", "second", "difference", "difference_low", "difference_high"]
    header += ["p_mcnemar", "p_mcnemar_holm", "p_bootstrap", "p_bootstrap_holm"]
    return [
        header,
        *(
            [p.first, p.second, p.difference.value, *p.difference.interval, *_p_values(p)]
            for p in result.pairs
        ),
    ]


def table(result: Comparison) -> str:
    """The comparison as text: a row per system, its p-values against the first, then other pairs."""
    first = result.systems[0]
    header = ["system", "runs", "accuracy", "unweighted accuracy", "F1", *_TESTS]
    rows = [header]
    for system in result.systems:
        pair = result.against_first(system.name)
        cells = [printable(system.name), str(system.runs), *map(_share, system.measures.values())]
        rows.append(
            [
                *cells,
                *([f"{value:.2g}" for value in _p_values(pair)] if pair else "-" * len(_TESTS)),
            ]
        )
    text = [
        f"{first.clips} clips; 95% intervals by bootstrap over {result.unit}s; p-values against "
        f"{printable(first.name)}",
        *_lines(rows),
    ]
    others = [p for p in result.pairs if p.second != first.name]
    if others:
        rows = [["first", "second", "difference of accuracies", *_TESTS]]
        for p in others:
            names = [printable(p.first), printable(p.second)]
            rows.append([*names, _share(p.difference), *(f"{value:.2g}" for value in _p_values(p))])
        text += ["", *_lines(rows)]
    return "\n".join(text)


_TESTS = ("McNemar p", "(Holm)", "bootstrap p", "(Holm)")


def _p_values(pair: PairResult) -> tuple[float, float, float, float]:
    """In the order of `_TESTS`."""
    return pair.mcnemar, pair.mcnemar_holm, pair.difference.p_value, pair.bootstrap_holm


def _share(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{estimate.value:.1%} ({low:.1%} to {high:.1%})"


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
