#!/usr/bin/env bash
# Guess: model.to(memory_format=torch.channels_last), which the tutorials recommend for convolutions, changes speed and nothing else: whatever
# PyTorch itself does with a model's parameters still works.
# Real: what takes parameters or gradients as vectors calls view on them and raises: torch.optim.LBFGS, nn.utils.parameters_to_vector,
# prune.l1_unstructured and random_unstructured (structured pruning works); fully_shard refuses such parameters as "non-contiguous".
# torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
v/bin/python -W ignore - <<'PY'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parameters_to_vector, prune

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
x = torch.randn(2, 3, 8, 8)

def lbfgs(model):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def loss():
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    optimizer.step(loss)

TOOLS = {
    "LBFGS": lbfgs,
    "parameters_to_vector": lambda m: parameters_to_vector(m.parameters()),
    "l1_unstructured": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "random_unstructured": lambda m: prune.random_unstructured(m[0], "weight", 0.5),
    "ln_structured": lambda m: prune.ln_structured(m[0], "weight", 0.5, n=2, dim=0),
    "fully_shard": fully_shard,
}
raised = {}
for layout in (torch.contiguous_format, torch.channels_last):
    for name, tool in TOOLS.items():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).to(memory_format=layout)
        try:
            tool(model)
        except (RuntimeError, NotImplementedError) as error:
            raised[name, layout] = str(error)[:60]
print("torch", torch.__version__, *(f"{k[0]}, {k[1]}: {v}" for k, v in raised.items()), sep="\n")
last = torch.channels_last
assert set(raised) == {(n, last) for n in TOOLS if n != "ln_structured"}, raised
dist.destroy_process_group()
print("as stated")
PY
