"""One plan for training and dry runs: which rank holds which piece of which table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Stats
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ModuleSharder, ShardingPlan
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS, DataType, EmbeddingBagConfig

from dlrm_torchrec.embeddings.compositional.table import StackedEmbeddingBagConfig
from dlrm_torchrec.embeddings.tables import Tables, physical_configs
from dlrm_torchrec.schema import AccessStatistics, DatasetSpec
from dlrm_torchrec.sharding.adopt import adopt_plan
from dlrm_torchrec.sharding.cluster.rank_names import ranges
from dlrm_torchrec.sharding.config import CommsConfig, ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.modules.comms import check_widths, codecs, row_dim
from dlrm_torchrec.sharding.modules.composed_shardings import check_sharding, offered_types
from dlrm_torchrec.sharding.modules.compositional import CompositionalEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.modules.sharder import CHANGED_BY, HOST_KERNELS, ROW_TYPES, ExactSharder, table_optimizer
from dlrm_torchrec.sharding.planner.access import MeasuredAccess
from dlrm_torchrec.sharding.planner.enumerator import Enumerator
from dlrm_torchrec.sharding.planner.local_search import LocalSearch
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError, shortfall

CACHED_SHARE = 0.2  # share of the rows of a host-memory table that the device caches; TorchRec's default


@dataclass
class Plan(ShardingPlan):
    """A plan together with the sharders that it was made with: other sharders would train another plan."""

    sharders: list[ModuleSharder[nn.Module]] = field(repr=False, compare=False)


def _sharders(tables: Tables, comms: CommsConfig) -> list[ModuleSharder[nn.Module]]:
    optimizer, registry = table_optimizer(tables), codecs(comms, _dims(tables))
    return [ExactSharder(optimizer, registry), CompositionalEmbeddingBagCollectionSharder(optimizer, registry)]


def _dims(tables: Tables) -> list[int]:
    return [table.embedding_dim for table in physical_configs(tables)]


def make_plan(
    model: nn.Module,
    tables: Tables,
    topology: Topology,
    batch_size: int,
    config: ShardingConfig,
    spec: DatasetSpec,
    group: dist.ProcessGroup | None = None,
    stats: Stats | None = None,
    access: Mapping[str, AccessStatistics] | None = None,
    without: Sequence[str] = (),
) -> Plan:
    """The planner's plan for ``tables`` inside ``model``, or a saved plan.

    Raises ValueError when ``config`` names a table that does not exist or a sharding type that is impossible for a
    table, and DoesNotFitError when no plan fits the memory.

    Args:
        model: the model that contains ``tables``; its dense parameters are counted too
        tables: the tables to shard, on the meta device
        topology: the ranks, their memory and their bandwidths
        batch_size: rows per rank
        config: the sharding types that the user asks for, or a saved plan
        spec: the data set; it gives the pooling factors of the features
        group: its rank 0 plans and all its ranks get the same plan; without a group, each process plans for itself
        stats: gets the estimates of the plan
        access: measured accesses by feature, which tell how well tables in the host's memory can be cached
        without: sharding types that must not be used
    """
    ways = _sharders(tables, config.comms)
    constraints = _constraints(tables, topology, config, spec, batch_size, access or {}, without)
    if config.plan:
        found = adopt_plan(config.plan, model, ways, topology, batch_size=batch_size, constraints=constraints)
    else:
        found = _search(model, ways, topology, batch_size, constraints, group, stats)
    if config.comms.int8:
        shards = [shard for _, parameter in _parameters(found) for shard in _shards(parameter, (0, 0))]
        check_widths([columns for _, _, (_, columns) in shards], row_dim(_dims(tables)))
    return Plan(found.plan, ways)


def _search(
    model: nn.Module,
    ways: list[ModuleSharder[nn.Module]],
    topology: Topology,
    batch_size: int,
    constraints: dict[str, ParameterConstraints],
    group: dist.ProcessGroup | None,
    stats: Stats | None,
) -> ShardingPlan:
    enumerator, reservation = Enumerator(topology, batch_size, constraints=constraints), _reservation(model)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=enumerator,
        constraints=constraints,
        storage_reservation=reservation,
        proposer=LocalSearch(),
        stats=[stats] if stats else [],
        debug=False,
    )
    try:
        return planner.plan(model, ways) if group is None else planner.collective_plan(model, ways, group)
    except PlannerError as error:
        left = reservation.reserve(topology, batch_size, model, ways, constraints)
        raise DoesNotFitError(
            f"tables must fit the memory of {topology.world_size} {topology.compute_device} ranks: got "
            f"{shortfall(enumerator.enumerate(model, ways), left)}; add ranks, or shrink tables"
        ) from error


def _reservation(model: nn.Module) -> HeuristicalStorageReservation:
    """Reserves 15 % of the memory, and room for dense parameters, their gradients and at most two moments."""
    dense_bytes = 4 * sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it warns about a missing estimate, which is given here
        return HeuristicalStorageReservation(percentage=0.15, dense_tensor_estimate=dense_bytes)


def _constraints(
    tables: Tables,
    topology: Topology,
    config: ShardingConfig,
    spec: DatasetSpec,
    batch_size: int,
    access: Mapping[str, AccessStatistics],
    without: Sequence[str],
) -> dict[str, ParameterConstraints]:
    pooling = {feature.name: feature.pooling_factor for feature in spec.sparse}
    names = {table.name for table in physical_configs(tables)}
    unknown = sorted(config.tables.keys() - names)
    if unknown:
        raise ValueError(f"sharded tables must be tables of the model: got {unknown}; the model has {sorted(names)}")
    optimizer = table_optimizer(tables)
    if topology.compute_device == "cpu" and optimizer is torch.optim.Adam:
        raise ValueError(
            "the tables' optimizer must have an FBGEMM kernel on cpu: got Adam; "
            "choose sgd, adagrad or rowwise_adagrad, or train on a GPU"
        )
    constraints = {}
    for table in physical_configs(tables):
        kind = config.of(table.name)
        if kind not in get_args(ShardingKind):
            raise ValueError(
                f"sharding of table {table.name!r} must be one of {get_args(ShardingKind)}: got {kind!r}; name one"
            )
        excluded, reason = CHANGED_BY.get(optimizer, ([], ""))
        if kind in excluded:
            raise ValueError(
                f"sharding of table {table.name!r} must leave {optimizer.__name__}'s arithmetic unchanged: got "
                f"{kind!r}, but then {reason}; choose another sharding or optimizer"
            )
        if kind in without:
            raise ValueError(
                f"sharding of table {table.name!r} must not be one of {', '.join(without)}, which need all ranks of "
                f"the world: got {kind!r}; choose another"
            )
        if kind in ROW_TYPES and config.comms.int8:
            raise ValueError(
                f"sharding of table {table.name!r} must send whole vectors with int8 comms: got {kind!r}, which sums "
                "parts of vectors on the wire; choose another sharding, or fp16"
            )
        stacked = isinstance(table, StackedEmbeddingBagConfig)
        offload = config.host_memory and not stacked
        if kind == "data_parallel" and table.data_type is not DataType.FP32:
            raise ValueError(
                f"a replicated table must have fp32 weights because its gradients are averaged in the type of the "
                f"weights: got {table.data_type.value.lower()} for {table.name!r}; choose another sharding or data_type"
            )
        if kind != "auto":
            check_sharding(table, kind)
        # column shards are as equal as the number of ranks allows; FBGEMM needs multiples of 4
        columns = max(4, table.embedding_dim // topology.world_size // 4 * 4)
        constraints[table.name] = ParameterConstraints(
            sharding_types=_allowed(kind, topology, table, [*without, *(ROW_TYPES if config.comms.int8 else [])]),
            compute_kernels=["dense", "fused", *(HOST_KERNELS if offload else [])],
            cache_params=_cache(table, access, batch_size * topology.world_size) if offload else None,
            min_partition=columns if kind in ("column_wise", "table_column_wise", "grid_shard") else None,
            pooling_factors=table.pooling_factors(pooling, batch_size)
            if stacked
            else [pooling[name] for name in table.feature_names],
        )
    return constraints


def _cache(table: EmbeddingBagConfig, access: Mapping[str, AccessStatistics], global_batch: int) -> CacheParams:
    measured = access.get(table.feature_names[0])
    stats = None
    if measured:
        stats = MeasuredAccess(statistics=measured, rows=table.num_embeddings, global_batch_size=global_batch)
    return CacheParams(load_factor=CACHED_SHARE, stats=stats)


def _allowed(kind: ShardingKind, topology: Topology, table: EmbeddingBagConfig, without: Sequence[str]) -> list[str]:
    """Sharding types that the planner may choose from."""
    if kind != "auto":
        return [kind]
    if topology.world_size == 1:
        return ["table_wise"]  # a single rank shares nothing, and this type has the fused kernel
    if table.data_type is not DataType.FP32:  # DDP would average gradients and update weights in the weights' type
        without = [*without, "data_parallel"]
    return [offered for offered in offered_types(table) if offered not in without]


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


def describe_plan(plan: ShardingPlan, tables: Tables, world_size: int) -> str:
    """The plan as text for a terminal: the ranks of each table, then the bytes of weights on each rank."""
    configs = {table.name: table for table in physical_configs(tables)}
    width = max(5, *(len(name) for name in configs))
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
            f"{name:<{width}}  {whole[0]:>11,}  {whole[1]:>4}  {parameter.sharding_type:<17}  "
            f"{parameter.compute_kernel:<6}  {ranges(ranks)}"
        )
    lines += [f"rank {rank}: {count / 2**20:,.1f} MiB of table weights" for rank, count in enumerate(rank_bytes)]
    return "\n".join(lines)


def _parameters(plan: ShardingPlan) -> list[tuple[str, Any]]:
    found = []
    for module in plan.plan.values():
        assert isinstance(module, EmbeddingModuleShardingPlan)
        found += list(module.items())
    return found


def _shards(parameter: Any, whole: tuple[int, int] | None) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(rank, offset, size) of each shard; a replicated table is complete on each of its ranks."""
    if parameter.sharding_spec is None:
        return [(rank, (0, 0), whole or ()) for rank in parameter.ranks]
    return [
        (shard.placement.rank(), tuple(shard.shard_offsets), tuple(shard.shard_sizes))
        for shard in parameter.sharding_spec.shards
    ]
