"""A module of one's own that TorchRec shards: tables of c * c ids in 2 * c rows; see docs/shard_your_own_module.md.

    torchrun --standalone --nproc_per_node 2 docs/examples/square_tables.py

An id has the rows ``id // c`` and ``c + id % c``. Its vector is their product, and a bag of ids has the sum of these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_sharding import USE_ONE_TBE_PER_TABLE
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

# 1. What it computes, on one process ----------------------------------------------------------------------------------


def rows_of(ids: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The two rows of each id, one after the other (2 N,)."""
    c = num_rows // 2
    return torch.stack([ids // c, c + ids % c], dim=1).flatten()


def pooled(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The sums over bags (B, D) of the products of two rows each (2 N, D)."""
    return torch.segment_reduce(rows.unflatten(0, (-1, 2)).prod(dim=1), "sum", lengths=lengths)


class SquareTables(EmbeddingBagCollection):
    """A collection whose configs have 2 * c rows and one feature each."""

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        vectors = []
        for config in self.embedding_bag_configs():
            (name,), weight = config.feature_names, self.embedding_bags[config.name].weight
            bags = features[name]
            vectors.append(pooled(weight[rows_of(bags.values(), len(weight))], bags.lengths()))
        return KeyedTensor.from_tensor_list(self.embedding_names(), vectors)

    def embedding_names(self) -> list[str]:
        return [name for config in self.embedding_bag_configs() for name in config.feature_names]


# 2. What the rank that owns a table computes --------------------------------------------------------------------------


class SquareKernel(BatchedFusedEmbeddingBag):
    """Reads single rows by FBGEMM, which also updates them in the backward pass, and composes them."""

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        (table,) = self.config.embedding_tables
        rows = rows_of(features.values().long(), table.num_embeddings)
        found = self.emb_module(indices=rows, offsets=torch.arange(len(rows) + 1, device=rows.device))
        return pooled(found, features.lengths())


class SquareLookup(GroupedPooledEmbeddingsLookup):
    def _create_embedding_kernel(self, config: Any, device: Any, pg: Any, *_: Any) -> SquareKernel:
        return SquareKernel(config, pg, device)


class SquareSharding(TwPooledEmbeddingSharding):
    """Table-wise: ids go to the owner of the table and vectors come back, as TorchRec sends them for any table."""

    def create_lookup(self, device: torch.device | None = None, *_: Any, **__: Any) -> SquareLookup:
        return SquareLookup(self._grouped_embedding_configs, pg=self._pg, device=device or self._device)


# 3. What the planner and DistributedModelParallel need to know --------------------------------------------------------


class ShardedSquareTables(ShardedEmbeddingBagCollection):
    def create_embedding_bag_sharding(self, infos: Any, env: Any, device: Any = None, *_: Any, **__: Any) -> Any:
        return SquareSharding(infos, env, device)

    @property
    def unsharded_module_type(self) -> type[SquareTables]:
        return SquareTables


class SquareSharder(EmbeddingBagCollectionSharder):
    def shard(self, module: Any, params: Any, env: Any, device: Any = None, *_: Any) -> ShardedSquareTables:
        return ShardedSquareTables(module, params, env, {USE_ONE_TBE_PER_TABLE: True}, device)

    @property
    def module_type(self) -> type[SquareTables]:
        return SquareTables

    def sharding_types(self, _: str) -> list[str]:
        return ["table_wise"]

    def compute_kernels(self, _: str, __: str) -> list[str]:
        return ["fused"]


# 4. Two steps of training, sharded ------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(name=f"t_{name}", num_embeddings=2 * c, embedding_dim=8, feature_names=[name])
            for name, c in {"user": 100, "item": 30, "city": 7}.items()
        ]
        self.tables = SquareTables(configs, device=device)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        vectors = self.tables(features).to_dict()  # their order is that of the shards
        return torch.cat([vectors[name] for name in ("user", "item", "city")], dim=1)


def train(weights: dict[str, torch.Tensor], batches: list[KeyedJaggedTensor]) -> list[torch.Tensor]:
    """What this rank computes for its batches, with SGD by the mean square after each; all ranks call it."""
    model = Model(torch.device("meta"))
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 1.0})
    topology = Topology(dist.get_world_size(), compute_device="cpu")
    plan = EmbeddingShardingPlanner(topology).collective_plan(model, [SquareSharder()], dist.group.WORLD)
    sharded = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[SquareSharder()])
    sharded.module.tables.load_state_dict(weights)
    outputs = []
    for batch in batches:
        outputs.append(sharded(batch))
        outputs[-1].square().mean().backward()
    return [output.detach() for output in outputs]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    lengths, keys = torch.tensor([2, 1, 0, 1, 2, 1]), ["user", "item", "city"]
    batch = KeyedJaggedTensor(keys, values=torch.randint(49, (7,)), lengths=lengths)
    weights = {name: torch.ones_like(each) for name, each in Model(torch.device("cpu")).tables.state_dict().items()}
    first, second = train(weights, [batch, batch])
    print(f"rank {dist.get_rank()}: {first.sum():.0f} before the first step, {second.sum():.2f} after it")
    dist.destroy_process_group()
