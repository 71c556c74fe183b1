#!/usr/bin/env bash
# Guess: gradient clipping works with a fused AdamW in bf16-mixed precision: bfloat16 has no loss scaler, so there is nothing to unscale.
# Real: Lightning's Trainer(precision="bf16-mixed", gradient_clip_val=...) raises for every fused optimiser, as if in 16-mixed; in 32-true
# it clips. A module that clips in its own configure_gradient_clipping trains. lightning 2.6.6, torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 lightning==2.6.6 numpy==2.4.6
v/bin/python - <<'PY'
import logging
import warnings

import lightning.pytorch as pl
import torch
from torch import nn

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def training_step(self, batch, index):
        return self.layer(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), fused=True)

class Own(Module):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

def fit(module, precision):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, precision=precision, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    try:
        trainer.fit(module, data)
    except RuntimeError as error:
        return f"raises: {error}", scaler
    return "trains", scaler

seen = {}
for name, kind in (("plain", Module), ("clips by itself", Own)):
    for precision in ("32-true", "bf16-mixed"):
        seen[name, precision] = fit(kind(), precision)
        print(name, precision, "loss scaler:", seen[name, precision][1], "|", seen[name, precision][0])
print("lightning", pl.__version__, "torch", torch.__version__)
assert all(scaler is None for _, scaler in seen.values())
assert seen["plain", "32-true"][0] == seen["clips by itself", "bf16-mixed"][0] == "trains"
assert "does not allow for gradient clipping" in seen["plain", "bf16-mixed"][0]
print("as stated")
PY
