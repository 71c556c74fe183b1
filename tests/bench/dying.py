"""A run whose kernel ends its process: what `bench.watch` is tested with, in a process of its own.

Usage: dying.py RESULT HOW [--resume]; HOW is "killed", "lost", "hung" or "raises".
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import ceilings, device
from bench.operators import OPERATORS
from bench.plan import OperatorPlan
from bench.records import Run
from bench.session import Session
from bench.suite import Choice
from fbp_kernels import backends

from .made_up import CEILINGS

CHOICE = Choice(("tiny",), (), ("float32",), ("forward",), ("native",), ("eager",), "cpu")
PLANS = [
    OperatorPlan(name, "tiny", OPERATORS[name].sizes["tiny"], "float32", "forward", "cpu")
    for name in ("fbp", "trunk_fbp", "am_fbp")
]


def main(result: Path, how: str, resume: bool) -> None:
    """Measures three operators, of which the second one's kernel does not come back."""
    right = backends.kernel("trunk_fbp", "native")

    def broken(*_: Any) -> Any:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hung":
            time.sleep(1000)
        if how == "lost":
            device.answers = lambda name: False  # type: ignore[assignment]
            raise torch.AcceleratorError("an illegal memory access was encountered")
        raise RuntimeError("invalid argument")

    backends._kernels["trunk_fbp"]["native"] = backends.Kernel(broken, right.backward)
    ceilings.measure = lambda *_: CEILINGS  # type: ignore[assignment]
    earlier = Run.load(result) if resume and result.is_file() else None
    session = Session(CHOICE, 0.0, result, earlier, resume)
    for plan in PLANS:
        for name in ("native", "eager"):
            if not session.has(plan):
                session.choose(plan, name)
    for plan in PLANS:
        if not session.has(plan):
            session.outcome(plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "--resume" in sys.argv)
