"""The paper's tables and figures again, on any prepared corpus: what they need is trained, compared and drawn."""

import csv
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avemo.jobs import Job, run_at_once
from avemo.machine import processors
from avemo.storage import one_writer, write
from avemo.systems import Figure, figures, systems

if TYPE_CHECKING:
    from avemo.evaluation.compare import Comparison

_RECORD = "paper.json"
_PAGE = "README.md"
_TRAINED = "best.safetensors"
_DONE = "trained"
_SEEDS, _QUICK_SEEDS = 3, 1
_QUICK_JOBS = 4
# Whom the p-values of a table are against: the paper says so of III and V; the last row before those with a p-value
# is the likeliest in VI. It has none in I and II.
_AGAINST = {"I": "1d_abfcn", "II": "g_fbp", "III": "g_fbp", "V": "g_fbp", "VI": "encoder_concat"}
_CURVES = {
    5: ("Learning curves of the audio systems", "I"),
    6: ("Learning curves of the FBP systems", "III"),
}
CAPTIONS = {
    5: _CURVES[5][0],
    6: _CURVES[6][0],
    7: "Attention of AM-FBP to faces and sound of two clips, drawn at random",
    10: "Confusion matrix of AM-FBP on the test split",
}
_FUSED = "am_fbp"  # the system of Figures 7 and 10
_EXAMPLES = 2
_COLUMNS = ("name", "system", "initialization", "single_model", "paper_accuracy", "paper_p_value")
_OURS = (
    "split",
    "runs",
    "clips",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "unweighted_accuracy",
)
_TESTS = ("f1", "p_mcnemar", "p_mcnemar_holm", "p_bootstrap", "p_bootstrap_holm", "against")


@dataclass(frozen=True)
class Plan:
    """What decides the result, apart from how many seeds there are and which tables are asked for.

    Attributes:
        cache: digest of its index.
        config: name or path of the configuration of sizes and training.
        epochs: of each training, or None for the configuration's.
        first_seed: of the trainings; the others follow it.
    """

    cache: str
    config: str
    epochs: int | None
    first_seed: int


def paper(
    *,
    cache: Path,
    out: Path,
    quick: bool = False,
    tables: list[str] | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    config: str | None = None,
    epochs: int | None = None,
    jobs: int | None = None,
) -> Path:
    """Trains what the paper's tables need and writes them, and its figures, beside the paper's own.

    The folder `out` receives table-I.csv to table-VI.csv, the learning curves (figure-5 and figure-6), the
    attention of AM-FBP to two clips over time (figure-7), its confusion matrix (figure-10), each as PNG
    and CSV, README.md, which shows them all, and the runs. What is there already is not made again, and a
    training that was killed goes on where it was. Tables II and III are, as in the paper, of the
    validation split, by which the epoch is chosen, too; the others are of the test split. A system that
    needs a package that is not there is left out, which the page says, and made when it is there; so are, if
    quick, those with networks of other libraries, which have no smaller size.

    Args:
        cache: folder that `avemo prepare` wrote.
        out: folder for everything.
        quick: at the sizes of `small`, one seed each: less than 30 minutes on two cores for a synthetic corpus
            of 480 clips.
        tables: some of I, II, III, V and VI; by default all. Figures belong to them: 5 to I, the others
            to III.
        seeds: trainings of each system; 3, or 1 if quick.
        first_seed: of these.
        config: sizes and training, a name or a path as `avemo train` takes it; full, or small if quick.
        epochs: of each training; by default as many as the configuration says.
        jobs: trainings at once, each with its share of the processors and a log beside its run; 1, or if quick
            as many as there are processors, at most 4.

    Returns:
        The page.

    Raises:
        FileExistsError: `out` holds the tables of another cache or other trainings.
        FolderInUseError: another process is writing there.
        ChildProcessError: one of several trainings at once failed.
        ValueError: there is no such table, or an argument is out of range.
    """
    from avemo.data.cache import ClipCache

    wanted = _tables(tables)
    count = seeds if seeds is not None else _QUICK_SEEDS if quick else _SEEDS
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    if first_seed < 0:
        raise ValueError(f"first_seed must not be negative, got {first_seed}")
    if jobs is None:
        jobs = min(processors(), _QUICK_JOBS) if quick else 1
    elif jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    plan = Plan(
        ClipCache(cache).digest, config or ("small" if quick else "full"), epochs, first_seed
    )
    with one_writer(out, "avemo paper"):
        claim(out / _RECORD, vars(plan))
        left_out = _left_out(wanted, quick)
        work = Trainings(out, cache, plan, count, left_out)
        for system, reason in left_out.items():
            print(f"avemo: {system} is left out: {reason}", file=sys.stderr)
        if jobs > 1:
            work.train((system for table in wanted for system in work.ours(table)), jobs)
        for table in wanted:
            for system in work.ours(table):
                for run in work.runs(system):
                    work.evaluate(run, _split(table))
        for table in wanted:
            _write_table(work, table)
        for number, (title, table) in _CURVES.items():
            if table in wanted:
                _draw_curves(work, number, title, table)
        if "III" in wanted:
            _draw_attention(work)
            _draw_confusion(work)
        write(out / _PAGE, _page(out, plan, count, left_out))
    print(f"all tables and figures: {out / _PAGE}")
    return out / _PAGE


def _tables(asked: list[str] | None) -> list[str]:
    known = list(dict.fromkeys(figure.table for figure in figures()))
    for table in asked or ():
        if table not in known:
            raise ValueError(f"tables must be of {', '.join(known)}; got {table!r}")
    return [table for table in known if not asked or table in asked]


def claim(record: Path, plan: Mapping[str, object]) -> None:
    """Makes the folder of a record that of a plan: what is found there later was made by this plan.

    Args:
        record: a file in that folder; written if it is not there.
        plan: what decides the result, as JSON has it.

    Raises:
        FileExistsError: the record is of another plan.
    """
    if record.is_file():
        found = json.loads(record.read_text("utf-8"))
        differences = [
            f"{k} is {found.get(k)!r}, asked for {wanted!r}"
            for k, wanted in plan.items()
            if found.get(k) != wanted
        ]
        if differences:
            raise FileExistsError(
                f"{record.parent} holds tables of other trainings ({'; '.join(differences)}): "
                "choose another folder"
            )
    write(record, json.dumps(plan, indent=1) + "\n")


def _rows(table: str) -> list[Figure]:
    return [figure for figure in figures() if figure.table == table]


def _split(table: str) -> str:
    return _rows(table)[0].split


def _ours(table: str) -> list[str]:
    """The systems of a table that are ours, in its order."""
    return [row.system for row in _rows(table) if row.system in systems()]


def _model(system: str) -> dict[str, Any]:
    """What the configuration of a system says of its model."""
    import yaml

    return dict(yaml.safe_load(systems()[system].config.read_text("utf-8"))["model"])


def _members(system: str) -> "Counter[str]":
    """The systems that an ensemble is made of, and how many of each; none of a single model."""
    return Counter(member["name"] for member in _model(system).get("members", ()))


def _left_out(tables: Sequence[str], quick: bool) -> dict[str, str]:
    """The systems of tables that cannot be trained for want of a package, or of time, and why."""
    from avemo.models import ModelConfig, check_packages
    from avemo.models.networks import of_others
    from avemo.training.config import from_dict

    found = {}
    for system in (system for table in tables for system in _ours(table)):
        for trained in _members(system) or (system,):
            config = from_dict(ModelConfig, _model(trained))
            try:
                check_packages(config)
            except ValueError as error:
                found[system] = str(error)
                continue
            if quick and of_others(config.video):
                found[system] = (
                    "networks of other libraries have no smaller size, and are not for --quick"
                )
    return found


def _first_alike(system: str) -> str:
    """The first system that is the same model under another name, as the audio system is 1D-ABFCN."""
    from avemo.models import ModelConfig
    from avemo.training.config import from_dict

    wanted = from_dict(ModelConfig, _model(system))
    return next(name for name in systems() if from_dict(ModelConfig, _model(name)) == wanted)


class Trainings:
    """Trainings and evaluations, each done once.

    Args:
        out: folder of everything.
        cache: of the clips.
        plan: what decides the trainings.
        seeds: of each system.
        left_out: systems that cannot be trained.
    """

    def __init__(
        self, out: Path, cache: Path, plan: Plan, seeds: int, left_out: Container[str] = ()
    ) -> None:
        self.out, self.cache, self.plan, self.seeds = out, cache, plan, seeds
        self.left_out = left_out

    def ours(self, table: str) -> list[str]:
        """The systems of a table that can be trained, in its order."""
        return [system for system in _ours(table) if system not in self.left_out]

    def runs(self, system: str) -> list[Path]:
        """The runs of a system, trained."""
        members = _members(system)
        if members:
            return [self._ensemble(system, members)]
        return [self._trained(system, number) for number in range(self.seeds)]

    def train(self, systems: Iterable[str], jobs: int) -> None:
        """Trains what systems need and is not there, some at once; what one says is in a file beside its run.

        Raises:
            ChildProcessError: a training failed.
        """
        needed = {
            self._run(member, number): self._words(member, number)
            for system in systems
            for member, runs in (_members(system) or {system: self.seeds}).items()
            for number in range(runs)
        }
        missing = [
            Job(words, run.with_suffix(".log"))
            for run, words in needed.items()
            if not (run / _DONE).is_file()
        ]
        order, start = count(1), time.monotonic()

        def done(job: Job) -> None:
            run = job.log.with_suffix("")
            write(run / _DONE, "")
            minutes = (time.monotonic() - start) / 60
            print(
                f"trained: {run} ({next(order)} of {len(missing)}, {minutes:.0f} min)", flush=True
            )

        run_at_once(missing, jobs, done)

    def _run(self, system: str, number: int) -> Path:
        return self.out / "runs" / _first_alike(system) / f"seed{self.plan.first_seed + number}"

    def _words(self, system: str, number: int) -> tuple[str, ...]:
        """The command that trains a system."""
        sizes = ["--config", _first_alike(system), "--config", self.plan.config]
        options = ["--data.cache", self.cache, "--seed", self.plan.first_seed + number]
        options += ["--out", self._run(system, number), "--resume"]
        if self.plan.epochs is not None:
            options += ["--trainer.epochs", self.plan.epochs]
        return ("train", *sizes, *map(str, options))

    def _trained(self, system: str, number: int) -> Path:
        run = self._run(system, number)
        if not (run / _DONE).is_file():
            run_command(*self._words(system, number))
            write(run / _DONE, "")
        return run

    def _ensemble(self, system: str, members: "Counter[str]") -> Path:
        """Put together from the runs of other systems, each with seeds of its own."""
        run = self.out / "runs" / system
        if not (run / _TRAINED).is_file():
            runs = [self._trained(m, number) for m, n in members.items() for number in range(n)]
            run_command("ensemble", *(member / _TRAINED for member in runs), "--out", run)
        return run

    def evaluate(self, run: Path, split: str) -> None:
        """Evaluates a run on a split, if that has not been done."""
        from avemo.evaluation.evaluate import evaluation_folder
        from avemo.evaluation.predictions import FILE

        folder = evaluation_folder(run, split)
        if not (folder / FILE).is_file():
            run_command("evaluate", run / _TRAINED, self.cache, "--split", split, "--out", folder)

    def compared(self, table: str) -> "Comparison":
        """The systems of a table, the one that the p-values are against first."""
        from avemo.evaluation.compare import compare_systems, find_predictions
        from avemo.evaluation.predictions import read_predictions

        names = self.ours(table)
        names.sort(key=lambda name: name != _AGAINST[table])
        split = _split(table)
        return compare_systems(
            {
                name: [
                    read_predictions(file)
                    for run in self.runs(name)
                    for file in find_predictions(run, split)
                ]
                for name in names
            }
        )


def run_command(*arguments: object) -> None:
    """Runs a command of the command line in this process, and shows it."""
    from avemo.cli import run

    words = [str(argument) for argument in arguments]
    print(f"\n$ avemo {shlex.join(words)}", flush=True)
    run(words)


def _write_table(work: Trainings, table: str) -> None:
    from avemo.evaluation.compare import write_table

    result = work.compared(table)
    found = {system.name: system for system in result.systems}
    rows: list[Sequence[object]] = [(*_COLUMNS, *_OURS, *_TESTS)]
    for row in _rows(table):
        theirs = (row.name, row.system, row.initialization, row.single_model)
        cells: list[object] = [*theirs, row.accuracy, row.p_value]
        if row.system in found:
            system, pair = found[row.system], result.against_first(row.system)
            accuracy, unweighted, f1 = system.measures.values()
            cells += [row.split, system.runs, system.clips, accuracy.value, *accuracy.interval]
            cells += [unweighted.value, f1.value]
            if pair:
                cells += [pair.mcnemar, pair.mcnemar_holm]
                cells += [pair.difference.p_value, pair.bootstrap_holm, pair.second]
        rows.append(cells + [None] * (len(rows[0]) - len(cells)))
    write_table(work.out / f"table-{table}.csv", rows)


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _draw_curves(work: Trainings, number: int, title: str, table: str) -> None:
    from avemo.evaluation.compare import write_table
    from avemo.evaluation.figures import draw_curves
    from avemo.evaluation.plots import save_picture

    rows: list[Sequence[object]] = [("system", "run", "epoch", "accuracy")]
    curves: dict[str, list[list[float]]] = {}
    names = {row.system: row.name for row in _rows(table)}
    for system in work.ours(table):
        for run in work.runs(system):
            curve = _validation_accuracies(run / "tensorboard")
            rows += [(system, run.name, epoch, y) for epoch, y in enumerate(curve)]
            curves.setdefault(names[system], []).append(curve)
    write_table(work.out / f"figure-{number}.csv", rows)
    save_picture(work.out / f"figure-{number}.png", partial(draw_curves, title, curves), dpi=110)


def _validation_accuracies(log: Path) -> list[float]:
    """The accuracy on the validation split after each epoch, as the log of a training has it.

    A training that was killed and went on may have logged a step twice: the last time counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    steps = {e.step: e.value for e in sorted(events.Scalars("val/accuracy"), key=_when)}
    return [steps[step] for step in sorted(steps)]


def _when(event: Any) -> float:
    return float(event.wall_time)


def _draw_attention(work: Trainings) -> None:
    """Figure 7: two clips, drawn at random of those of the test split that are recognised."""
    import numpy as np

    from avemo.data.cache import ClipCache
    from avemo.evaluation.compare import find_predictions, write_table
    from avemo.evaluation.figures import attend, draw_attended_clip
    from avemo.evaluation.plots import save_picture
    from avemo.evaluation.predictions import read_predictions
    from avemo.training.checkpoint import load

    run = work.runs(_FUSED)[0]
    work.evaluate(run, "test")
    (file,) = find_predictions(run, "test")
    answers = read_predictions(file)
    right = [clip.path for clip in answers.clips if clip.predicted == clip.label]
    right = right or [clip.path for clip in answers.clips]
    rng = np.random.default_rng(work.plan.first_seed)
    chosen = rng.choice(right, size=min(_EXAMPLES, len(right)), replace=False).tolist()
    cache = ClipCache(work.cache)
    places = {clip.path: place for place, clip in enumerate(cache.clips)}
    trained = load(run / _TRAINED)
    rows: list[Sequence[object]] = [("clip", "stream", "start_s", "end_s", "attention", "seen")]
    for number, path in enumerate(chosen, start=1):
        info = cache.clips[places[path]]
        attended = attend(trained, cache[places[path]], info.seconds(cache.features))
        title = f"{path}: {info.label}"
        picture = work.out / f"figure-7-{number}.png"
        save_picture(picture, partial(draw_attended_clip, title, attended), dpi=110)
        for stream, weights in attended.attention.items():
            edges = np.linspace(0, attended.seconds, len(weights) + 1)
            seen = attended.seen if stream == "video" else np.ones(len(weights), bool)
            rows += [
                (path, stream, *map(float, edges[i : i + 2]), float(w), bool(seen[i]))
                for i, w in enumerate(weights)
            ]
    write_table(work.out / "figure-7.csv", rows)


def _draw_confusion(work: Trainings) -> None:
    """Figure 10: the confusion matrix of all runs together, on the test split."""
    from avemo.evaluation.compare import find_predictions, write_table
    from avemo.evaluation.evaluate import draw_confusion, score
    from avemo.evaluation.plots import save_picture
    from avemo.evaluation.predictions import read_predictions

    runs = work.runs(_FUSED)
    for run in runs:
        work.evaluate(run, "test")
    found = [read_predictions(file) for run in runs for file in find_predictions(run, "test")]
    classes = found[0].classes
    total = score([clip for predictions in found for clip in predictions.clips], classes)
    rows: list[Sequence[object]] = [["true", *classes]]
    for name, counts in zip(classes, total.confusion, strict=True):
        rows.append([name, *(n / max(1, sum(counts)) for n in counts)])
    write_table(work.out / "figure-10.csv", rows)
    save_picture(work.out / "figure-10.png", partial(draw_confusion, total, classes), dpi=120)


def _page(out: Path, plan: Plan, seeds: int, left_out: Mapping[str, str]) -> str:
    """A page that shows all tables and figures that are there."""
    lines = [
        "# The paper's tables and figures",
        "",
        f"Trained by `avemo paper`: configuration {plan.config}, {seeds} seed(s) from "
        f"{plan.first_seed}, epochs: {plan.epochs or 'as configured'}. The paper's figures are of "
        "other corpora (AFEW, IEMOCAP), so that only the order of the systems can be compared. "
        "Accuracies are means over the seeds with a 95% interval by bootstrap over clips; p-values "
        "are of McNemar's exact test and of a paired bootstrap, after Holm's correction over the "
        "table. The epoch of every training is the best on the validation split, which Tables II and "
        "III are of, as in the paper: their accuracies are too good for that.",
    ]
    if left_out:
        lines += ["", "Left out, for what they need is not there:", ""]
        lines += [f"- `{system}`: {reason}" for system, reason in left_out.items()]
    for file in sorted(out.glob("table-*.csv")):
        lines += ["", f"## Table {file.stem.removeprefix('table-')}", "", *table_lines(_read(file))]
        lines += ["", f"[{file.name}]({file.name})"]
    pictures = [picture.name for picture in out.glob("figure-*.png")]
    for number, caption in CAPTIONS.items():
        if shown := pictures_of(number, pictures):
            lines += ["", f"## Figure {number}: {caption}", ""]
            lines += [f"![{caption}]({picture})" for picture in shown]
            lines += ["", f"[figure-{number}.csv](figure-{number}.csv)"]
    return "\n".join(lines) + "\n"


def pictures_of(number: int, pictures: Iterable[str]) -> list[str]:
    """The pictures that a figure has among those of a run, by their names."""
    stem = f"figure-{number}"
    return sorted(p for p in pictures if p == f"{stem}.png" or p.startswith(f"{stem}-"))


def table_lines(rows: Sequence[dict[str, str]]) -> list[str]:
    """A table in Markdown.

    Args:
        rows: of table-*.csv.
    """
    against = next((row["against"] for row in rows if row["against"]), "")
    header = ["system", "paper", "paper's p", "here (95% interval)", "unweighted", "F1"]
    header += [f"McNemar p against {against}", "bootstrap p"] if against else []
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [row["name"].replace("|", "/"), f"{float(row['paper_accuracy']):.2f}%"]
        cells.append(row["paper_p_value"] or "-")
        if row["accuracy"]:
            value, low, high = (
                f"{float(row[k]):.1%}" for k in ("accuracy", "accuracy_low", "accuracy_high")
            )
            cells += [f"{value} ({low} to {high})"]
            cells += [f"{float(row[k]):.1%}" for k in ("unweighted_accuracy", "f1")]
        else:
            cells += ["-"] * 3
        if against:
            tests = (row["p_mcnemar_holm"], row["p_bootstrap_holm"])
            cells += [f"{float(p):.2g}" if p else "-" for p in tests]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
