"""Named ranges around the parts of a step: for torch.profiler and, where `nvtx` is installed, for NVIDIA's tools.

A model knows nothing of them: hooks open and close a range around every module's forward.
"""

import importlib
import time
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fbp_kernels import BatchNormReLU

try:
    nvtx: Any = importlib.import_module("nvtx")
except ImportError:
    nvtx = None

DOMAIN = "avemo"  # of the NVTX ranges
PREFIX = f"{DOMAIN}: "  # what tells our ranges from others in a trace of torch.profiler


def nvtx_status() -> str:
    """Whether ranges reach NVIDIA's tools, for people."""
    if nvtx is None:
        return "off: the package nvtx is not installed (pip install 'avemo[profile]')"
    return "on" if nvtx.enabled() else "off: NVTX_DISABLE is set in the environment"


class Range:
    """A context that is a range of that name; it closes when the context is left, by an exception too."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> "Range":
        self._record = torch.profiler.record_function(PREFIX + self.name)
        self._record.__enter__()
        if nvtx is not None:
            nvtx.push_range(self.name, domain=DOMAIN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if nvtx is not None:
            nvtx.pop_range(domain=DOMAIN)
        self._record.__exit__(kind, error, traceback)


class ModuleRanges:
    """A context in which every submodule's forward is a range, named by its path, such as "audio.encoder.conv1".

    Those of a `fbp_kernels.BatchNormReLU` are one range, as they are one pass where nobody has hooks on them.

    Backward needs no hooks: a trace links each backward operation to the forward one that caused it
    (`profiling.trace`). Module backward hooks would cut the graph with views of their own, which
    activations in place then refuse to overwrite.

    Args:
        model: hooks are added to its submodules and removed again; results stay the same bits.

    Attributes:
        kinds: class name of every submodule by path.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = {path: module for path, module in model.named_modules() if path}
        for path, module in list(self.modules.items()):
            if isinstance(module, BatchNormReLU):  # one pass, which hooks on its children would end
                for child, _ in module.named_children():
                    del self.modules[f"{path}.{child}"]
        self.kinds = {path: type(module).__name__ for path, module in self.modules.items()}
        self._handles: list[RemovableHandle] = []
        self._open: list[Range] = []

    def __enter__(self) -> "ModuleRanges":
        for path, module in self.modules.items():
            enter = partial(self._enter, path)
            self._handles += [
                module.register_forward_pre_hook(enter, prepend=True),
                # Also after an exception, so that the ranges around it stay nested.
                module.register_forward_hook(self._leave, always_call=True),
            ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        while self._open:  # what always_call does not see: KeyboardInterrupt
            self._leave()

    def _enter(self, path: str, *_: Any) -> None:
        self._open.append(Range(path).__enter__())

    def _leave(self, *_: Any) -> None:
        self._open.pop().__exit__()


def cost_seconds(repeats: int = 2000) -> float:
    """Processor time that a module's range adds to its call while no profiler listens."""
    model = nn.ModuleList([nn.Identity()])

    def seconds() -> float:
        start = time.process_time()
        for _ in range(repeats):
            model[0](None)
        return time.process_time() - start

    plain = seconds()
    with ModuleRanges(model):
        ranged = seconds()
    return max(ranged - plain, 0.0) / repeats
