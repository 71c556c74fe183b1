"""One of two processes that train a model together, under `DistributedDataParallel`; the first writes its gradients.

Called with the backend, the rank, a file to meet at, and the file to write.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fbp_kernels as fk

ROWS = 6  # of the batch; each process has half


def model(backend: str) -> nn.Module:
    torch.manual_seed(1)
    return fk.AdaptiveMultiLevelFBP(6, 7, 2, 5, 4, 3, 4, backend=backend)


def batch() -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(ROWS, 6), torch.randn(ROWS, 7), torch.randn(ROWS, 4, 6), torch.randn(ROWS, 4, 7)]  # fmt: skip


def loss(network: nn.Module, inputs: list[Tensor]) -> Tensor:
    return network(*inputs).square().mean()


def main() -> None:
    backend, rank, meeting, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    store = dist.FileStore(meeting, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    network = DistributedDataParallel(model(backend))
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    loss(network, [t[half] for t in batch()]).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in network.module.named_parameters()}, out)
    # Gloo aborts where a peer is gone while it still reads; and how it ends is not what is tested.
    store.set(f"done {rank}", "")
    store.wait(["done 0", "done 1"], timedelta(seconds=60))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
