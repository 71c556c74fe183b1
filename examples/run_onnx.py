"""Runs an exported model without avemo and without PyTorch: `python run_onnx.py model.onnx inputs.npz`.

Needs numpy and onnxruntime. The inputs are arrays by name: `audio` (clips, bins, frames), a log spectrogram; `video`
(clips, frames, side, side), grey faces; `audio_lengths` and `video_lengths`, frames of each clip.
"""

import json
import sys

import numpy as np
import onnxruntime

if len(sys.argv) != 3:
    sys.exit(f"usage: python {sys.argv[0]} MODEL INPUTS.npz")

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["avemo"])["classes"]
given = np.load(sys.argv[2])
logits = session.run(["logits"], {i.name: given[i.name] for i in session.get_inputs()})[0]
shares = np.exp(logits - logits.max(axis=1, keepdims=True))
shares /= shares.sum(axis=1, keepdims=True)
for clip, row in enumerate(shares):
    print(
        clip,
        classes[row.argmax()],
        *(f"{name}={share:.6f}" for name, share in zip(classes, row, strict=True)),
    )
