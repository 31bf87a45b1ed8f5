"""A plan, described: as JSON for programs, and as a table for people."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import nn
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingPlan
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS

from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.sharding.cluster.rank_ranges import ranges
from dlrm_torchrec.table_names import shown_name

MOST_LINES = 16  # of ranks


def plan_to_json(plan: ShardingPlan) -> dict[str, Any]:
    """The plan as plain dictionaries: for each table its sharding type, kernel, and shards (rank, offset, size)."""
    return {
        table: {
            "sharding_type": parameter.sharding_type,
            "compute_kernel": parameter.compute_kernel,
            "shards": [
                {"rank": rank, "offset": list(offset), "size": list(size)}
                for rank, offset, size in _shards(parameter, None)
            ],
        }
        for table, parameter in _parameters(plan)
    }


def describe_plan(plan: ShardingPlan, tables: nn.Module, world_size: int) -> str:
    """The plan as text for a terminal: the ranks of each table, the bytes on each rank, and whose bandwidths it took.

    Equal ranks share a line. If there are more than 16 lines, only the fullest 16 are shown.
    """
    configs = {table.name: table for table in physical_configs(tables)}
    width = max(5, *(len(shown_name(name)) for name in configs))
    lines = [f"{'table':<{width}}  {'rows':>11}  {'dim':>4}  {'sharding':<17}  {'kernel':<6}  ranks"]
    rank_bytes = [0] * world_size
    for name, parameter in _parameters(plan):
        table = configs[name]
        whole = (table.num_embeddings, table.embedding_dim)
        ranks = []
        for rank, _, size in _shards(parameter, whole):
            ranks.append(rank)
            rank_bytes[rank] += DATA_TYPE_NUM_BITS[table.data_type] // 8 * size[0] * size[1]
        lines.append(
            f"{shown_name(name):<{width}}  {whole[0]:>11,}  {whole[1]:>4}  {parameter.sharding_type:<17}  "
            f"{parameter.compute_kernel:<6}  {ranges(ranks)}"
        )
    alike: dict[str, list[int]] = {}  # ranks by what their line says
    for rank in sorted(range(world_size), key=lambda rank: -rank_bytes[rank]):
        alike.setdefault(f"{rank_bytes[rank] / 2**20:,.1f} MiB of table weights", []).append(rank)
    fullest = sorted(islice(alike.items(), MOST_LINES), key=lambda line: line[1])
    lines += [f"rank{'s' if len(own) > 1 else ''} {ranges(own)}: {text}" for text, own in fullest]
    left = world_size - sum(len(own) for _, own in fullest)
    bandwidths = getattr(plan, "bandwidths", "")  # ours, of ``make_plan``
    return "\n".join(
        [
            *lines,
            *([f"{left} ranks have less"] if left else []),
            *([f"planned with {bandwidths}"] if bandwidths else []),
        ]
    )


def shard_widths(plan: ShardingPlan) -> list[int]:
    """Columns of every shard that is not a replica."""
    shards = [shard for _, parameter in _parameters(plan) for shard in _shards(parameter, None)]
    return [size[1] for _, _, size in shards if size]


def _parameters(plan: ShardingPlan) -> list[tuple[str, Any]]:
    """The tables of all modules by name, with how each is sharded."""
    tables: list[tuple[str, Any]] = []
    for module in plan.plan.values():
        assert isinstance(module, EmbeddingModuleShardingPlan)
        tables += module.items()
    return tables


def _shards(parameter: Any, whole: tuple[int, int] | None) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(rank, offset, size) of each shard; a replicated table is complete on each of its ranks."""
    if parameter.sharding_spec is None:
        return [(rank, (0, 0), whole or ()) for rank in parameter.ranks]
    return [
        (shard.placement.rank(), tuple(shard.shard_offsets), tuple(shard.shard_sizes))
        for shard in parameter.sharding_spec.shards
    ]
