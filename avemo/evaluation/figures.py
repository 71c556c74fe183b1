"""The paper's figures of trainings and of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from avemo.data.features import Clip, FeatureConfig, dequantize
from avemo.data.inputs import collate, to_sample
from avemo.evaluation.clips import attended_frames
from avemo.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from avemo.training.checkpoint import Checkpoint

_MARKED = 3
_COLORS = {"video": "#1f77b4", "audio": "#ff7f0e"}
_ATTENDED = "#d62728"


@dataclass(frozen=True)
class AttendedClip:
    """A clip and what a model attended to in it.

    Attributes:
        seconds: its length.
        faces: uint8 (T_v, S, S).
        seen: bool (T_v,), whether there was a face.
        level: (T_a,), the sound's amplitude over time, at any scale.
        attention: weights of each stream's frames, which share the clip out evenly; "audio" and "video".
    """

    seconds: float
    faces: NDArray[np.uint8]
    seen: NDArray[np.bool_]
    level: NDArray[np.float64]
    attention: dict[str, NDArray[np.float64]]


def attend(trained: Checkpoint, clip: Clip, seconds: float) -> AttendedClip:
    """Asks a model of both streams about a clip that has both."""
    batch = collate([to_sample(clip, trained.features)])
    with torch.inference_mode():
        output = trained.model(*batch[:4])
    return AttendedClip(
        seconds,
        clip.video,
        clip.valid,
        sound_level(clip, trained.features),
        {
            "video": output.video_attention[0].double().numpy(),
            "audio": output.audio_attention[0].double().numpy(),
        },
    )


def sound_level(clip: Clip, features: FeatureConfig) -> NDArray[np.float64]:
    """The sound's amplitude over time: of its waveform's stretches, or from the power of all bins of its
    spectrogram."""
    if clip.audio.dtype == np.uint8:
        power = 10 ** (dequantize(clip.audio.view(np.uint8), features).astype(np.float64) / 10)
    else:
        power = np.square(clip.audio.astype(np.float64))
    return np.asarray(np.sqrt(power.sum(axis=1)))


def draw_attended_clip(title: str, clip: AttendedClip) -> Figure:
    """Draws frames, attention to them, the outline of the waveform and attention to it, over time.

    Attention is shown relative to an even spread. The frames shown are those of the highest attention in
    equal parts of the clip; the highest of all have a red border.

    Args:
        title: a line above it.
        clip: what to draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    faces, look, sound, listen = figure.subplots(
        4, 1, sharex=True, gridspec_kw={"height_ratios": (1.4, 1, 1, 1)}
    )
    figure.suptitle(printable(title, 100))
    _draw_faces(faces, clip)
    _draw_attention(look, "faces", clip.attention["video"], clip.seconds, _COLORS["video"])
    edges = np.linspace(0, clip.seconds, len(clip.seen) + 1)
    for index in np.flatnonzero(~clip.seen):
        look.axvspan(edges[index], edges[index + 1], color="0.85", lw=0, zorder=0)
    times = (np.arange(len(clip.level)) + 0.5) / len(clip.level) * clip.seconds
    sound.fill_between(times, -clip.level, clip.level, color="0.4", lw=0)
    sound.set_yticks([])
    sound.set_ylabel("waveform\n(outline)")
    _draw_attention(listen, "sound", clip.attention["audio"], clip.seconds, _COLORS["audio"])
    listen.set_xlabel("seconds; grey: no face seen")
    listen.set_xlim(0, clip.seconds)
    return figure


def _draw_faces(axes: Axes, clip: AttendedClip) -> None:
    from matplotlib.patches import Rectangle

    weights, count = clip.attention["video"], len(clip.faces)
    chosen = attended_frames(weights, count)
    marked = sorted(chosen, key=lambda index: -weights[index])[:_MARKED]
    width = clip.seconds / len(chosen)
    for place, index in enumerate(chosen):
        left, right = (place + 0.04) * width, (place + 0.96) * width
        axes.imshow(
            clip.faces[index],
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(left, right, 0, 1),
            aspect="auto",
        )
        color, thick = (_ATTENDED, 3.0) if index in marked else ("0.6", 0.8)
        axes.add_patch(Rectangle((left, 0), right - left, 1, fill=False, ec=color, lw=thick))
        time = (index + 0.5) / count * clip.seconds
        axes.plot([time, (left + right) / 2], [-0.18, 0], color=color, lw=1, clip_on=False)
    axes.set_ylim(-0.2, 1.03)
    axes.set_yticks([])
    axes.set_ylabel("frames")


def _draw_attention(
    axes: Axes, name: str, weights: NDArray[np.float64], seconds: float, color: str
) -> None:
    edges = np.linspace(0, seconds, len(weights) + 1)
    axes.stairs(weights * len(weights), edges, fill=True, color=color, alpha=0.75)
    axes.axhline(1, color="0.4", lw=0.8, ls="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"attention\nto {name}")


def draw_curves(title: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draws the validation accuracy of systems over epochs: each run thin, their mean thick.

    Args:
        title: a line above it.
        curves: by system, the accuracy after each epoch of each of its runs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, runs) in enumerate(curves.items()):
        color = f"C{number % 10}"
        for run in runs if len(runs) > 1 else ():
            axes.plot(range(1, len(run) + 1), run, color=color, lw=0.6, alpha=0.5)
        shortest = min(map(len, runs))
        mean = np.mean([run[:shortest] for run in runs], axis=0)
        axes.plot(range(1, shortest + 1), mean, color=color, lw=1.8, label=printable(name))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on the validation split")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize=8)
    return figure
