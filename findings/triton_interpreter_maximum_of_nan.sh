#!/usr/bin/env bash
# Guess: tl.maximum(x, y) and tl.clamp of NaN give NaN, as torch.maximum and torch.clamp do, and Triton's interpreter shows it.
# Real: only with propagate_nan=tl.PropagateNan.ALL. Compiled, both drop NaN (PTX max.f32, not max.NaN.f32): maximum(NaN, eps) is eps.
# The interpreter of Triton 3.7.1 gives NaN all the same, so that a test in it cannot see the loss; that of 3.8.0 drops it, too.
# Triton 3.7.1 and 3.8.0, torch 2.13.0; no GPU is needed, the compiler's output is read; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
for n in 3.7.1 3.8.0; do v/bin/pip -q --disable-pip-version-check install --no-deps --target "$n" "triton==$n"; done
cat > k.py <<'PY'
import torch
import triton
import triton.language as tl

@triton.jit
def extremes(x, low, plain, clamped, asked):
    value, bound = tl.load(x), tl.load(low)
    tl.store(plain, tl.maximum(value, bound))
    tl.store(clamped, tl.clamp(value, bound, bound + 1.0))
    tl.store(asked, tl.maximum(value, bound, propagate_nan=tl.PropagateNan.ALL))
PY
cat > interpret.py <<'PY'
import sys
from k import extremes, torch, triton

got = [torch.zeros(1) for _ in range(3)]
extremes[(1,)](torch.tensor([torch.nan]), torch.tensor([0.25]), *got)
got = [str(g.item()) for g in got]
print("Triton", triton.__version__, "interpreter: maximum, clamp of NaN and 0.25:", *got[:2], "and asked for NaN:", got[2])
assert got == sys.argv[1:], (got, sys.argv)
PY
cat > compile.py <<'PY'
import re
from k import extremes, triton
from triton.backends.compiler import GPUTarget

names = ("x", "low", "plain", "clamped", "asked")
source = triton.compiler.ASTSource(extremes, dict.fromkeys(names, "*fp32"))
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
used = sorted(set(re.findall(r"\b(?:max|min)\.[.\w]*f32", ptx)))
print("Triton", triton.__version__, "compiled for sm_90:", *used)
assert used == ["max.NaN.f32", "max.f32", "min.f32"], used
PY
for n in 3.7.1 3.8.0; do PYTHONPATH=$n v/bin/python compile.py; done
TRITON_INTERPRET=1 PYTHONPATH=3.7.1 v/bin/python interpret.py nan nan nan
TRITON_INTERPRET=1 PYTHONPATH=3.8.0 v/bin/python interpret.py 0.25 0.25 nan
echo "expected by most: NaN everywhere; stated: compiled code drops it unless asked, and 3.7.1's interpreter hides that"
echo "as stated"
