#!/usr/bin/env bash
# Guess: to import Lightning imports PyTorch and what a training loop needs; the metrics of text and sound come when one is asked for.
# Real: to learn the version of torchmetrics, lightning.fabric imports it, and with it every metric: those of text import transformers where that is
# installed, those of sound scipy.signal. (Its own wrappers import torch._dynamo, and with it sympy.) Each start of a training waits for them.
# lightning 2.6.6, torchmetrics 1.9.0, transformers 5.24.0, torch 2.13.0; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 lightning==2.6.6 torchmetrics==1.9.0 transformers==5.24.0 scipy==1.17.1 numpy==2.4.6
v/bin/python - <<'PY'
import sys
import time

import numpy
import torch

others = ("transformers", "scipy.signal", "torchmetrics.functional.text.bert", "torch._dynamo", "sympy")
before = {name: name in sys.modules for name in others}
start = time.process_time()
import lightning.fabric
took = time.process_time() - start
after = {name: name in sys.modules for name in others}
print("imported before:", before)
print("imported after: ", after)
print(f"import lightning.fabric: {took:.1f} s of processor time after PyTorch's and NumPy's")
print("torch", torch.__version__, "lightning", lightning.__version__)
assert not any(before.values())
assert all(after.values())
print("transformers", sys.modules["transformers"].__version__)
print("as stated")
PY
