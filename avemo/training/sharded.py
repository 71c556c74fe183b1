"""Training with weights, gradients and the optimiser's state shared out over the processes (FSDP2)."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only


class ShardedStrategy(pl.strategies.DDPStrategy):
    """Processes, launched and joined as for DDP, whose network is one group of FSDP2.

    Files hold whole tensors, in the form of every other strategy, so that a run goes on with
    another one. Lightning's own strategies do not serve: its FSDPStrategy, of the first FSDP, wants
    a GPU, and its ModelParallelStrategy numbers the optimiser's states by another order than the
    optimiser does.
    """

    def configure_ddp(self) -> None:
        assert self.lightning_module is not None
        network = self.lightning_module.model
        assert isinstance(network, nn.Module)
        for weight in network.parameters():  # it takes no weights laid out channels last
            weight.data = weight.data.contiguous()
        fully_shard(network, mesh=init_device_mesh(self.root_device.type, (self.world_size,)))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return whole(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [w for group in optimizer.param_groups for w in group["params"]]
            shared = {
                number: {name: _shared(x, weights[number]) for name, x in of_weight.items()}
                for number, of_weight in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": shared})


def whole(state: Any) -> Any:
    """A state with whole tensors in place of shared ones; all processes have to ask for it."""
    return tree_map_only(DTensor, lambda x: x.full_tensor(), state)


def _shared(x: Any, weight: Tensor) -> Any:
    """A state of a weight, shared out as the weight is; a count of steps is every process's own."""
    if not isinstance(x, Tensor) or x.shape != weight.shape:
        return x
    assert isinstance(weight, DTensor)
    x = x.to(weight.device)
    return distribute_tensor(x, weight.device_mesh, weight.placements, src_data_rank=None)
