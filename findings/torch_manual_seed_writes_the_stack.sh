#!/usr/bin/env bash
# Guess: torch.manual_seed sets a number for each generator, in a microsecond, so one may seed before every step, clip or example.
# Real: for each kind of device that is not in use (CUDA, XPU and MTIA with a CPU build), it formats the whole call stack with
# its lines of source, to tell later who asked. The cost grows with the depth of the call: under a trainer or a test runner it is hundreds of
# times that of torch.default_generator.manual_seed, which gives the CPU the same numbers. torch 2.13.0; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cat > seeds.py <<'PY'
import statistics
import time
import traceback

import torch

def at_depth(depth, call):
    return call() if depth == 0 else one_down(depth - 1, call)

def one_down(depth, call):  # a line that calls itself would be written once, with how often it came
    return call() if depth == 0 else at_depth(depth - 1, call)

def microseconds(seed):
    taken = []
    for number in range(200):
        start = time.perf_counter()
        seed(number)
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken)

real, frames = traceback.format_stack, []

def counting(*arguments, **options):
    stack = real(*arguments, **options)
    frames.append(len(stack))
    return stack

torch.manual_seed(5)
ours = torch.rand(100)
torch.default_generator.manual_seed(5)
assert torch.equal(ours, torch.rand(100)), "the same numbers"

seen = {}
for depth in (0, 60):
    traceback.format_stack = counting
    frames.clear()
    at_depth(depth, lambda: torch.manual_seed(1))
    traceback.format_stack = real
    seen[depth] = frames[:]
    whole, one = (
        at_depth(depth, lambda seed=seed: microseconds(seed))
        for seed in (torch.manual_seed, torch.default_generator.manual_seed)
    )
    print(f"{depth} calls deep: stacks of {seen[depth]} frames; {whole:.0f} us, the CPU's generator alone {one:.1f} us: {whole / one:.0f} times")
print("torch", torch.__version__)
assert len(seen[0]) == len(seen[60]) == 3
assert all(deep - shallow == 60 for shallow, deep in zip(seen[0], seen[60], strict=True))
assert whole > 50 * one
print("as stated")
PY
v/bin/python seeds.py
