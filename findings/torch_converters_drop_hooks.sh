#!/usr/bin/env bash
# Guess: SyncBatchNorm.convert_sync_batchnorm, fuse_conv_bn_eval and torch.fx.experimental.optimization.fuse keep what a batch norm does
# beyond a batch norm (forward hooks, a subclass's own forward), or say that they cannot.
# Real: all three read the numbers of the norm and drop the rest without a word: a ReLU in a hook is gone, and one in a
# subclass too (fx leaves subclasses alone). Eager torch.ao.quantization.fuse_modules does carry the hook over. torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python -W ignore - <<'PY'
import copy

import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval

class NormReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()

def hooked():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda module, inputs, output: output.relu())
    return norm

TOOLS = {
    "convert_sync_batchnorm": lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m).eval(),
    "fuse_conv_bn_eval": lambda m: fuse_conv_bn_eval(*m),
    "fx fuse": fuse,
    "fuse_modules": lambda m: fuse_modules(m, [["0", "1"]]),
}
torch.manual_seed(0)
x = torch.randn(2, 3, 8, 8)
kept = {}
for what, norm in (("hook", hooked()), ("subclass", NormReLU(4))):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()
    assert model(x).min() == 0
    for name, tool in TOOLS.items():
        try:
            kept[what, name] = bool(tool(copy.deepcopy(model))(x).min() >= 0)
        except (AssertionError, torch.fx.proxy.TraceError) as error:
            kept[what, name] = f"refused by {type(error).__name__}"
print("torch", torch.__version__, "; whether the ReLU is still there:", kept)
for name in ("convert_sync_batchnorm", "fuse_conv_bn_eval", "fx fuse"):
    assert kept["hook", name] is False, name
assert kept["hook", "fuse_modules"] is True
assert kept["subclass", "convert_sync_batchnorm"] is kept["subclass", "fuse_conv_bn_eval"] is False
assert kept["subclass", "fx fuse"] is not False and kept["subclass", "fuse_modules"] is not False
print("as stated")
PY
