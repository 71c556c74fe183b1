#!/usr/bin/env bash
# Guess: what `import torch` takes is the loading of its libraries and of the modules that eager programs use; what compilers and exports need comes when
# they are asked for (torch._dynamo and torch._inductor do).
# Real: a quarter to a third of it is torch._meta_registrations: kernels for tensors without data and, with them, torch._prims, torch._refs and the
# decompositions. No setting leaves them out. A network in eager mode has the same bits without them; device "meta" misses some operators.
# torch 2.13.0; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cat > run.py <<'PY'
import gc, sys, time, types
names = ("torch._meta_registrations", "torch.distributed._meta_registrations")
if sys.argv[1] == "without":
    sys.modules.update({name: types.ModuleType(name) for name in names})
gc.disable()
start = time.process_time()
import torch
took = time.process_time() - start
torch.manual_seed(0)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5))
loss = net(torch.randn(4, 3, 8, 8)).logsumexp(1).sum()
loss.backward()
bits = [p.grad.double().sum().item().hex() for p in net.parameters()]
parts = [name for name in ("torch._prims", "torch._refs", "torch._decomp", "torch._dynamo") if name in sys.modules]
try:
    torch.fft.fft(torch.ones(4, device="meta"))
    meta = "runs"
except NotImplementedError:
    meta = "is not implemented"
print(took, *parts, "|", meta, "|", *bits)
PY
for kind in with without; do v/bin/python run.py $kind > /dev/null; done  # modules are compiled
for turn in 1 2 3 4 5; do for kind in with without; do v/bin/python run.py $kind >> $kind.txt; done; done
v/bin/python - <<'PY'
from statistics import median
rows = {kind: [line.split("|") for line in open(f"{kind}.txt")] for kind in ("with", "without")}
times = {kind: [float(row[0].split()[0]) for row in all_rows] for kind, all_rows in rows.items()}
for kind, all_rows in rows.items():
    print(f"{kind}: {median(times[kind]):.2f} s of processor time; imported {all_rows[0][0].split()[1:]}; fft on device meta{all_rows[0][1].rstrip()}")
share = median(without / whole for whole, without in zip(times["with"], times["without"]))
print(f"without: {share:.2f} of the time")
assert {row[2] for row in rows["with"]} == {row[2] for row in rows["without"]}, "other bits"
assert rows["with"][0][0].split()[1:] == ["torch._prims", "torch._refs", "torch._decomp"]
assert rows["without"][0][0].split()[1:] == []
assert rows["with"][0][1].strip() == "runs" and rows["without"][0][1].strip() == "is not implemented"
assert share < 0.85
print("as stated")
PY
