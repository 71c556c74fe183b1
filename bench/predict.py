"""What `avemo predict` takes, beside another commit: `python -m bench.predict --against COMMIT`.

Both commits run in turn on the same clips, each with an untrained model of its own making, from the same seed. The time
is that of whole processes, from the shell and back, with modules compiled as an installation has them. How far the
probabilities are apart is told as well, for what it is worth where the model has changed in between.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkout import ROOT, exported
from .records import Spread

CLIPS = 100
ONE = 5  # times in a turn that one clip is predicted, which takes a tenth as long

_CHECKPOINT = """
import sys, torch, yaml
from pathlib import Path
import avemo
from avemo.data.features import FeatureConfig
from avemo.models import build_model
from avemo.training.checkpoint import save
from avemo.training.config import TrainConfig, from_dict
values = yaml.safe_load((Path(avemo.__file__).parent / "configs" / "small.yaml").read_text())
values["data"]["cache"] = "none"
config = from_dict(TrainConfig, values)
features = FeatureConfig(bins=100, face_size=48)
torch.manual_seed(0)
model = build_model(config.model, bins=100, face_size=48, classes=4)
save(Path(sys.argv[1]), model, config, ("angry", "happy", "neutral", "sad"), features)
"""

_MANY = """
import json, sys
from pathlib import Path
from avemo.evaluation.predict import predict
if __name__ == "__main__":
    model, out, found, options, *clips = sys.argv[1:]
    done = predict(Path(model), list(map(Path, clips)), out=Path(out), **json.loads(options))
    Path(found).write_text(json.dumps([[p.clip.name, p.probabilities] for p in done]))
"""

# An editable install would find its own packages first.
_SITE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
"""


def main() -> int:
    """Measures, prints and writes a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", required=True)
    parser.add_argument("--corpus", type=Path, default=ROOT / "runs/bench-predict/corpus")
    parser.add_argument("--turns", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument(
        "--out", type=Path, help="file or folder; there it is predict-DEVICE-DATE.json"
    )
    options = parser.parse_args()
    if not options.corpus.is_dir():
        words = ["synth", "--out", str(options.corpus), "--clips", str(CLIPS), "--classes", "4"]
        subprocess.run([sys.executable, "-m", "avemo", *words], check=True, cwd=ROOT)
    clips = sorted(map(str, options.corpus.resolve().rglob("*.mp4")))[:CLIPS]
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(options.against, Path(folder), clips, options.turns)
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        from . import machine

        machine.save_result(options.out, "cpu", "predict", {"before": options.against, **figures})
    return 0


def _measure(commit: str, folder: Path, clips: list[str], turns: int) -> dict[str, Any]:
    where = {"before": _exported(commit, folder / "before"), "now": ROOT}
    models = {name: folder / f"{name}.safetensors" for name in where}
    for name, root in where.items():
        _run(root, folder, ["-c", _CHECKPOINT, str(models[name])])
    many = folder / "many.py"
    many.write_text(_MANY)
    kinds: dict[str, tuple[str, dict[str, str]]] = {
        "before": ("before", {}),
        "now": ("now", {}),
        "now, no pictures": ("now", {"pictures": "none"}),
    }
    one: dict[str, list[float]] = {name: [] for name in where}
    all_clips: dict[str, list[float]] = {kind: [] for kind in kinds}
    answers = {}
    cold = {
        name: ["-m", "avemo", "predict", str(model), clips[0], "--out", str(folder / "out")]
        for name, model in models.items()
    }
    for name, root in where.items():  # the first one compiles modules
        _run(root, folder, cold[name])
    for _ in range(turns):
        for name, root in list(where.items()) * ONE:
            one[name].append(_run(root, folder, cold[name]))
        for kind, (name, given) in kinds.items():
            found = folder / "found.json"
            words = [str(models[name]), str(folder / kind), str(found), json.dumps(given), *clips]
            all_clips[kind].append(_run(where[name], folder, [str(many), *words]))
            answers[kind] = json.loads(found.read_text())
    pairs = list(zip(answers["before"], answers["now"], strict=True))
    equal = sum(a == b for a, b in pairs)
    apart = [max(abs(a[name] - b[name]) for name in a) for (_, a), (_, b) in pairs]
    wrong = [["predict"], ["predict", str(models["now"]), "no such file"]]
    return {
        "one_clip_seconds": one,
        "one_clip_ratio": _ratio(one["now"], one["before"]),
        "clips": len(clips),
        "clips_seconds": all_clips,
        "times_faster": {k: _ratio(all_clips["before"], s) for k, s in all_clips.items()},
        "clips_of_equal_bits": equal,
        "probabilities_apart": asdict(Spread.of(apart)) | {"most": max(apart)},
        "the_same_without_pictures": answers["now"] == answers["now, no pictures"],
        "error_seconds": [_run(ROOT, folder, ["-m", "avemo", *w], status=2) for w in wrong],
    }


def _ratio(one: list[float], other: list[float]) -> dict[str, float]:
    """Turn by turn."""
    return asdict(Spread.of([a / b for a, b in zip(one, other, strict=True)]))


def _exported(commit: str, folder: Path) -> Path:
    """The packages of a commit in a folder, with the native library that is installed."""
    exported(commit, folder, "avemo", "kernels")
    (folder / "sitecustomize.py").write_text(_SITE)
    native = Path(sysconfig.get_path("purelib"), "fbp_kernels", "_native.so")
    if native.is_file():
        shutil.copy(native, folder / "kernels/fbp_kernels/_native.so")
    return folder


def _run(root: Path, folder: Path, words: list[str], status: int = 0) -> float:
    """Seconds of a process with a checkout's packages, whose working directory has none."""
    # Installed modules are compiled; here the first process that imports one does it, and no other.
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if root != ROOT:
        environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels")])
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != status:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return round(seconds, 3)


if __name__ == "__main__":
    sys.exit(main())
