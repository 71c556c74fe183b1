"""The model card of a trained model, written from what its run has left."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avemo.text import printable

if TYPE_CHECKING:
    from avemo.training.checkpoint import Checkpoint

_UNKNOWN = "Not recorded."
_PAGE = """\
---
library_name: avemo
pipeline_tag: video-classification
tags:
- audio-visual
- emotion-recognition
---

# Audio-visual emotion recognition: {name}

System `{name}`, {parameters} parameters. It names one of {count} emotions: {emotions}.

It takes sound as {sound} and {faces}, found by {detector}{longest}.

## Use

```python
import avemo
trained = avemo.load("FOLDER")   # .model, .classes, .features
```

or `avemo predict FOLDER CLIPS...`. Meant for research on how emotions are expressed, and for tools that the people who
are seen have agreed to.

## Training data

{data}

## Figures

{figures}

## Training

{training}

## Limits

- It names what an expression looks and sounds like to those who labelled the data, not what a person feels.
- Figures hold for clips like those of the data; other cameras, languages, ages and cultures were not measured.
- It names an emotion for every clip that it can read, also where none is shown.
- Not for decisions about people: hiring, grading, policing, medicine, credit.
"""


def card(trained: Checkpoint, run: Path | None) -> str:
    """A model card in Markdown, with the metadata that the Hugging Face hub reads.

    Args:
        trained: the model.
        run: the folder of its training; without it, or where that lacks something, the card says so.
    """
    config, features = trained.config, trained.features
    detector = "OpenCV's Haar cascade" if features.detector == "haar" else features.detector
    longest = config.data.max_seconds
    return _PAGE.format(
        name=config.model.name,
        parameters=f"{sum(p.numel() for p in trained.model.parameters()):,}",
        count=len(trained.classes),
        emotions=", ".join(map(printable, trained.classes)),
        sound=_sound(features),
        faces=f"{features.face_size} x {features.face_size} face crops at {features.fps:g} a second",
        detector=detector,
        longest=f"; clips of training were at most {longest:g} s long" if longest else "",
        data=_data(run, config.data.cache),
        figures=_figures(run),
        training=_training(run),
    )


def _sound(features: Any) -> str:
    if features.sound == "waveform":
        return "a waveform"
    return f"a log spectrogram of {features.bins} bins"


def _data(run: Path | None, cache: Path) -> str:
    """Clips and speakers of the cache, if that is still where it was."""
    from avemo.data.cache import CacheError
    from avemo.data.shards import open_clips

    try:
        clips = open_clips(cache).clips if run is not None else []
    except (FileNotFoundError, CacheError):
        clips = []
    if not clips:
        return _UNKNOWN
    splits = Counter(clip.split for clip in clips)
    rows = ["| split | clips | speakers |", "|---|---|---|"]
    for split in splits:
        speakers = {clip.speaker for clip in clips if clip.split == split} - {""}
        rows.append(f"| {split} | {splits[split]} | {len(speakers) or 'not recorded'} |")
    of = {s: {c.speaker for c in clips if c.split == s} - {""} for s in splits}
    shared = of.get("train", set()) & of.get("test", set())
    if shared:
        said = (
            f"Speakers of the test split who were in training, too: {len(shared)}. "
            "The figures say nothing of new people."
        )
    else:
        said = "No speaker of the test split was in training."
    return "\n".join(
        [f"Cache `{printable(cache.name)}`.", "", *rows, "", said if of.get("test") else ""]
    ).rstrip()


def _figures(run: Path | None) -> str:
    found = sorted(run.glob("evaluation-*/scores.json")) if run is not None else []
    if not found:
        return "Not evaluated."
    rows = [
        "| split | clips | accuracy (95% interval) | unweighted accuracy | chance |",
        "|---|---|---|---|---|",
    ]
    for file in found:
        s = json.loads(file.read_text("utf-8"))
        low, high = s["accuracy_interval"]
        name = file.parent.name.removeprefix("evaluation-")
        rows.append(
            f"| {name} | {s['clips']} | {s['accuracy']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {s['unweighted_accuracy']:.1%} | {s['chance']:.1%} |"
        )
    return "\n".join(rows)


def _training(run: Path | None) -> str:
    file = run / "run.json" if run is not None else None
    if file is None or not file.is_file():
        return _UNKNOWN
    starts = json.loads(file.read_text("utf-8"))["starts"]
    last = starts[-1]
    versions = ", ".join(f"{name} {value}" for name, value in last["versions"].items())
    machine = last["machine"]["gpu"] or last["machine"]["name"]
    count = f"{len(starts)} start" + "s" * (len(starts) > 1)
    made = f"{last['started'][:10]}, {count}, commit {last['commit']}"
    return f"{made}; {versions}; {machine}."
