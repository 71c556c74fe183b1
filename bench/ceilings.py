"""The machine's two ceilings, measured and not taken from a datasheet."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from .operators.call import Draw, rounding
from .records import Ceilings

_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY = {"cpu": 1 << 28, "cuda": 1 << 32}  # bytes, beyond any cache
_REPEATS = 7
_PATIENCE = 2.0
"""Seconds that one large product may be expected to take, where another is faster."""
_PRODUCTS = ("torch.mm", "1x1 convolution")


def measure(device: str, dtypes: list[str]) -> Ceilings:
    """The fastest of several large matrix products for each dtype, and of several large copies.

    Libraries differ: a product of two matrices and a convolution with a 1x1 kernel, the same arithmetic,
    may be run by different ones. The ceiling is what any of them reached.

    Args:
        device: "cpu" or "cuda".
        dtypes: as `Draw` names them.
    """
    best = {}
    for dtype in dtypes:
        with rounding(dtype), _rounding_convolutions(dtype):
            best[dtype] = max(_products(device, dtype))
    return Ceilings(
        flops={dtype: rate for dtype, (rate, _) in best.items()},
        bytes=_copy(device),
        product={dtype: name for dtype, (_, name) in best.items()},
    )


def raised(first: Ceilings, second: Ceilings) -> Ceilings:
    """The higher of two measurements, such as before and after a run; one may have dtypes that the other has not."""
    faster = {
        d: max((c for c in (first, second) if d in c.flops), key=lambda c: c.flops[d])
        for d in {**first.flops, **second.flops}
    }
    return Ceilings(
        {d: best.flops[d] for d, best in faster.items()},
        max(first.bytes, second.bytes),
        {d: best.product[d] for d, best in faster.items()},
    )


def _products(device: str, dtype: str) -> list[tuple[float, str]]:
    """Rates of the products, without what is behind at a smaller size and would take long at the large one.

    Without bfloat16 instructions, `torch.mm` reaches 1.2 GFLOP/s with AVX2 on a core of Zen 3: two minutes of repeats.
    What is asked is seconds and not only how far behind it is: other work slows the product that uses all cores alone.
    """
    side = _SIDE[device]
    tried = _rates(device, dtype, side // 4, _PRODUCTS)
    fastest, first = max(tried)
    least = max(fastest / 10, 2.0 * side**3 / _PATIENCE)
    return _rates(device, dtype, side, [n for rate, n in tried if n == first or rate > least])


def _rates(device: str, dtype: str, side: int, names: Collection[str]) -> list[tuple[float, str]]:
    draw = Draw(dtype, device)
    a, b, out = draw(side, side), draw(side, side), draw.empty(side, side)
    picture = a.reshape(1, side, side // 64, 64).to(memory_format=torch.channels_last)
    kernel = b.reshape(side, side, 1, 1)
    runs: list[Callable[[], object]] = [
        lambda: torch.mm(a, b, out=out),
        lambda: F.conv2d(picture, kernel),
    ]
    return [
        (2.0 * side**3 / _seconds(run, device), name)
        for name, run in zip(_PRODUCTS, runs, strict=True)
        if name in names
    ]


@contextmanager
def _rounding_convolutions(dtype: str) -> Iterator[None]:
    """cuDNN may round float32 to TF32 unless it is told not to; products may not unless they are."""
    settings = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _copy(device: str) -> float:
    source = torch.ones(_COPY[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(run: Callable[[], object], device: str) -> float:
    """The shortest of some runs: a ceiling is what the machine can do when left alone."""
    run()
    times = []
    for _ in range(_REPEATS):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
