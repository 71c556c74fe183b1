#!/usr/bin/env bash
# Guess: with dynamic sizes torch.export makes one program of an nn.LSTM for every number of frames, or says that it cannot; and what torch.export takes,
# AOTInductor compiles.
# Real: with Dim.AUTO it says nothing and fixes the number of frames of the sample, which the program then refuses to do without. The same layer as a
# higher-order scan is a program for any number of clips and frames, with the LSTM's results; of that one AOTInductor ends in a KeyError on the name of a size.
# torch 2.13.0; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cat > run.py <<'PY'
import torch
from torch._higher_order_ops.scan import scan


class Whole(torch.nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return self.lstm(x)[0]


class Steps(Whole):
    def forward(self, x):
        w = self.lstm
        given = (x @ w.weight_ih_l0.T + w.bias_ih_l0 + w.bias_hh_l0).transpose(0, 1)
        start = torch.zeros_like(given[0, :, : w.hidden_size])

        def step(before, now):
            h, c = before
            i, f, g, o = (now + h @ w.weight_hh_l0.T).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            return (h, c), h.clone()

        return scan(step, (start, start.clone()), given)[1].transpose(0, 1)


torch.manual_seed(0)
whole = Whole(torch.nn.LSTM(5, 3, batch_first=True)).eval()
auto = torch.export.Dim.AUTO
said, programs = {}, {}
with torch.no_grad():
    for module in (whole, Steps(whole.lstm)):
        kind = type(module).__name__
        programs[kind] = torch.export.export(module, (torch.randn(2, 7, 5),), dynamic_shapes=({0: auto, 1: auto},))
        for clips, frames in ((2, 7), (4, 7), (2, 11)):
            x = torch.randn(clips, frames, 5)
            try:
                apart = (programs[kind].module()(x) - whole(x)).abs().max().item()
                said[kind, clips, frames] = "right" if apart < 1e-6 else f"apart by {apart}"
            except AssertionError as error:
                said[kind, clips, frames] = str(error)
            print(kind, (clips, frames), said[kind, clips, frames])
try:
    torch._inductor.aoti_compile_and_package(programs["Steps"], package_path="steps.pt2")
    compiled = "compiled"
except torch._inductor.exc.InductorError as error:
    compiled = str(error).split(":")[0]
print("AOTInductor:", compiled, "| torch", torch.__version__)
assert said["Whole", 2, 7] == said["Whole", 4, 7] == "right"
assert "size()[1] == 7" in said["Whole", 2, 11]
assert all(text == "right" for (kind, *_), text in said.items() if kind == "Steps")
assert compiled == "KeyError"
print("as stated")
PY
v/bin/python -W ignore run.py
