#!/usr/bin/env bash
# Guess: a processor without instructions for half precision computes a bfloat16 or float16 convolution in float32 between two conversions, so it takes a
# little longer than in float32.
# Real: forward and backward take 9 times as long in bfloat16 and 14 in float16. To convert, convolve in float32 and convert back by hand gives the same numbers to half
# precision's rounding, in a tenth of the time: autocast to bfloat16 makes convolutions on such processors an order of magnitude slower than none.
# torch 2.13.0, processors with AVX2 and no AVX-512; 2026-11-29.
set -euo pipefail
if grep -q avx512 /proc/cpuinfo; then echo "this processor has AVX-512: nothing to see here"; exit 0; fi
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cat > run.py <<'PY'
import time
from statistics import median

import torch
from torch.nn.functional import conv2d

torch.manual_seed(0)
torch.set_num_threads(2)
last = {"memory_format": torch.channels_last}
x = torch.randn(8, 64, 32, 32).to(**last)
w = (torch.randn(64, 64, 3, 3) / 24).to(**last)


def step(dtype, between=None):
    a, b = (t.to(dtype, copy=True).requires_grad_() for t in (x, w))

    def once():
        a.grad = b.grad = None
        y = conv2d(a.to(between or dtype), b.to(between or dtype), padding=1).to(dtype)
        y.backward(torch.ones_like(y))
        return y.detach(), a.grad, b.grad

    return once


for dtype in (torch.bfloat16, torch.float16):
    sides = {"float32": step(torch.float32), "as it is": step(dtype), "float32 between": step(dtype, torch.float32)}
    times = {name: [] for name in sides}
    for _ in range(6):
        for name, once in sides.items():
            start = time.perf_counter()
            once()
            times[name].append(time.perf_counter() - start)
    ms = {name: 1e3 * median(t[1:]) for name, t in times.items()}
    print(dtype, {name: round(t, 1) for name, t in ms.items()}, "ms")
    for got, want in zip(sides["float32 between"](), sides["as it is"](), strict=True):
        apart = (got - want).float().abs().max() / want.float().abs().max()
        print("  apart by", f"{apart:.1e}")
        assert apart < 4 * torch.finfo(dtype).eps
    assert ms["as it is"] > 4 * ms["float32"], "half precision is no longer several times slower"
    assert ms["as it is"] > 4 * ms["float32 between"], "nor than float32 between two conversions"
PY
v/bin/python run.py
