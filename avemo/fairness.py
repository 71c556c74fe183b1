"""Whether the synthetic corpus is a fair test of fusion: what a fusion gains must go with what it gains it by.

M-FBP fuses moment by moment: where the emotion shows in the whole clip, no moment tells more than another, and it must
not be ahead of G-FBP. AG-FBP weighs the streams by their norms: where both are clean, neither deserves more than the
other, and it must not be ahead either.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avemo.data.cache import ClipCache
from avemo.evaluation.compare import Comparison, compare_systems, find_predictions, table
from avemo.evaluation.predictions import read_predictions
from avemo.paper import Plan, Trainings, run_command
from avemo.storage import one_writer, write
from avemo.systems import systems as trainable

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


def fairness(
    *,
    out: Path = Path("runs/fairness"),
    clips: int = 480,
    seeds: int = 3,
    systems: tuple[str, ...] = SYSTEMS,
    config: str = "small",
    epochs: int | None = None,
) -> dict[str, Any]:
    """Trains fusions on synthetic corpora with a property switched off, and tells whether they gain by it.

    What is there already is not made again; a training that was killed goes on where it was.

    Args:
        out: folder for everything; fairness.json is the result.
        clips: of each corpus.
        seeds: trainings of each system on each corpus.
        systems: which, G-FBP first.
        config: sizes and training.
        epochs: of each training; by default as many as the configuration says.

    Returns:
        What fairness.json holds.

    Raises:
        ValueError: an argument is out of range.
    """
    if systems[:1] != (BASELINE,):
        raise ValueError(f"systems must begin with {BASELINE}, got {', '.join(systems) or 'none'}")
    if unknown := sorted({*systems} - {*trainable()}):
        raise ValueError(f"systems must be of {', '.join(trainable())}; got {', '.join(unknown)}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    result: dict[str, Any] = {"clips": clips, "seeds": seeds, "config": config, "epochs": epochs}
    with one_writer(out, "avemo fairness"):
        result["corpora"] = [
            _corpus(name, out / name.replace(" ", "-"), clips, seeds, systems, config, epochs)
            for name in CORPORA
        ]
        write(out / "fairness.json", json.dumps(result, indent=1) + "\n")
    return result


def _corpus(
    name: str,
    out: Path,
    clips: int,
    seeds: int,
    systems: tuple[str, ...],
    config: str,
    epochs: int | None,
) -> dict[str, Any]:
    options, control = CORPORA[name]
    corpus, cache = out / "corpus", out / "cache"
    run_command("synth", "--out", corpus, "--clips", clips, *options)
    run_command("prepare", "manifest", corpus, "--out", cache, *FEATURES)
    trainings = Trainings(out, cache, Plan(ClipCache(cache).digest, config, epochs, 0), seeds)
    predictions = {}
    for system in systems:
        runs = trainings.runs(system)
        for run in runs:
            trainings.evaluate(run, "test")
        predictions[system] = [
            read_predictions(file) for run in runs for file in find_predictions(run, "test")
        ]
    found = compare_systems(predictions)
    print(f"\n{name}\n{table(found)}")
    return {"name": name, "options": options, "control": _verdict(found, control)} | asdict(found)


def _verdict(found: Comparison, control: str | None) -> dict[str, Any] | None:
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
