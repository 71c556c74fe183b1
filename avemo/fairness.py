"""Whether the synthetic corpus is a fair test of fusion: what a fusion gains must go with what it gains it by.

M-FBP fuses moment by moment: where the emotion shows in the whole clip, no moment tells more than another, and it must
not be ahead of G-FBP. AG-FBP weighs the streams by their norms: where both are clean, neither deserves more than the
other, and it must not be ahead either.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avemo.paper import Plan, Trainings, claim, run_command
from avemo.storage import one_writer, write
from avemo.systems import systems as trainable

if TYPE_CHECKING:
    from avemo.evaluation.compare import Comparison

CORPORA = {  # options of `avemo synth`, what is off there, and which system must then not be ahead
    "as it is": ((), None),
    "trunks carry nothing": (("--expression", "whole"), "m_fbp"),
    "both streams clean": (("--noise", "0"), "ag_fbp"),
}
BASELINE = "g_fbp"
SYSTEMS = (
    BASELINE,
    "ag_fbp",
    "m_fbp",
    "am_fbp",
    "encoder_concat",
    "decision_fusion",
    "audio",
    "video",
)
FEATURES = ("--bins", "100", "--face_size", "48")  # what the configuration `small` is made for
LEVEL = 0.05
_PLAN, _RESULT, _PAGE = "plan.json", "fairness.json", "README.md"


def fairness(
    *,
    out: Path = Path("runs/fairness"),
    clips: int = 480,
    seeds: int = 3,
    systems: tuple[str, ...] = SYSTEMS,
    config: str = "small",
    epochs: int | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Trains fusions on synthetic corpora with a property switched off, and tells whether they gain by it.

    What is there already is not made again; a training that was killed goes on where it was. The folder `out`
    receives fairness.json, README.md, which reads it, and for each corpus systems.csv and pairs.csv, as
    `avemo compare` writes them.

    Args:
        out: folder for everything.
        clips: of each corpus.
        seeds: trainings of each system on each corpus.
        systems: which, G-FBP first.
        config: sizes and training.
        epochs: of each training; by default as many as the configuration says.
        jobs: trainings at once, each with its share of the processors and a log beside its run.

    Returns:
        What fairness.json holds.

    Raises:
        FileExistsError: `out` holds other corpora or other trainings.
        FolderInUseError: another process is writing there.
        ChildProcessError: one of several trainings at once failed.
        ValueError: an argument is out of range.
    """
    if systems[:1] != (BASELINE,):
        raise ValueError(f"systems must begin with {BASELINE}, got {', '.join(systems) or 'none'}")
    if unknown := sorted({*systems} - {*trainable()}):
        raise ValueError(f"systems must be of {', '.join(trainable())}; got {', '.join(unknown)}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    plan: dict[str, Any] = {"clips": clips, "config": config, "epochs": epochs}
    with one_writer(out, "avemo fairness"):
        claim(out / _PLAN, plan)
        corpora = [
            _corpus(name, out / name.replace(" ", "-"), plan, seeds, systems, jobs)
            for name in CORPORA
        ]
        result = plan | {"seeds": seeds, "corpora": corpora}
        write(out / _RESULT, json.dumps(result, indent=1) + "\n")
        write(out / _PAGE, _page(result))
    print(f"saved in {out}")
    return result


def _corpus(
    name: str,
    out: Path,
    plan: Mapping[str, Any],
    seeds: int,
    systems: tuple[str, ...],
    jobs: int,
) -> dict[str, Any]:
    from avemo.data.cache import ClipCache
    from avemo.evaluation.compare import compare_systems, find_predictions, save, table
    from avemo.evaluation.predictions import read_predictions

    options, control = CORPORA[name]
    corpus, cache = out / "corpus", out / "cache"
    run_command("synth", "--out", corpus, "--clips", plan["clips"], *options)
    run_command("prepare", "manifest", corpus, "--out", cache, *FEATURES)
    trained_as = Plan(ClipCache(cache).digest, plan["config"], plan["epochs"], first_seed=0)
    trainings = Trainings(out, cache, trained_as, seeds)
    if jobs > 1:
        trainings.train(systems, jobs)
    predictions = {}
    for system in systems:
        runs = trainings.runs(system)
        for run in runs:
            trainings.evaluate(run, "test")
        predictions[system] = [
            read_predictions(file) for run in runs for file in find_predictions(run, "test")
        ]
    found = compare_systems(predictions)
    save(out, found)
    print(f"\n{name}\n{table(found)}")
    return {"name": name, "options": options, "control": _verdict(found, control)} | asdict(found)


def _verdict(found: "Comparison", control: str | None) -> dict[str, Any] | None:
    """Whether the system that must not be ahead is: significantly, by the paired bootstrap alone."""
    pair = found.against_first(control) if control else None
    if pair is None:
        return None
    ahead = pair.difference.value > 0 and pair.difference.p_value < LEVEL
    return {
        "system": control,
        "must_not_beat": BASELINE,
        "difference": pair.difference.value,
        "p_bootstrap": pair.difference.p_value,
        "p_mcnemar": pair.mcnemar,
        "passed": not ahead,
    }


def _page(result: Mapping[str, Any]) -> str:
    epochs = result["epochs"] or "as configured"
    return "\n".join(
        [
            "# Is the synthetic corpus a fair test?",
            "",
            f"Trained by `avemo fairness`: configuration {result['config']}, {result['clips']} clips in each corpus, "
            f"{result['seeds']} seed(s), epochs: {epochs}.",
            "",
            *tables(result),
            "",
        ]
    )


def tables(result: Mapping[str, Any]) -> list[str]:
    """What `fairness` found, in Markdown.

    Args:
        result: what fairness.json holds; its estimates are value, interval and p-value.
    """
    corpora = result["corpora"]
    names = [system["name"] for system in corpora[0]["systems"]]
    heads = [
        f"{c['name']} (`{shlex.join(c['options'])}`)" if c["options"] else c["name"]
        for c in corpora
    ]
    accuracies = [{s["name"]: _accuracy(s) for s in c["systems"]} for c in corpora]
    gains = [{p["first"]: _gain(p) for p in c["pairs"]} for c in corpora]
    clips = ", ".join(str(c["systems"][0]["clips"]) for c in corpora)
    return [
        f"Accuracy on the test split ({clips} clips), mean over the seeds, with a 95% interval by bootstrap over "
        "clips:",
        "",
        *_markdown(["system", *heads], [[f"`{n}`", *(c[n] for c in accuracies)] for n in names]),
        "",
        f"Points ahead of `{BASELINE}`, with the p-values of the paired bootstrap and of McNemar's exact test, "
        "neither corrected:",
        "",
        *_markdown(["system", *heads], [[f"`{n}`", *(c[n] for c in gains)] for n in names[1:]]),
        "",
        *(_read(c["name"], c["control"]) for c in corpora if c["control"]),
    ]


def _accuracy(system: Mapping[str, Any]) -> str:
    value, (low, high), _ = system["measures"]["accuracy"]
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def _gain(pair: Mapping[str, Any]) -> str:
    value, _, p_bootstrap = pair["difference"]
    return f"{100 * value:+.1f} (p {p_bootstrap:.2g}, {pair['mcnemar']:.2g})"


def _read(corpus: str, verdict: Mapping[str, Any]) -> str:
    points = f"{100 * verdict['difference']:+.1f} points (p {verdict['p_bootstrap']:.2g})"
    return (
        f"- {corpus}: `{verdict['system']}` must not be ahead of `{verdict['must_not_beat']}`, and has {points}: "
        + ("the control holds." if verdict["passed"] else "**the control fails.**")
    )


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
