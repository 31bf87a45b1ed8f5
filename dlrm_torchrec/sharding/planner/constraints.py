"""What the planner may choose from for each table, and the rules for a sharding type that the user wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.constants import MIN_CW_DIM
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, EmbeddingConfig

from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.embeddings.tables import physical_configs
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec
from dlrm_torchrec.sharding.config import CommsConfig, ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.modules.composed_shardings import check_sharding, offered_types
from dlrm_torchrec.sharding.modules.sharder import (
    CHANGED_BY,
    COLUMN_TYPES,
    HOST_KERNELS,
    ROW_TYPES,
    DenseAdam,
    table_optimizer,
)
from dlrm_torchrec.sharding.planner.access import MeasuredAccess

CACHED_SHARE = 0.2  # share of the rows of a host-memory table that the device caches; TorchRec's default


@dataclass(kw_only=True, eq=False)
class TableConstraints(ParameterConstraints):
    """The planner's constraints of a table, with what a compositional table sends in place of the rows it looks up."""

    ids_per_row: float = 1.0  # ids that are sent for one that the pooling factors count
    rows_per_id: float = 1.0  # rows that are looked up for one that the pooling factors count
    sends_rows: bool = False  # whether row-wise types send rows all the same
    shared_rows: int = 0  # rows of row-wise types that every rank gets in each step
    listed_bytes: int = 0  # listed classes of ids, which every rank with a shard keeps
    map_bytes_per_row: float = 0.0  # of the map of a managed table, which lies with the rows


def table_constraints(
    tables: nn.Module,
    topology: Topology,
    config: ShardingConfig,
    *,
    spec: DatasetSpec,
    batch_size: int,
    access: Mapping[str, AccessStatistics],
    without: Sequence[str],
) -> dict[str, TableConstraints]:
    """The planner's constraints by table, for ``batch_size`` rows per rank; the arguments are those of ``make_plan``.

    Raises ValueError when a table that ``config`` names does not exist, or cannot have the sharding that it asks for.
    """
    stored, optimizer = physical_configs(tables), table_optimizer(tables)
    _check_names(config, stored)
    pooling = {feature.name: feature.pooling_factor for feature in spec.sparse}
    constraints = {}
    for table in stored:
        kind = config.of(table.name)
        if kind == "auto" and optimizer is DenseAdam:
            kind = "data_parallel"  # the one type that keeps its arithmetic
        _check_kind(table, kind)
        _check_kernel(table, optimizer, topology.compute_device)
        _check_arithmetic(table, kind, optimizer)
        _check_groups(table, kind, without)
        _check_comms(table, kind, config.comms)
        _check_replicas(table, kind)
        _check_buckets(table, kind, topology.world_size)
        if kind != "auto":
            check_sharding(table, kind)
        stacked = isinstance(table, StackedTable)
        managed = isinstance(table, ManagedEmbeddingBagConfig)
        offload = config.host_memory and not stacked and not managed
        factors = table.pooling_factors(pooling, batch_size) if stacked else [pooling[f] for f in table.feature_names]
        constraints[table.name] = TableConstraints(
            sharding_types=_allowed(kind, topology, table, [*without, *_summing(table, config.comms)]),
            compute_kernels=["dense", "fused", *(HOST_KERNELS if offload else [])],
            cache_params=_cache(table, access, batch_size * topology.world_size) if offload else None,
            min_partition=_shard_columns(table, kind, topology.world_size),
            pooling_factors=factors,
            map_bytes_per_row=table.map_bytes(topology.compute_device) / table.num_embeddings if managed else 0.0,
            **_sent(table, sum(factors), pooling, batch_size),
        )
    return constraints


def _sent(
    table: BaseEmbeddingConfig, counted: float, ids_per_bag: Mapping[str, float], batch_size: int
) -> dict[str, Any]:
    """What ``table`` sends and looks up where pooling factors count ``counted`` ids for a bag of each feature."""
    if not isinstance(table, StackedTable):
        return {}
    return {
        "ids_per_row": sum(ids_per_bag[name] for name in table.logical.feature_names) / counted,
        "rows_per_id": sum(table.rows_per_bag(ids_per_bag, batch_size)) / counted,
        "sends_rows": table.sums_rows,
        "shared_rows": 0 if table.sums_rows else sum(table.stack.sizes[1:]),
        "listed_bytes": table.stack.partition.listed_bytes,
    }


def _check_names(config: ShardingConfig, tables: Sequence[BaseEmbeddingConfig]) -> None:
    """A misspelt table would be sharded like all others, and nobody would notice."""
    names = {table.name for table in tables}
    unknown = sorted(config.tables.keys() - names)
    if unknown:
        raise ValueError(f"sharded tables must be tables of the model: got {unknown}; the model has {sorted(names)}")


def _check_kernel(table: BaseEmbeddingConfig, optimizer: type[torch.optim.Optimizer], compute_device: str) -> None:
    """FBGEMM has no fused Adam for CPUs, and ours is for float32."""
    if compute_device == "cpu" and optimizer is torch.optim.Adam and table.data_type is not DataType.FP32:
        raise ValueError(
            f"tables with Adam must be fp32 on cpu: got {table.data_type.value} for {table.name!r}; "
            "choose fp32, sgd, adagrad or rowwise_adagrad, or train on a GPU"
        )


def _check_kind(table: BaseEmbeddingConfig, kind: str) -> None:
    """Python does not hold ``kind`` to its type, and TorchRec's error would not name the table."""
    if kind not in get_args(ShardingKind):
        raise ValueError(
            f"sharding of table {table.name!r} must be one of {get_args(ShardingKind)}: got {kind!r}; name one"
        )


def _check_arithmetic(table: BaseEmbeddingConfig, kind: str, optimizer: type[torch.optim.Optimizer]) -> None:
    """A plan decides how fast a model trains, never which model."""
    excluded, reason = CHANGED_BY.get(optimizer, ([], ""))
    if kind in excluded:
        raise ValueError(
            f"sharding of table {table.name!r} must leave {optimizer.__name__}'s arithmetic unchanged: got "
            f"{kind!r}, but then {reason}; choose another sharding or optimizer"
        )


def _check_groups(table: BaseEmbeddingConfig, kind: str, without: Sequence[str]) -> None:
    """Where a node has tables of its own, the process groups that TorchRec makes for some types are the wrong ones."""
    if kind in without:
        raise ValueError(
            f"sharding of table {table.name!r} must not be one of {', '.join(without)}, which need all ranks of "
            f"the world: got {kind!r}; choose another"
        )


def _check_comms(table: BaseEmbeddingConfig, kind: str, comms: CommsConfig) -> None:
    if kind in _summing(table, comms):
        raise ValueError(
            f"sharding of table {table.name!r} must send whole vectors with int8 comms: got {kind!r}, which sums "
            "parts of vectors on the wire; choose another sharding, or fp16"
        )


def _summing(table: BaseEmbeddingConfig, comms: CommsConfig) -> list[str]:
    """Sharding types that sum vectors on the wire, if these are int8 numbers, which cannot be summed."""
    return ROW_TYPES if comms.int8 and not isinstance(table, EmbeddingConfig) else []


def _check_replicas(table: BaseEmbeddingConfig, kind: str) -> None:
    """DDP averages gradients and updates weights in the type of the weights, and fp16 is not precise enough."""
    if kind == "data_parallel" and table.data_type is not DataType.FP32:
        raise ValueError(
            f"a replicated table must have fp32 weights because its gradients are averaged in the type of the "
            f"weights: got {table.data_type.value.lower()} for {table.name!r}; choose another sharding or data_type"
        )


def _check_buckets(table: BaseEmbeddingConfig, kind: str, world_size: int) -> None:
    """A bucket of managed ids lies on one rank."""
    if kind == "row_wise" and _cuts_buckets(table, world_size):
        raise ValueError(
            f"ranks of row-wise managed table {table.name!r} must divide its {table.buckets} buckets: got "
            f"{world_size}; choose table_wise"
        )


def _cuts_buckets(table: BaseEmbeddingConfig, world_size: int) -> bool:
    return isinstance(table, ManagedEmbeddingBagConfig) and table.buckets % world_size != 0


def _allowed(kind: ShardingKind, topology: Topology, table: BaseEmbeddingConfig, excluded: Sequence[str]) -> list[str]:
    """Sharding types that the planner may choose from."""
    if kind != "auto":
        return [kind]
    if topology.world_size == 1:
        return ["table_wise"]  # a single rank shares nothing, and this type has the fused kernel
    if topology.compute_device == "cpu" and isinstance(table, StackedTable) and not table.sums_rows:
        excluded = [*excluded, *ROW_TYPES]  # the fast kernels of products and paths want whole rows on one rank
    if _cuts_buckets(table, topology.world_size):
        excluded = [*excluded, "row_wise"]
    if table.data_type is not DataType.FP32:  # see _check_replicas
        excluded = [*excluded, "data_parallel"]
    return [offered for offered in offered_types(table) if offered not in excluded]


def _shard_columns(table: BaseEmbeddingConfig, kind: str, world_size: int) -> int | None:
    """Columns of a shard, a multiple of 4, which FBGEMM needs; None leaves them to the planner.

    They are as equal as the number of ranks allows, and quite equal for vectors of single ids, as TorchRec demands.
    """
    dim, wanted = int(table.embedding_dim), kind in COLUMN_TYPES
    if isinstance(table, EmbeddingConfig):
        least = dim / world_size if wanted else MIN_CW_DIM
        return min([width for width in range(4, dim, 4) if width >= least and dim % width == 0], default=dim)
    return max(4, dim // world_size // 4 * 4) if wanted else None


def _cache(table: BaseEmbeddingConfig, access: Mapping[str, AccessStatistics], global_batch: int) -> CacheParams:
    measured = access.get(table.feature_names[0])
    stats = None
    if measured:
        stats = MeasuredAccess(statistics=measured, rows=table.num_embeddings, global_batch_size=global_batch)
    return CacheParams(load_factor=CACHED_SHARE, stats=stats, prefetch_pipeline=True)  # see train/pipeline.py
