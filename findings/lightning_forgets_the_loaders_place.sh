#!/usr/bin/env bash
# Guess: a DataLoader with state_dict and load_state_dict goes on at its place when a run resumes within an epoch, as Lightning documents it.
# Real: only where nobody has read trainer.estimated_stepping_batches in configure_optimizers, as schedules do that need the number of all
# steps. Reading it opens the loader before the checkpoint is restored; its state is then never given back, without a warning, and the
# batches of the epoch's beginning are trained on a second time. lightning 2.6.6, torch 2.13.0; 2026-11-28.
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

class Loader(torch.utils.data.DataLoader):
    place = start = 0
    def state_dict(self):
        return {"place": self.place}
    def load_state_dict(self, state):
        self.start = state["place"]
    def __iter__(self):
        first, self.start = self.start, 0
        self.place = first
        for batch in list(super().__iter__())[first:]:
            self.place += 1
            yield batch

class Module(pl.LightningModule):
    def __init__(self, count):
        super().__init__()
        self.layer, self.count, self.seen = nn.Linear(1, 1), count, []
    def training_step(self, batch, index):
        self.seen.append(int(batch))
        return self.layer(batch[:, None].float()).square().mean()
    def on_train_batch_end(self, *_):
        if self.trainer.global_step == 2:
            self.trainer.save_checkpoint("middle.ckpt")
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 1e-3)
        if self.count:
            assert self.trainer.estimated_stepping_batches == 4
        return optimizer

def fit(count, **options):
    module = Module(count)
    pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, Loader(range(4)), **options)
    return module.seen

seen = {}
for count in (False, True):
    whole = fit(count)
    seen[count] = fit(count, ckpt_path="middle.ckpt", weights_only=True)
    print("steps counted before:", count, "| batches of the whole epoch:", whole, "| after resuming at 2:", seen[count])
    assert whole == [0, 1, 2, 3]
print("lightning", pl.__version__, "torch", torch.__version__)
assert seen == {False: [2, 3], True: [0, 1]}
print("as stated")
PY
