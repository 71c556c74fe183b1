"""Runs an exported model without avemo: `python run_pt2.py model.pt2 inputs.npz`.

Needs numpy and torch; the inputs are as in run_onnx.py. A model that was compiled by AOTInductor (`--format aot`) is
called the same way; it is loaded by another function, and needs no compiler any more.
"""

import json
import sys
import zipfile

import numpy as np
import torch

if len(sys.argv) != 3:
    sys.exit(f"usage: python {sys.argv[0]} MODEL INPUTS.npz")

if any("/aotinductor/" in name for name in zipfile.ZipFile(sys.argv[1]).namelist()):
    model = torch._inductor.aoti_load_package(sys.argv[1])
    described = model.get_metadata()["avemo"]
else:
    extra = {"avemo": ""}
    model = torch.export.load(sys.argv[1], extra_files=extra).module()
    described = extra["avemo"]
classes = json.loads(described)["classes"]
given = np.load(sys.argv[2])
names = ("audio", "audio_lengths", "video", "video_lengths")
with torch.no_grad():
    logits = model(*(torch.from_numpy(given[name]) for name in names))[0]
for clip, row in enumerate(logits.softmax(1).tolist()):
    best = classes[max(range(len(row)), key=row.__getitem__)]
    print(clip, best, *(f"{name}={share:.6f}" for name, share in zip(classes, row, strict=True)))
