"""The whole road once: corpus, cache, training, evaluation, prediction, and what the kernels bring."""

import csv
import json
import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avemo.machine import processor, title

if TYPE_CHECKING:
    from avemo.evaluation.metrics import Scores
    from avemo.training.compare import Quartiles, StepComparison

CONFIG = "small"
FEATURES = ("--bins", "100", "--face_size", "48")  # what `small` is made for
CLIPS = 480
_SYSTEMS = {"am_fbp": "AM-FBP", "audio": "audio only", "video": "video only"}


def demo(
    *,
    out: Path = Path("runs/demo"),
    clips: int = CLIPS,
    seed: int = 0,
    epochs: int | None = None,
    steps: int = 200,
    compare: bool = False,
) -> dict[str, Any]:
    """Makes a small synthetic corpus, trains on it, and reports what came out.

    Runs `avemo synth`, `prepare`, `train`, `evaluate` and `predict`, each shown as the command that it
    is, and then takes the same training steps with reference and with accelerated operators. What an
    earlier demo in the same folder has finished is not done again. The figures are printed as
    a table and written to demo.json.

    Args:
        out: folder for everything.
        clips: number of synthetic clips.
        seed: of the corpus and the training.
        epochs: of training; by default as many as the configuration says.
        steps: training steps of the comparison of operators.
        compare: also train and evaluate the audio-only and the video-only system.

    Returns:
        What demo.json holds.
    """
    clock = _Clock()
    corpus, cache = out / "corpus", out / "cache"
    with clock("synth"):
        _avemo("synth", "--out", corpus, "--clips", clips, "--classes", 4, "--seed", seed)
    with clock("prepare"):
        _avemo("prepare", "manifest", corpus, "--out", cache, *FEATURES)
    scores = {}
    for name in _SYSTEMS if compare else ["am_fbp"]:
        with clock(f"train {name}"):
            _train(name, out / name, cache, seed, epochs)
        with clock(f"evaluate {name}"):
            conditions = corpus / "conditions.csv"
            scores[name] = _avemo("evaluate", _best(out / name), cache, "--conditions", conditions)
    chosen = _one_of_each_class(corpus / "manifest.csv")
    with clock("predict"):
        predictions = _avemo("predict", _best(out / "am_fbp"), *chosen, "--out", out / "attention")
    with clock("compare operators"):
        comparison = _compare_operators(out / "am_fbp", steps)
    pictures = [
        *(out / name / "evaluation-test" / "confusion.png" for name in scores),
        *(p.picture for p in predictions if p.picture),
    ]
    result = {
        "machine": _machine(),
        "seconds": clock.seconds,
        "scores": {name: asdict(s) for name, s in scores.items()},
        "attention": {name: _attention(out / name) for name in scores},
        "against_am_fbp": {
            name: _compare_systems(out / "am_fbp", out / name)
            for name in scores
            if name != "am_fbp"
        },
        "steps": asdict(comparison),
        "pictures": [str(p) for p in pictures],
    }
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("\n" + _table(result, scores, comparison, out))
    return result


def _avemo(*arguments: object) -> Any:
    """Runs a command of the command line in this process, and shows it."""
    from avemo.cli import run

    words = [str(a) for a in arguments]
    print(f"\n$ avemo {shlex.join(words)}", flush=True)
    return run(words)


def _train(name: str, out: Path, cache: Path, seed: int, epochs: int | None) -> None:
    options = ["--model.name", name, "--data.cache", cache, "--seed", seed, "--out", out]
    if epochs is not None:
        options += ["--trainer.epochs", epochs]
    _avemo("train", "--config", CONFIG, *options, "--resume")


def _best(folder: Path) -> Path:
    return folder / "best.safetensors"


def _attention(run: Path) -> dict[str, dict[str, float]]:
    """What the expressive parts of the clips got of each stream's attention, as `evaluate` has left it."""
    text = (run / "evaluation-test" / "attention.json").read_text("utf-8")
    shares: dict[str, dict[str, float]] = json.loads(text)
    return shares


def _one_of_each_class(manifest: Path) -> list[Path]:
    """The first test clip of every class."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    first = {row["label"]: manifest.parent / row["path"] for row in reversed(rows)}
    return [first[label] for label in sorted(first)]


def _compare_operators(run: Path, steps: int) -> "StepComparison":
    from avemo.training.checkpoint import load
    from avemo.training.compare import compare_steps

    print("\ntraining steps with reference and with accelerated operators, in turn", flush=True)
    return compare_steps(load(_best(run)).config, steps=steps)


def _compare_systems(ours: Path, theirs: Path) -> dict[str, float]:
    """McNemar's exact test on the clips of the test split that only one of two systems recognises."""
    from avemo.evaluation.compare import compare_systems, find_predictions
    from avemo.evaluation.predictions import read_predictions

    systems = {
        name: [read_predictions(file) for file in find_predictions(folder, "test")]
        for name, folder in (("other", theirs), ("am_fbp", ours))
    }
    (pair,) = compare_systems(systems).pairs
    return {
        "p_value": pair.mcnemar,
        "only_am_fbp": pair.only_first[0],
        "only_other": pair.only_second[0],
    }


def _machine() -> dict[str, Any]:
    import torch

    from fbp_kernels import native

    cpu = processor()
    return {
        "device": cpu.slug,
        "processor": cpu.name,
        "family": cpu.family,
        "instruction_set": "" if native.MISSING else torch.ops.fbp_native.cpu_isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


class _Clock:
    """Wall-clock seconds of each part of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - start, 1)


def _table(
    result: dict[str, Any], scores: "dict[str, Scores]", comparison: "StepComparison", out: Path
) -> str:
    machine, classes = result["machine"], len(scores["am_fbp"].recalls)
    rows = [
        (
            "machine",
            f"{title(machine)}, torch {machine['torch']}",
        ),
        ("total time", f"{sum(result['seconds'].values()):.0f} s"),
        ("clips of held-out speakers", str(scores["am_fbp"].clips)),
        ("chance", f"accuracy {scores['am_fbp'].chance:.1%}, unweighted {1 / classes:.1%}"),
    ]
    for name, score in scores.items():
        low, high = score.accuracy_interval
        text = f"accuracy {score.accuracy:.1%} ({low:.1%} to {high:.1%}), "
        text += f"unweighted {score.unweighted_accuracy:.1%}"
        if name != "am_fbp":
            text += (
                f"; differs from AM-FBP with p = {result['against_am_fbp'][name]['p_value']:.2g}"
            )
        rows.append((_SYSTEMS[name], text))
    rows += [
        (
            f"attention to {'sound' if stream == 'audio' else 'faces'}",
            f"{share['attention']:.1%} in the expressive {share['time']:.1%} of the time: "
            f"{share['ratio']:.2f} times its share",
        )
        for stream, share in result["attention"]["am_fbp"].items()
    ]
    rows += [
        ("step, reference operators", _milliseconds(comparison.reference_ms)),
        ("step, accelerated operators", _milliseconds(comparison.accelerated_ms)),
        ("ratio of the two", _ratio(comparison.speedup)),
        ("accelerated", comparison.backends),
        (
            f"losses over {comparison.steps} steps",
            f"{comparison.first_loss:.3f} to {comparison.last_loss:.3f}; largest difference "
            f"{comparison.operator_difference:.1e} on equal weights,",
        ),
        (
            "",
            f"{comparison.loss_difference:.1e} between the two runs (rounding alone: "
            f"{comparison.rounding_difference:.1e}, training is chaotic)",
        ),
        ("confusion matrix", str(out / "am_fbp" / "evaluation-test" / "confusion.png")),
        ("attention over time", str(out / "attention")),
        ("all figures", str(out / "demo.json")),
    ]
    width = max(len(name) for name, _ in rows)
    line = "-" * 100
    return "\n".join([line, *(f"{name:<{width}}  {text}" for name, text in rows), line])


def _milliseconds(time: "Quartiles") -> str:
    return f"{time.median:.1f} ms (quartiles {time.lower:.1f} to {time.upper:.1f})"


def _ratio(ratio: "Quartiles") -> str:
    return f"{ratio.median:.3f} (quartiles {ratio.lower:.3f} to {ratio.upper:.3f})"
