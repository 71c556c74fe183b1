"""Runs an exported model without avemo: `python run_pt2.py model.pt2 inputs.npz`.

Needs numpy and torch; the inputs are as in run_onnx.py. A model that was compiled by AOTInductor is loaded by
`torch._inductor.aoti_load_package(path)` instead, and called the same way.
"""

import json
import sys

import numpy as np
import torch

if len(sys.argv) != 3:
    sys.exit(f"usage: python {sys.argv[0]} MODEL INPUTS.npz")

extra = {"avemo": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
classes = json.loads(extra["avemo"])["classes"]
given = np.load(sys.argv[2])
names = ("audio", "audio_lengths", "video", "video_lengths")
with torch.no_grad():
    logits = model(*(torch.from_numpy(given[name]) for name in names))[0]
for clip, row in enumerate(logits.softmax(1).tolist()):
    best = classes[max(range(len(row)), key=row.__getitem__)]
    print(clip, best, *(f"{name}={share:.6f}" for name, share in zip(classes, row, strict=True)))
