"""Collections of tables sharded by hand, with the weights of an unsharded one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_in_backward
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.sequences.sharded import CompositionalEmbeddingCollectionSharder

ARGUMENTS: dict[type[torch.optim.Optimizer], dict[str, Any]] = {
    torch.optim.SGD: {"lr": 0.03},
    RowWiseAdagrad: {"lr": 0.1, "eps": 1e-8},
}


class Wrapped(nn.Module):
    """The tables inside a model, as DistributedModelParallel wants them."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, features: KeyedJaggedTensor) -> Any:
        return self.tables(features)


def hand_made_plan(tables: nn.Module, kinds: Mapping[str, str], hosts: int = 1) -> EmbeddingModuleShardingPlan:
    """Tables of the sharding types ``kinds`` (by name), dealt to the ranks of ``hosts`` equal hosts.

    Columns are cut in three where the dim allows, so that there are more shards than ranks.
    """
    return EmbeddingModuleShardingPlan(
        {
            config.name: _placed(config, kinds[config.name], number, hosts)
            for number, config in enumerate(physical_configs(tables))
        }
    )


def _placed(config: BaseEmbeddingConfig, kind: str, number: int, hosts: int) -> ParameterSharding:
    """The plan of one table; ``number`` chooses where it begins."""
    ranks = list(range(dist.get_world_size()))
    per_host = len(ranks) // hosts
    by_host = [ranks[host * per_host : (host + 1) * per_host] for host in range(hosts)]
    cuts = 3 if config.embedding_dim % 12 == 0 else 2  # FBGEMM wants columns in multiples of 4
    columns = [[(number + cut) % len(ranks)] for cut in range(cuts)]
    owners = {  # of each column shard, the ranks that share its rows
        "table_wise": columns[:1],
        "column_wise": columns,
        "uneven columns": columns[:2],
        "table_column_wise": columns,
        "row_wise": [ranks],
        "table_row_wise": [by_host[number % hosts]],
        "grid_shard": by_host,
        "data_parallel": [],
    }[kind]
    shards = []
    for cut, sharing in enumerate(owners):
        width, block = config.embedding_dim // len(owners), -(-config.num_embeddings // len(sharing))
        first = cut * width
        if kind == "uneven columns":
            first, width = (0, 4) if cut == 0 else (4, config.embedding_dim - 4)
        for part, rank in enumerate(sharing):
            start = min(part * block, config.num_embeddings)
            size = [min(block, config.num_embeddings - start), width]
            shards.append(ShardMetadata([start, first], size, f"rank:{rank}/cpu"))
    return ParameterSharding(
        sharding_type="column_wise" if kind == "uneven columns" else kind,
        compute_kernel="fused" if shards else "dense",
        ranks=[shard.placement.rank() for shard in shards] or ranks,
        sharding_spec=EnumerableShardingSpec(shards) if shards else None,
    )


def shard(
    tables: CompositionalEmbeddingBagCollection | CompositionalEmbeddingCollection,
    kinds: Mapping[str, str],
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    qcomm_codecs_registry: dict[str, Any] | None = None,
    hosts: int = 1,
) -> DistributedModelParallel:
    """``tables`` sharded by ``kinds``, with the same weights and with ``optimizer`` in backward."""
    meta = torch.device("meta")  # so that nothing of the values below comes from TorchRec's copy
    sharder: Any
    sharded: CompositionalEmbeddingBagCollection | CompositionalEmbeddingCollection
    if isinstance(tables, CompositionalEmbeddingCollection):
        sharded = CompositionalEmbeddingCollection(logical_configs(tables), meta, tables.need_indices())
        sharder = CompositionalEmbeddingCollectionSharder(optimizer, qcomm_codecs_registry)
    else:
        sharded = CompositionalEmbeddingBagCollection(logical_configs(tables), tables.is_weighted(), meta)
        sharder = CompositionalEmbeddingBagCollectionSharder(optimizer, qcomm_codecs_registry)
    apply_in_backward(optimizer, sharded.parameters(), dict(ARGUMENTS[optimizer]))
    plan = hand_made_plan(sharded, kinds, hosts)
    model = DistributedModelParallel(
        Wrapped(sharded), device=torch.device("cpu"), plan=ShardingPlan({"tables": plan}), sharders=[sharder]
    )
    model.module.tables.load_state_dict(tables.state_dict())
    return model


def logical_configs(
    tables: CompositionalEmbeddingBagCollection | CompositionalEmbeddingCollection,
) -> list[BaseEmbeddingConfig]:
    """The configs that a collection was made of."""
    return [getattr(config, "logical", config) for config in tables.physical_configs()]


def features(
    ids_per_feature: Mapping[str, int], batch_size: int, longest: int, weighted: bool, seed: int
) -> KeyedJaggedTensor:
    """Bags of 0 to ``longest`` ids below ``ids_per_feature``; every fourth id repeats another of its feature."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (len(ids_per_feature) * batch_size,), generator=generator)
    values = []
    for number, num_ids in enumerate(ids_per_feature.values()):
        count = int(lengths[number * batch_size : (number + 1) * batch_size].sum())
        ids = torch.randint(0, num_ids, (count,), generator=generator)
        ids[::4] = ids[:1].clone()
        values.append(ids)
    return KeyedJaggedTensor(
        keys=list(ids_per_feature),
        values=torch.cat(values),
        lengths=lengths,
        weights=torch.rand(sum(map(len, values)), generator=generator) if weighted else None,
    )
