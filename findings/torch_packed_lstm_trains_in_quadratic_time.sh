#!/usr/bin/env bash
# Guess: pack_padded_sequence is the fast way to train an LSTM on clips of different lengths, for no padding is computed; and the
# time grows with their length.
# Real: on a CPU, one frame of difference between two lengths costs the oneDNN kernel that clips of one length train with, and backward
# then makes a gradient of the size of the whole batch for every frame: twice the frames take nearly three times as long. Two LSTMs
# over padded clips, the second over clips that are turned around, give the same states several times faster. torch 2.13.0; 2026-11-29.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6
cat > lstms.py <<'PY'
import statistics
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.profiler import profile

torch.manual_seed(0)
both = nn.LSTM(100, 128, batch_first=True, bidirectional=True)
onward, back = (nn.LSTM(100, 128, batch_first=True) for _ in range(2))
state = both.state_dict()
onward.load_state_dict({n: w for n, w in state.items() if not n.endswith("_reverse")})
back.load_state_dict({n[:-8]: w for n, w in state.items() if n.endswith("_reverse")})

def packed(x, lengths):
    sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(both(sequence)[0], batch_first=True, total_length=x.shape[1])[0]

def padded(x, lengths):
    place = torch.arange(x.shape[1])
    own = place < lengths[:, None]
    turn = torch.where(own, lengths[:, None] - 1 - place, place)[..., None]
    reverse = back(x.gather(1, turn.expand_as(x)))[0]
    reverse = reverse.gather(1, turn.expand_as(reverse))
    return torch.cat([onward(x)[0], reverse], 2).where(own[..., None], 0)

def backward_ms(network, x, lengths):
    taken = []
    for _ in range(5):
        loss = network(x, lengths).square().sum()
        start = time.perf_counter()
        loss.backward()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)

def kernels(network, x, lengths):
    with profile() as taken:
        network(x, lengths).sum().backward()
    return {event.key for event in taken.key_averages()}

times = {}
for frames in (125, 250):
    x = torch.randn(8, frames, 100)
    ragged = torch.tensor([frames] * 7 + [frames - 1])
    torch.testing.assert_close(packed(x, ragged), padded(x, ragged))
    for name, network in (("packed", packed), ("padded", padded)):
        times[name, frames] = backward_ms(network, x, ragged)
        print(f"{name}, {frames} frames, one clip a frame shorter: backward {times[name, frames]:.0f} ms")
equal = torch.full((8,), 250)
one_dnn = "aten::mkldnn_rnn_layer_backward"
print("torch", torch.__version__)
assert one_dnn in kernels(packed, x, equal)
assert one_dnn not in kernels(packed, x, ragged)
assert one_dnn in kernels(padded, x, ragged)
assert times["packed", 250] > 2.3 * times["packed", 125]
assert times["packed", 250] > 3 * times["padded", 250]
print("as stated")
PY
v/bin/python lstms.py 2>/dev/null
