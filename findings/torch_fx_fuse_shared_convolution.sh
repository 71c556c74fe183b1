#!/usr/bin/env bash
# Guess: torch.fx.experimental.optimization.fuse and torch.ao.quantization.quantize_fx.fuse_fx fold a batch norm into its convolution
# where that leaves the results as they are, and else leave both alone.
# Real: where a convolution is called twice in a model, as detection heads do over levels with a norm for each, the folded weights are
# those of all its calls: with two norms both outputs (fuse_fx: one of them) are wrong, and a call without a norm gets one. No
# warning. Only other users of one call's result are looked for. torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python -W ignore - <<'PY'
import copy

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental.optimization import fuse

class TwoNorms(nn.Module):
    """One convolution for two levels, a norm for each."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.a, self.b):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 2.0)

    def forward(self, x, y):
        return self.a(self.conv(x)), self.b(self.conv(y))

class OneNorm(TwoNorms):
    def forward(self, x, y):
        return self.a(self.conv(x)), self.conv(y)

torch.manual_seed(0)
x, y = torch.randn(2, 1, 3, 8, 8)
seen = {}
for kind in (TwoNorms, OneNorm):
    model = kind().eval()
    want = model(x, y)
    for tool in (fuse, fuse_fx):
        got = tool(copy.deepcopy(model))(x, y)
        seen[tool.__name__, kind.__name__] = [not torch.allclose(g, w, atol=1e-3) for g, w in zip(got, want)]
        print(tool.__name__, kind.__name__, "largest errors", [f"{(g - w).abs().max():.1e}" for g, w in zip(got, want)])
print("torch", torch.__version__, "; expected by most: no output differs; which do:", seen)
assert seen["fuse", "TwoNorms"] == [True, True], seen
assert sum(seen["fuse_fx", "TwoNorms"]) == 1, seen
assert seen["fuse", "OneNorm"] == seen["fuse_fx", "OneNorm"] == [False, True], seen
print("as stated")
PY
