#!/usr/bin/env bash
# Guess: torch.backends.fp32_precision rules float32 products on GPUs where nothing more specific is set, at any time; and
# torch.backends.cudnn.fp32_precision rules cuDNN alone.
# Real: the first compilation by torch.compile, of whatever function, writes what the products had inherited back as a setting of
# their own: from then on the general one does nothing to them, so TF32 stays on after it is switched off. And the setting that
# bears cuDNN's name is that of all of CUDA: it switches TF32 on in cuBLAS. Settings can be read without a GPU. torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python - <<'PY'
import torch

matmul = torch.backends.cuda.matmul
seen = {}

torch.backends.cudnn.fp32_precision = "tf32"
seen["cuDNN's set to tf32"] = matmul.fp32_precision
torch.backends.cudnn.fp32_precision = "none"
seen["and back"] = matmul.fp32_precision

for moment in ("before", "after"):
    torch.backends.fp32_precision = "tf32"
    seen[f"general tf32, {moment} compiling"] = matmul.fp32_precision
    if moment == "after":
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3))  # has nothing to do with products
    torch.backends.fp32_precision = "ieee"
    seen[f"general back to ieee, {moment} compiling"] = matmul.fp32_precision

print("torch", torch.__version__)
for what, value in seen.items():
    print(f"products on GPUs, {what}: {value}")
print("expected by most: none, none, then tf32 and ieee twice; stated: tf32 by cuDNN's, and tf32 for good after compiling")
assert list(seen.values()) == ["tf32", "none", "tf32", "ieee", "tf32", "tf32"], seen
print("as stated")
PY
