"""Scores a trained model on the clips of a cache."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from avemo.data.cache import ClipCache
from avemo.data.datamodule import ClipDataModule
from avemo.evaluation.metrics import Scores, confusion_matrix, scores
from avemo.evaluation.plots import LONGEST_LABEL, save_picture
from avemo.evaluation.predictions import Prediction, write_predictions
from avemo.models import required_streams
from avemo.models.backend import BackendName, use_backend
from avemo.text import printable
from avemo.training.checkpoint import Checkpoint, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def evaluate(
    checkpoint: Path,
    cache: Path,
    *,
    split: str = "test",
    out: Path | None = None,
    batch_size: int = 32,
    backend: BackendName | None = None,
) -> Scores:
    """Prints accuracy, unweighted accuracy, F1 and confusion matrix of a model, and saves them.

    The folder `out` receives scores.json, predictions.csv (one line per clip) and confusion.png.

    Args:
        checkpoint: a .safetensors file of `avemo train`.
        cache: folder that `avemo prepare` wrote.
        split: train, val or test.
        out: folder for the results; by default `evaluation-SPLIT` next to the checkpoint.
        batch_size: clips per step; the result does not depend on it.
        backend: kernels that run the model's operators; by default the best for each.

    Returns:
        All that scores.json holds.

    Raises:
        ValueError: the cache does not fit the model: other features, or classes that it does not
            know.
    """
    trained = load(checkpoint)
    _check_fit(trained, ClipCache(cache), cache)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained.model.to(device)
    use_backend(trained.model, backend)
    clips = ClipDataModule(
        cache,
        batch_size=batch_size,
        max_seconds=trained.config.data.max_seconds,
        fold=trained.config.data.fold,
        needs=required_streams(trained.model, trained.config.data.augment.modality_dropout),
    )
    if clips.left_out(split):
        print(clips.left_out(split))
    labels = [trained.classes.index(name) for name in clips.classes]
    speakers = {clip.path: clip.speaker for clip in clips.cache.clips}
    predictions = [
        Prediction(path, speakers[path], labels[label], probabilities)
        for path, label, probabilities in _answers(trained.model, clips, split, device)
    ]
    result = score(predictions, trained.classes)
    out = out or evaluation_folder(checkpoint.parent, split)
    _save(out, result, predictions, trained.classes)
    print(report(result, trained.classes))
    print(f"saved in {out}")
    return result


def evaluation_folder(run: Path, split: str) -> Path:
    """Where in a run's folder `evaluate` leaves its results."""
    return run / f"evaluation-{split}"


def score(predictions: list[Prediction], classes: tuple[str, ...]) -> Scores:
    """The measures of a list of predictions, the most probable class of each taken."""
    confusion = confusion_matrix(len(classes))
    confusion.update(
        torch.tensor([p.predicted for p in predictions]),
        torch.tensor([p.label for p in predictions]),
    )
    return scores(confusion.compute(), classes)


def report(result: Scores, classes: tuple[str, ...]) -> str:
    """The scores as text, with the confusion matrix."""
    low, high = result.accuracy_interval
    width = max(6, *map(len, classes))
    rows = [" " * width + "".join(f" {name:>{width}}" for name in (*classes, "recall"))]
    for name, counts in zip(classes, result.confusion, strict=True):
        recall = result.recalls[name]
        cells = [str(n) for n in counts] + ["-" if recall is None else f"{recall:.1%}"]
        rows.append(f"{name:<{width}}" + "".join(f" {cell:>{width}}" for cell in cells))
    return "\n".join(
        [
            f"clips                 {result.clips}",
            f"accuracy              {result.accuracy:.1%} (95% interval {low:.1%} to {high:.1%}; "
            f"chance {result.chance:.1%}, p = {result.p_value:.2g})",
            f"unweighted accuracy   {result.unweighted_accuracy:.1%}",
            f"F1                    {result.f1:.1%}",
            "",
            "confusion matrix (rows: truth, columns: prediction)",
            *rows,
        ]
    )


def _check_fit(trained: Checkpoint, clips: ClipCache, path: Path) -> None:
    ours, theirs = trained.features.to_dict(), clips.features.to_dict()
    differing = [
        f"{k}: {theirs.get(k)} instead of {ours[k]}" for k in ours if ours[k] != theirs.get(k)
    ]
    if differing:
        raise ValueError(
            f"the cache {path} has other features than the model: {', '.join(differing)}"
        )
    unknown = sorted(set(clips.classes) - set(trained.classes))
    if unknown:
        raise ValueError(
            f"the cache {path} has classes that the model does not know: {', '.join(unknown)}; "
            f"it knows {', '.join(trained.classes)}"
        )


@torch.inference_mode()
def _answers(
    model: torch.nn.Module, clips: ClipDataModule, split: str, device: str
) -> Iterator[tuple[str, int, list[float]]]:
    for batch in tqdm(clips.evaluation_dataloader(split), desc="evaluating", leave=False):
        inputs = [x.to(device) for x in batch[:4]]
        probabilities = model(*inputs).logits.softmax(1).tolist()
        yield from zip(batch.names, batch.labels.tolist(), probabilities, strict=True)


def _save(
    out: Path, result: Scores, predictions: list[Prediction], classes: tuple[str, ...]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    write_predictions(out, classes, predictions)
    save_picture(out / "confusion.png", partial(_draw, result, classes), dpi=120)


def _draw(result: Scores, classes: tuple[str, ...]) -> "Figure":
    """The confusion matrix as a picture: shares of each row as shades, counts as text."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.array(result.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 2.0 + 0.8 * len(classes)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    ticks, names = range(len(classes)), [printable(name, LONGEST_LABEL) for name in classes]
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(
        f"accuracy {result.accuracy:.1%}, unweighted {result.unweighted_accuracy:.1%}, "
        f"{result.clips} clips",
        fontsize="medium",
    )
    for (i, j), count in np.ndenumerate(counts):
        shade = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{shares[i, j]:.0%}\n{count}", ha="center", va="center", color=shade)
    return figure
