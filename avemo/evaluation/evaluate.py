"""Scores a trained model on the clips of a cache."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from avemo.data.cache import ClipIndex
from avemo.data.datamodule import ClipDataModule
from avemo.data.media import BOTH
from avemo.data.shards import open_clips
from avemo.evaluation.expressive import Share, Span, describe, read_spans, share
from avemo.evaluation.metrics import Scores, confusion_matrix, scores
from avemo.evaluation.plots import LONGEST_LABEL, save_picture
from avemo.evaluation.predictions import Prediction, write_predictions
from avemo.models import needed_streams, required_streams
from avemo.models.backend import BackendName, use_backend
from avemo.storage import write
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
    conditions: Path | None = None,
    without: Literal["audio", "video"] | None = None,
) -> Scores:
    """Prints accuracy, unweighted accuracy, F1 and confusion matrix of a model, and saves them.

    The folder `out` receives scores.json, predictions.csv (one line per clip) and confusion.png. Of a
    synthetic corpus it can also tell how much of the attention goes to the part of a clip in which the
    emotion shows (attention.json).

    Args:
        checkpoint: a .safetensors file of `avemo train`.
        cache: folder that `avemo prepare` wrote.
        split: train, val or test.
        out: folder for the results; by default `evaluation-SPLIT` next to the checkpoint, or
            `evaluation-SPLIT-without-STREAM`.
        batch_size: clips per step; the result does not depend on it.
        backend: kernels that run the model's operators; by default the best for each.
        conditions: the file conditions.csv of a synthetic corpus, which says when each clip is
            expressive.
        without: this stream is taken from all clips, to tell what a model loses where it is missing.

    Returns:
        All that scores.json holds.

    Raises:
        ValueError: the cache does not fit the model: other features, or classes that it does not
            know; or without that stream, the model has none left.
    """
    trained = load(checkpoint)
    _check_fit(trained, open_clips(cache), cache)
    if without and needed_streams(trained.model) == (without,):
        raise ValueError(
            f"without {without} there is nothing for this model, which attends to no other stream"
        )
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
    spans = read_spans(conditions) if conditions else {}
    answers = list(_answers(trained.model, clips, split, device, without))
    predictions = [
        Prediction(answer.path, speakers[answer.path], labels[answer.label], answer.probabilities)
        for answer in answers
    ]
    result = score(predictions, trained.classes)
    out = out or evaluation_folder(
        checkpoint.parent, f"{split}-without-{without}" if without else split
    )
    _save(out, result, predictions, trained.classes)
    print(report(result, trained.classes))
    if conditions:
        shares = _attention_shares(answers, clips, spans)
        write(out / "attention.json", json.dumps(_plain(shares), indent=1) + "\n")
        print("\n".join(describe(shares)))
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


def _check_fit(trained: Checkpoint, clips: ClipIndex, path: Path) -> None:
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


class _Answer(NamedTuple):
    """A model's answer to a clip.

    Attributes:
        path: of the clip.
        label: its class index in the cache.
        probabilities: of the model's classes.
        attention: by stream, the weights of the clip's frames, (T,), where the stream has any.
    """

    path: str
    label: int
    probabilities: list[float]
    attention: dict[str, NDArray[np.float64]]


@torch.inference_mode()
def _answers(
    model: torch.nn.Module, clips: ClipDataModule, split: str, device: str, without: str | None
) -> Iterator[_Answer]:
    for whole in tqdm(clips.evaluation_dataloader(split), desc="evaluating", leave=False):
        batch = whole.without(without) if without else whole
        output = model(*(x.to(device) for x in batch[:4]))
        probabilities = output.logits.softmax(1).tolist()
        weights = {"audio": output.audio_attention, "video": output.video_attention}
        for row, path in enumerate(batch.names):
            own = {
                name: w[row].double().cpu().numpy() for name, w in weights.items() if w is not None
            }
            if (
                "audio" in own
            ):  # of frames as long as the encoder's: past the end there is no weight
                own["audio"] = np.trim_zeros(own["audio"], "b")
            if "video" in own:
                own["video"] = own["video"][: int(batch.video_lengths[row])]
            yield _Answer(path, int(batch.labels[row]), probabilities[row], own)


def _attention_shares(
    answers: Sequence[_Answer], clips: ClipDataModule, spans: Mapping[str, Span]
) -> dict[str, Share | None]:
    """What the expressive parts of the clips get of each stream's attention; clips that are cropped
    do not count, for their spans are those of the whole."""
    whole = {
        clip.path: seconds
        for clip in clips.cache.clips
        if (seconds := clip.seconds(clips.features)) <= (clips.max_seconds or math.inf)
    }
    counted = {path: span for path, span in spans.items() if path in whole}
    return {
        stream: share(
            {a.path: a.attention[stream] for a in answers if stream in a.attention}, whole, counted
        )
        for stream in BOTH
    }


def _plain(shares: Mapping[str, Share | None]) -> dict[str, dict[str, float]]:
    return {stream: asdict(s) for stream, s in shares.items() if s}


def _save(
    out: Path, result: Scores, predictions: list[Prediction], classes: tuple[str, ...]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(asdict(result), indent=1) + "\n", "utf-8")
    write_predictions(out, classes, predictions)
    save_picture(out / "confusion.png", partial(draw_confusion, result, classes), dpi=120)


def draw_confusion(result: Scores, classes: tuple[str, ...]) -> "Figure":
    """The confusion matrix as a picture: shares of each row as shades, counts as text."""
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
