"""How many clips a second `avemo prepare` does on two cores, beside another commit, and what its workers hold.

The clips are those of the synthetic corpus at 640 x 480, 3 s each, in H.264 with B-frames and AAC. Each turn prepares
all of them by the other commit and then by what is checked out, into folders of their own, whose arrays have to be the
same bytes.
"""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .checkout import exported
from .records import Spread

VERSION = 1
WORKERS = 2
_WIDTH, _HEIGHT, _FPS, _SECONDS, _RATE = 640, 480, 25, 3, 16000

# Commits before corpora had names took the manifest first. The seconds are those of the call, imports left out.
_CODE = """
import inspect, json, sys
from pathlib import Path
from avemo.data.prepare import prepare
root, out = map(Path, sys.argv[1:3])
named = "corpus" in inspect.signature(prepare).parameters
given = ("manifest", root) if named else (root / "manifest.csv",)
report = prepare(*given, out=out, workers=int(sys.argv[3]))
print(json.dumps([report.seconds, report.done]))
"""


def run_prepare(folder: Path, against: str, turns: int, clips: int) -> dict[str, Any]:
    """Measures and prints clips a second, and gives the figures.

    Args:
        folder: of the clips; they are made where it has none.
        against: a commit.
        turns: of each side.
        clips: how many.

    Raises:
        RuntimeError: not all clips were prepared, or the caches differ.
    """
    make_clips(folder, clips)
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as temporary:
        checkout = exported(against, Path(temporary, "checkout"), "avemo")
        for turn in range(turns):
            caches = {name: Path(temporary, f"{name}-{turn}") for name in seconds}
            for name, cache in caches.items():
                took, done = _prepared(folder, cache, checkout if name == "before" else None)
                if done != clips:
                    raise RuntimeError(f"{done} of {clips} clips were prepared by what is {name}")
                seconds[name].append(took)
            print(
                ", ".join(f"{name} {took[-1]:.1f} s" for name, took in seconds.items()), flush=True
            )
            if _arrays(caches["before"]) != _arrays(caches["now"]):
                raise RuntimeError("the caches differ")
    ratio = Spread.of([a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)])
    rates = {name: Spread.of([clips / s for s in took]) for name, took in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate.median:.1f} clips/s")
    print(f"ratio {ratio.median:.2f} ({ratio.lower:.2f} to {ratio.upper:.2f}), the same bytes")
    return {
        "version": VERSION,
        "before": against,
        "clips": clips,
        "workers": WORKERS,
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "ratio": asdict(ratio),
        "same_bytes": True,
    }


def run_memory(folder: Path, clips: int) -> dict[str, Any]:
    """Prepares many clips, prints what memory the workers hold meanwhile, and gives the figures.

    Args:
        folder: of clips; each is taken as often as it takes, under other names.
        clips: how many.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root, cache = Path(temporary, "clips"), Path(temporary, "cache")
        root.mkdir()
        given = sorted(folder.glob("*.mp4"))
        names = [f"{number:05d}.mp4" for number in range(clips)]
        for number, name in enumerate(names):
            # Not a link: one file under two names is one clip.
            (root / name).write_bytes(given[number % len(given)].read_bytes())
        _write_manifest(root, names)
        held: list[tuple[float, float]] = []
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(os.getpid(), done, held))
        watch.start()
        start = time.monotonic()
        try:
            took, prepared = _prepared(root, cache, None)
        finally:
            done.set()
            watch.join()
    times = np.array([t for t, _ in held]) - start
    sizes = np.array([size for _, size in held]) / 2**20
    parts = np.linspace(0.1, 1.0, 10) * times[-1]
    tenths = [float(sizes[np.searchsorted(times, end, "right") - 1]) for end in parts]
    print(
        f"{prepared} clips in {took:.0f} s; MiB of the largest worker after each tenth of the time:"
    )
    print(" ".join(f"{size:.0f}" for size in tenths))
    return {"clips": prepared, "worker_mib_by_tenths": tenths}


def make_clips(folder: Path, count: int) -> None:
    """Writes the clips and their manifest, where the folder has none."""
    if (folder / "manifest.csv").is_file():
        return
    import av
    import cv2

    from avemo.synth.clip import Format, render_audio, render_video
    from avemo.synth.corpus import Parameters, plan

    folder.mkdir(parents=True, exist_ok=True)
    media = Format(_HEIGHT // 2, _FPS, _RATE)
    plans = plan(Parameters(count, 7, 0, 0.5, media.size, _FPS, _RATE))
    side, frames = (_WIDTH - _HEIGHT) // 2, _SECONDS * _FPS
    for number, clip in enumerate(plans):
        # Shorter than 3 s, most of them: they go on backwards.
        shown = render_video(clip, media)
        shown = (shown + shown[::-1] + shown)[:frames]
        sound = np.resize(render_audio(clip, media), _SECONDS * _RATE)
        with av.open(str(folder / f"{number:05d}.mp4"), "w") as container:
            video = container.add_stream("libx264", rate=_FPS)
            video.width, video.height, video.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
            video.options = {"preset": "veryfast", "crf": "23", "threads": "1"}
            audio = container.add_stream("aac", rate=_RATE, layout="mono")
            for pixels in shown:
                large: Any = cv2.resize(pixels, (_HEIGHT, _HEIGHT), interpolation=cv2.INTER_CUBIC)
                wide: Any = cv2.copyMakeBorder(large, 0, 0, side, side, cv2.BORDER_REPLICATE)
                container.mux(video.encode(av.VideoFrame.from_ndarray(wide, format="rgb24")))
            container.mux(video.encode())
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate = _RATE
            container.mux([*audio.encode(samples), *audio.encode()])
    _write_manifest(folder, [f"{number:05d}.mp4" for number in range(count)])


def _write_manifest(folder: Path, names: list[str]) -> None:
    rows = [f"{name},class {number % 4},train" for number, name in enumerate(names)]
    (folder / "manifest.csv").write_text("\n".join(["path,label,split", *rows]) + "\n", "utf-8")


def _prepared(folder: Path, cache: Path, checkout: Path | None) -> tuple[float, int]:
    """Seconds and number of clips of a run by a checkout, or by the avemo that is installed."""
    command, environment = [sys.executable], dict(os.environ)
    if checkout is not None:
        # Without site: an editable install would come before the path.
        command.append("-S")
        environment["PYTHONPATH"] = os.pathsep.join([str(checkout), sysconfig.get_path("purelib")])
    command += ["-c", _CODE, str(folder.resolve()), str(cache), str(WORKERS)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    seconds, count = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), int(count)


def _arrays(cache: Path) -> list[bytes]:
    """What the shards hold of the clips, whatever the format of the cache."""
    from safetensors.numpy import load_file

    shards = [load_file(file) for file in sorted(cache.glob("*.safetensors"))]
    return [shard[name].tobytes() for shard in shards for name in ("audio", "video", "valid")]


def _watch(parent: int, done: threading.Event, held: list[tuple[float, float]]) -> None:
    """Notes the largest memory of a worker, twice a second.

    Workers are the processes below this one that have none below themselves.
    """
    import psutil

    while not done.wait(0.5):
        sizes = []
        for process in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if not process.children():
                    held_now = process.memory_info()
                    sizes.append(float(held_now.rss - held_now.shared))
        if sizes:
            held.append((time.monotonic(), max(sizes)))
