"""The peak of a process's resident memory over one call of `am_fbp`: what its threads and the C library hold counts."""

import json
import re
import subprocess
import sys
from pathlib import Path

PEER = "eager's memory"
_ROOT = Path(__file__).parents[1]


def peak(sizes: dict[str, int], mode: str, backend: str) -> float:
    """Bytes that a call adds to the resident memory that its inputs need, at its peak.

    Args:
        sizes: of `bench.operators.am_fbp`.
        mode: "forward" or "training"; in training the projections are recomputed.
        backend: "native", or "reference" for eager PyTorch.

    Raises:
        RuntimeError: the process fails; the message says why.
    """
    command = [sys.executable, "-m", "bench.resident", json.dumps(sizes), mode, backend]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{backend} ended with status {done.returncode}: {''.join(last)}")
    return float(done.stdout)


def _added(sizes: dict[str, int], mode: str, backend: str) -> int:
    import torch

    from .contenders import forward, on_backend, training
    from .operators import SUBJECTS
    from .operators.call import Draw

    torch.set_num_threads(2)
    subject = SUBJECTS["am_fbp"]
    draw = Draw("float32")
    options = {} if backend == "reference" else {"keep_projections": False}
    smallest = subject.make(subject.sizes["one"], draw)
    on_backend(smallest.function, backend, **options)(*smallest.tensors)  # what is loaded once
    call = subject.make(sizes, draw)
    outputs = sizes["O_G"] + sizes["O_M"]
    cot = (draw(sizes["B"], outputs),)
    function = on_backend(call.function, backend, **options)
    forwards = mode == "forward"
    run = forward(function, call.tensors) if forwards else training(function, call.tensors, cot)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = _kilobytes("VmRSS")
    held = run()
    added = _kilobytes("VmHWM") - before
    del held
    return 1024 * added


def _kilobytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(match[1])


if __name__ == "__main__":
    print(_added(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]))
