#!/usr/bin/env bash
# Guess: SyncBatchNorm.convert_sync_batchnorm converts every batch norm of a model, one that is used at two places too, and leaves it one.
# Real: under two names of one parent (a Sequential that lists it twice) the first becomes a SyncBatchNorm, the second stays a
# BatchNorm2d: half of the calls do not synchronise. Under two parents it becomes two SyncBatchNorms. No warning.
# Weights and statistics stay shared, so that results of one process tell nothing. torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python -W ignore - <<'PY'
import torch
from torch import nn

norm = nn.BatchNorm2d(4)
one = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), norm))
kinds = [type(m).__name__ for m in one]
norm = nn.BatchNorm2d(4)
two = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Sequential(norm), nn.Sequential(norm)))
print("torch", torch.__version__, "; one parent:", kinds, "; two parents:", two, "the same object:", two[0][0] is two[1][0])
assert kinds == ["Conv2d", "SyncBatchNorm", "Conv2d", "BatchNorm2d"], kinds
assert one[1].weight is one[3].weight and one[1].running_mean is one[3].running_mean
assert type(two[0][0]) is type(two[1][0]) is nn.SyncBatchNorm and two[0][0] is not two[1][0]
print("as stated")
PY
