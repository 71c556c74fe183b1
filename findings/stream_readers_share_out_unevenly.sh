#!/usr/bin/env bash
# Guess: data sets made for streaming to many processes give each of two processes as many clips, none twice and none never, and go on exactly
# where they were, random augmentation included, with another number of processes too.
# Real: with 23 clips in 5 shards WebDataset (split_by_node) gives two processes 13 and 10, after which one waits for the other in DDP, and has no
# place to go on from. litdata by default leaves 7 of the 23 out in every epoch, and without drop_last gives 8 and 15; its place is refused by another
# number of processes, and what was drawn for augmentation before is drawn again after. MosaicML Streaming cannot be installed beside
# NumPy 2.4 (it wants < 2.2, transformers < 5 and torchvision). webdataset 1.0.2, litdata 0.2.76, mosaicml-streaming 0.13.0, torch 2.13.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy==2.4.6 webdataset==1.0.2 litdata==0.2.76
v/bin/pip -q --disable-pip-version-check install --no-deps mosaicml-streaming==0.13.0
cat > seen.py <<'PY'
import importlib.metadata
import json
import sys
import warnings
from pathlib import Path

import litdata
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import webdataset

warnings.filterwarnings("ignore")
CLIPS = 23

def clip(i):
    return {"i": i}

class Augmented(litdata.StreamingDataset):
    def __getitem__(self, key):
        return super().__getitem__(key)["i"], float(np.random.rand())

def lit(**options):
    data = Augmented("lit", shuffle=True, seed=1, **options)
    return litdata.StreamingDataLoader(data, batch_size=4, num_workers=0)

def flat(batches):
    return [(int(i), x) for ids, noise in batches for i, x in zip(ids, noise.tolist())]

def process(rank, count, port):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    web = webdataset.WebDataset(sorted(map(str, Path("web").glob("*.tar"))), shardshuffle=False, nodesplitter=webdataset.split_by_node)
    found = {"web": [int(s["__key__"]) for s in web], "state": hasattr(web, "state_dict")}
    found |= {name: [i for i, _ in flat(lit(**o))] for name, o in (("lit", {}), ("lit all", {"drop_last": False}))}
    if count == 1:
        loader = lit(drop_last=False)
        np.random.seed(0)
        begun = iter(loader)
        for _ in range(3):
            next(begun)
        Path("place.json").write_text(json.dumps(loader.state_dict()))
        rest = flat(begun)
        again = lit(drop_last=False)
        again.load_state_dict(json.loads(Path("place.json").read_text()))
        np.random.seed(0)  # as every start of a run does
        resumed = flat(again)
        found["same clips"] = [i for i, _ in rest] == [i for i, _ in resumed]
        found["same augmentation"] = rest == resumed
    else:
        loader = lit(drop_last=False)
        try:
            loader.load_state_dict(json.loads(Path("place.json").read_text()))
            flat(loader)
            found["refused"] = ""
        except ValueError as error:
            found["refused"] = str(error)
    Path(f"{count}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    Path("web").mkdir()
    with webdataset.ShardWriter("web/%03d.tar", maxcount=5, verbose=0) as out:
        for i in range(CLIPS):
            out.write({"__key__": f"{i:03d}", "txt": str(i)})
    litdata.optimize(clip, list(range(CLIPS)), output_dir="lit", num_workers=1, chunk_size=5)
    found = {}
    for count in (1, 2):
        mp.spawn(process, (count, 29650 + count), nprocs=count)
        found[count] = [json.loads(Path(f"{count}-{r}.json").read_text()) for r in range(count)]
    for name in ("web", "lit", "lit all"):
        print(name, "| one process:", len(found[1][0][name]), "| two:", [len(f[name]) for f in found[2]])
    alone = found[1][0]
    print("WebDataset has a place:", alone["state"], "| litdata resumed, same clips:", alone["same clips"], "same augmentation:", alone["same augmentation"])
    print("with two processes:", found[2][0]["refused"])
    wants = importlib.metadata.requires("mosaicml-streaming")
    print("MosaicML Streaming:", [w for w in wants if w.startswith(("numpy", "transformers", "torchvision")) and "extra" not in w])
    assert [len(f["web"]) for f in found[2]] == [13, 10]
    assert not alone["state"]
    assert [len(f["lit"]) for f in found[2]] == [8, 8]
    assert [len(f["lit all"]) for f in found[2]] == [8, 15]
    assert alone["same clips"] and not alone["same augmentation"]
    assert "greater than the dataset length" in found[2][0]["refused"]
    assert any(w.startswith("numpy") and "<2.2" in w for w in wants)
    print("as stated")
PY
v/bin/python seen.py 2> errors.txt || { cat errors.txt; exit 1; }
