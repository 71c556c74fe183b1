"""Sizes and latencies of exported models: `python -m bench.export CHECKPOINT`.

Contenders take turns in one process on the same batches: PyTorch with reference and with accelerated operators, the
program of torch.export, that of AOTInductor, and onnxruntime, each with as many threads.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .records import Spread

SHAPES = {"one clip of 2.5 s": (1, 251, 31), "8 clips of 2.5 s": (8, 251, 31)}


def main() -> None:
    """Measures, prints and writes a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument(
        "--files",
        type=Path,
        help="folder that keeps what is exported: what is in it is not made again",
    )
    parser.add_argument(
        "--out", type=Path, help="file or folder; there it is export-DEVICE-DATE.json"
    )
    options = parser.parse_args()
    import torch

    from . import machine

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = options.files or Path(name)
        figures = _measure(options.checkpoint, folder, options.threads, options.turns)
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        machine.save_result(options.out, "cpu", "export", {"threads": options.threads, **figures})


def _measure(checkpoint: Path, folder: Path, threads: int, turns: int) -> dict[str, Any]:
    import onnxruntime
    import torch

    from avemo.exporting import INPUTS, drawn
    from avemo.models.backend import use_backend
    from avemo.training.checkpoint import load

    names = {"onnx": "model.onnx", "pt2": "model.pt2", "aot": "model.aot.pt2"}
    files = {kind: folder / name for kind, name in names.items()}
    differences = {kind: _exported(checkpoint, file, kind) for kind, file in files.items()}
    trained, accelerated = load(checkpoint), load(checkpoint).model
    use_backend(accelerated)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Else its threads go on to wait in a loop after a call, and PyTorch's next one has half the processor.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(files["onnx"]), settings, providers=["CPUExecutionProvider"]
    )
    program = torch.export.load(files["pt2"]).module()
    compiled = torch._inductor.aoti_load_package(str(files["aot"]))
    latencies = {}
    for label, shape in SHAPES.items():
        batch = drawn(trained, *shape)
        given = dict(zip(INPUTS, (x.numpy() for x in batch), strict=True))
        calls: dict[str, Callable[[], object]] = {
            "PyTorch, reference": partial(trained.model, *batch),
            "PyTorch, accelerated": partial(accelerated, *batch),
            "torch.export": partial(program, *batch),
            "AOTInductor": partial(compiled, *batch),
            "onnxruntime": partial(session.run, None, given),
        }
        latencies[label] = {name: s.__dict__ for name, s in _turns(calls, turns).items()}
    sizes = {kind: file.stat().st_size for kind, file in files.items()}
    return {
        "bytes": {"safetensors": checkpoint.stat().st_size, **sizes},
        "largest_difference": differences,
        "seconds": latencies,
    }


def _exported(checkpoint: Path, file: Path, kind: Any) -> dict[str, float]:
    """Writes a file, if it is not there; the largest differences from PyTorch, by output."""
    from avemo.exporting import export

    told = file.with_suffix(f"{file.suffix}.json")
    if not told.is_file():
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(export(checkpoint, out=file, format=kind)))
    return dict(json.loads(told.read_text()))


def _turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, Spread]:
    """Seconds of a call of each, in turn."""
    import torch

    samples: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for turn in range(turns + 3):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= 3:
                    samples[name].append(time.perf_counter() - start)
    return {name: Spread.of(values) for name, values in samples.items()}


if __name__ == "__main__":
    main()
