#!/usr/bin/env bash
# Guess: torch.load refuses a checkpoint in which a bit has flipped: torch.save writes a zip file, and a zip file has a checksum of every record.
# Real: torch.save writes the checksums and torch.load does not look at them: a changed weight is loaded without a word. Python's
# zipfile.ZipFile(path).testzip() finds it. torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python - <<'PY'
import zipfile
from pathlib import Path

import torch

weights = torch.arange(1000, dtype=torch.float32)
file = Path("a.ckpt")
torch.save({"weights": weights}, file)
assert zipfile.ZipFile(file).testzip() is None
content = bytearray(file.read_bytes())
at = content.index(weights.numpy().tobytes())
content[at + 4 * 500 + 3] ^= 1  # in the exponent of one weight
file.write_bytes(content)
loaded = torch.load(file, weights_only=True)["weights"]
changed = (loaded != weights).nonzero().flatten().tolist()
print("torch.load gives the weights that are not as they were:", changed, "|", weights[500].item(), "became", loaded[500].item())
print("zipfile's testzip:", zipfile.ZipFile(file).testzip())
print("torch", torch.__version__)
assert changed == [500]
assert zipfile.ZipFile(file).testzip().endswith("data/0")
print("as stated")
PY
