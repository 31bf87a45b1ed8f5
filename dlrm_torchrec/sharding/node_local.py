"""Nodes: groups of ranks that each learn their own embedding tables, while all ranks train the dense parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardedTensor, ShardingEnv, ShardingPlan, ShardMetadata

from dlrm_torchrec.embeddings.tables import Tables
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.caches import cached_kernels, forget_cached
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import Plan, make_plan
from dlrm_torchrec.table_names import table_of

# These types need all ranks of the world: TorchRec copies data_parallel tables from rank 0 of the world, and builds the
# process groups of the other two from all hosts.
OF_THE_WORLD = ("data_parallel", "table_row_wise", "grid_shard")
State = Mapping[str, Mapping[str, Any]]  # "model" and "optimizer": tensors by name, see train/checkpoints/state.py


class Nodes:
    """``world_size / size`` nodes of ``size`` neighbouring ranks.

    Every node shards its tables over its own ranks by the same plan, so ranks at the same place in their nodes hold the
    same pieces of their nodes' tables. TorchRec's DMPCollection does this too, but only on GPUs.
    """

    def __init__(self, rank: int, world_size: int, *, size: int, local_size: int, device: torch.device) -> None:
        """Creates the process groups; raises ValueError when ``size`` does not divide ``world_size``.

        Args:
            rank: this rank
            world_size: the number of ranks
            size: the number of ranks of a node
            local_size: the number of ranks of a host
            device: the device of this rank
        """
        if size < 1 or world_size % size:
            raise ValueError(
                f"ranks of a node must divide the {world_size} ranks: got {size}; choose a divisor, or use other ranks"
            )
        self.size, self.count, self.local_size, self.device = size, world_size // size, local_size, device
        self.number, self.place = divmod(rank, size)  # the number of this rank's node; this rank's place in it
        ranks = torch.arange(world_size).view(self.count, size)
        self.env = ShardingEnv.from_process_group(_group(ranks))
        self.peers = _group(ranks.T)  # the ranks at this place in their nodes
        self._model: nn.Module = nn.Sequential()  # what was sharded

    def plan(
        self,
        model: nn.Module,
        tables: Tables,
        config: ShardingConfig,
        *,
        batch_size: int,
        spec: DatasetSpec,
        group: dist.ProcessGroup,
        speed: Sequence[str] = (),
    ) -> Plan:
        """The plan of ``make_plan`` for one node, the same for every node; ``group`` contains all ranks."""
        topology = live_topology(self.device, world_size=self.size, local_size=min(self.size, self.local_size))
        without = OF_THE_WORLD if self.count > 1 else ()
        return make_plan(
            model,
            tables,
            topology,
            config,
            batch_size=batch_size,
            spec=spec,
            group=group,
            without=without,
            speed=speed,
        )

    def shard(self, model: nn.Module, plan: Plan, *, init_data_parallel: bool) -> DistributedModelParallel:
        """``model`` with tables sharded over this node by ``plan``, and dense parameters replicated on all ranks."""
        self._model = DistributedModelParallel(
            model,
            env=self.env,
            device=self.device,
            plan=self._placed(plan),
            sharders=plan.sharders,
            init_data_parallel=init_data_parallel,
            data_parallel_wrapper=_OverAllRanks(),
        )
        return self._model

    def _placed(self, plan: Plan) -> ShardingPlan:
        """The plan with ranks of the world as placements, as torch needs; TorchRec's placements are ranks of a node."""
        placed = deepcopy(plan.plan)
        for module in placed.values():
            for table in module.values():
                if table.sharding_spec:
                    table.sharding_spec.shards = [self._placed_shard(shard) for shard in table.sharding_spec.shards]
        return ShardingPlan(placed)

    def _placed_shard(self, shard: ShardMetadata) -> ShardMetadata:
        rank = self.number * self.size + shard.placement.rank()
        device = f"cuda:{rank % self.local_size}" if self.device.type == "cuda" else "cpu"
        return ShardMetadata(shard.shard_offsets, shard.shard_sizes, f"rank:{rank}/{device}")

    @torch.no_grad()
    def average(self, state: State) -> None:
        """Replace tables and their moments by their means over the nodes, in ``state`` and so in the sharded model.

        Caches must have been written back, as ``state_dict`` does, and are emptied. With SGD, doing this after every
        step is data-parallel training. With Adagrad it is not, because each node divides its gradient by its own
        moment.
        """
        pieces = [piece for tensors in state.values() for piece in _pieces(tensors)]
        work = [dist.all_reduce(piece, group=self.peers, async_op=True) for piece in pieces]
        for piece, reduction in zip(pieces, work, strict=True):
            reduction.wait()
            piece /= self.count
        for kernel in cached_kernels(self._model):
            forget_cached(kernel)

    @torch.no_grad()
    def distance(self, state: State) -> dict[str, float]:
        """How far apart the nodes' tables E are: the root mean square of ‖E_a - E_b‖ over all pairs of nodes.

        ``relative_distance`` is that distance divided by the root mean square of ‖E‖ over the nodes.
        """
        squares = torch.zeros(2, dtype=torch.float64, device=self.device)
        for piece in _pieces(state["model"]):
            mean = piece.clone()
            dist.all_reduce(mean, group=self.peers)
            mean /= self.count
            squares += torch.stack([(piece - mean).double().square().sum(), piece.double().square().sum()])
        dist.all_reduce(squares)
        apart, norm = (2 * squares[0] / max(1, self.count - 1)).sqrt(), (squares[1] / self.count).sqrt()
        return {"distance": float(apart), "relative_distance": float(apart / norm)}


def _pieces(tensors: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """The pieces of tables that this rank holds."""
    for name, tensor in tensors.items():
        if table_of(name):
            if isinstance(tensor, ShardedTensor):
                yield from (shard.tensor for shard in tensor.local_shards())
            else:
                yield tensor


def _group(ranks: torch.Tensor) -> dist.ProcessGroup:
    """The process group of the row of ``ranks`` that contains this rank."""
    mine: dist.ProcessGroup
    mine, _ = dist.new_subgroups_by_enumeration(ranks.tolist())
    return mine


class _OverAllRanks(DefaultDataParallelWrapper):
    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:  # noqa: ARG002 (TorchRec's)
        assert dist.group.WORLD is not None
        super().wrap(dmp, ShardingEnv.from_process_group(dist.group.WORLD), device)
