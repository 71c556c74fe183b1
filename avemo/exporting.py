"""Trained models for programs without avemo: ONNX, torch.export and AOTInductor."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avemo.imports import needs
from avemo.storage import replacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from avemo.training.checkpoint import Checkpoint

INPUTS = ("audio", "audio_lengths", "video", "video_lengths")
OUTPUTS = ("logits", "audio_attention", "video_attention")
TOLERANCE = 1e-4
_METADATA = "avemo"
_SHAPES = ((1, 100, 12), (3, 57, 9), (5, 301, 38))  # clips, frames of sound, frames of video


def export(
    checkpoint: Path, *, out: Path, format: Literal["onnx", "pt2", "aot"] = "onnx"
) -> dict[str, float]:
    """Writes a trained model for programs that have no avemo, and checks it.

    Any number of clips of any length goes in, padded to the longest, as the model's `forward` takes them. Classes and
    features are JSON in the file's metadata. Before the file has its name, it is run on drawn batches beside PyTorch:
    what was there stays until then. Beside it, a file .npz keeps the last batch and its logits, for programs to check
    themselves.

    Args:
        checkpoint: a trained model (.safetensors), or a folder of `save_pretrained`.
        out: the file; its folder is made if needed.
        format: onnx runs in onnxruntime; pt2 is a program of torch.export, for any PyTorch of that version; aot is one
            that is compiled for this machine, by AOTInductor, and needs a C++ compiler here.

    Returns:
        The largest difference from PyTorch over all drawn batches, by output.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is no checkpoint, `out` is a folder or a device, a package is not installed, or what was written
            does not answer as PyTorch does.
        WriteError: it cannot be written.
    """
    if out.exists() and not out.is_file():
        raise ValueError(f"out must be the name of a file, got {out}, which is something else")
    if format == "onnx":  # PyTorch's export imports onnxscript
        needs("format onnx", "onnx", "onnxscript", "onnxruntime", extra="export")
    import numpy as np

    from avemo.models import needed_streams
    from avemo.training.checkpoint import load

    trained = load(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    program = exported(trained)
    streams = needed_streams(trained.model)
    names = ["logits", *(f"{stream}_attention" for stream in streams)]
    described = {"classes": trained.classes, "features": trained.features.to_dict()}
    sample = out.with_name(out.name + ".npz")
    with replacing(sample) as unfinished_sample, replacing(out) as unfinished:
        run = _WRITERS[format](program, unfinished, names, json.dumps(described))
        found = _check(trained, run, unfinished_sample)
        worst = float(np.max(list(found.values())))
        if not worst <= TOLERANCE:
            raise ValueError(f"{out} differs from PyTorch by {worst:.1e}, more than {TOLERANCE:g}")
    size = out.stat().st_size / 2**20
    print(
        f"{out}: {size:.1f} MiB, at most {worst:.1e} from PyTorch on {len(_SHAPES)} drawn batches"
    )
    return found


def exported(trained: Checkpoint) -> torch.export.ExportedProgram:
    """The model as a graph of PyTorch's own operators, for any number of clips of any length.

    Raises:
        ValueError: PyTorch fixes a size in its graph, as torch 2.13.0 does for an LSTM.
    """
    import torch
    from torch import nn

    class Plain(nn.Module):
        """The outputs that there are, as a tuple: a program without avemo knows no class of it."""

        def __init__(self) -> None:
            super().__init__()
            self.model = trained.model

        def forward(
            self, audio: Tensor, audio_lengths: Tensor, video: Tensor, video_lengths: Tensor
        ) -> tuple[Tensor, ...]:
            output = self.model(audio, audio_lengths, video, video_lengths)
            return tuple(x for x in (getattr(output, name) for name in OUTPUTS) if x is not None)

    free = torch.export.Dim.AUTO
    shapes = ({0: free, 2: free}, {0: free}, {0: free, 1: free}, {0: free})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            Plain().eval(), drawn(trained, *_SHAPES[1]), dynamic_shapes=shapes, strict=False
        )
    try:
        program.module()(*drawn(trained, *_SHAPES[0]))
    except AssertionError as error:
        raise ValueError(
            f"the model cannot be exported: PyTorch's graph of it is for one size alone ({error})"
        ) from error
    return program


def drawn(
    trained: Checkpoint, clips: int, audio_frames: int, video_frames: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of noise of clips of different lengths, the first the longest, in which some faces are not seen."""
    import torch

    features = trained.features
    generator = torch.Generator().manual_seed(clips)

    def lengths(most: int) -> Tensor:
        given = torch.randint(1, most + 1, (clips,), generator=generator)
        given[0] = most
        return given

    a, v = lengths(audio_frames), lengths(video_frames)
    audio = torch.randn(clips, features.audio_features, audio_frames, generator=generator)
    side = features.face_size
    video = torch.randn(clips, video_frames, side, side, generator=generator)
    video[torch.rand(clips, video_frames, generator=generator) < 0.2] = 0
    for row in range(clips):
        audio[row, :, a[row] :] = 0
        video[row, v[row] :] = 0
    return audio, a, video, v


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings, and without what PyTorch's exporter says of packages that no model of ours uses."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


Runner = Callable[[tuple["Tensor", ...]], list[Any]]


def _onnx(
    program: torch.export.ExportedProgram, out: Path, names: list[str], described: str
) -> Runner:
    import onnx
    import onnxruntime
    import torch

    with _quiet():
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=list(INPUTS), output_names=names, verbose=False
        )
    assert made is not None
    model = made.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = _METADATA, described
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(out))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    taken = [i.name for i in session.get_inputs()]

    def run(batch: tuple[Tensor, ...]) -> list[Any]:
        given = dict(zip(INPUTS, (x.numpy() for x in batch), strict=True))
        return list(session.run(None, {name: given[name] for name in taken}))

    return run


def _pt2(
    program: torch.export.ExportedProgram, out: Path, names: list[str], described: str
) -> Runner:
    import torch

    with out.open("wb") as file:  # by a name, another suffix would only be warned of
        torch.export.save(
            program, file, extra_files={_METADATA: described, "outputs": ",".join(names)}
        )
    return _called(torch.export.load(out).module())


def _aot(
    program: torch.export.ExportedProgram, out: Path, names: list[str], described: str
) -> Runner:
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.exc import InductorError

    settings = {"aot_inductor.metadata": {_METADATA: described}}
    # It takes names that end in .pt2 alone; beside `out`, such a file may be somebody's.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        package = str(Path(folder, "model.pt2"))
        try:
            made = aoti_compile_and_package(
                program, package_path=package, inductor_configs=settings
            )
        except InductorError as error:
            raise ValueError(
                "format aot: AOTInductor of this PyTorch cannot compile the model, as it cannot the loop of an LSTM "
                f"({' '.join(str(error).split())}); formats onnx and pt2 can be had"
            ) from error
        Path(made).replace(out)
    return _called(aoti_load_package(str(out)))


def _called(module: Callable[..., Any]) -> Runner:
    return lambda batch: [x.detach().numpy() for x in module(*batch)]


_WRITERS = {"onnx": _onnx, "pt2": _pt2, "aot": _aot}


def _check(trained: Checkpoint, run: Runner, sample: Path) -> dict[str, float]:
    """The largest differences from PyTorch; keeps the last batch in a file."""
    import numpy as np
    import torch

    worst: dict[str, float] = {}
    for shape in _SHAPES:
        batch = drawn(trained, *shape)
        with torch.no_grad():
            answer = trained.model(*batch)
        wanted = {name: getattr(answer, name) for name in OUTPUTS}
        present = {name: x.numpy() for name, x in wanted.items() if x is not None}
        for (name, value), found in zip(present.items(), run(batch), strict=True):
            # NumPy's, for which what is no number is the largest: Python's max would pass over it.
            worst[name] = float(np.maximum(worst.get(name, 0.0), np.abs(value - found).max()))
    arrays: dict[str, Any] = dict(zip(INPUTS, (x.numpy() for x in batch), strict=True))
    with sample.open("wb") as file:  # to a name, NumPy would add a suffix
        np.savez(file, **arrays, logits=present["logits"])
    return worst
