"""A saved plan, applied to a model: a cluster trains exactly the plan that was made on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from dlrm_torchrec.sharding.estimate.estimate import TableEstimate, estimate_of
from dlrm_torchrec.sharding.modules.sharder import COLUMN_TYPES
from dlrm_torchrec.sharding.planner.enumerator import Enumerator, shard_optimizer_bytes, shard_weight_bytes


def adopt_plan(
    path: str,
    model: nn.Module,
    sharders: list[ModuleSharder[nn.Module]],
    topology: Topology,
    *,
    batch_size: int,
    constraints: Mapping[str, ParameterConstraints],
) -> ShardingPlan:
    """The plan for ``topology``'s number of ranks from the file at ``path``, which recipes/plan_sharding.py wrote.

    Raises ValueError when the file has another format, or when its plan is for another number of ranks or for other
    tables: every table must have the shards, and the bytes, that the planner would give it for this model and these
    ranks.

    Args:
        path: the plan.json
        model: the model to train
        sharders: the sharders that will shard it
        topology: the ranks to train on
        batch_size: rows per rank
        constraints: the planner's constraints, by table
    """
    saved = {table.name: table for table in estimate_of(path, topology.world_size).tables}
    constraints = {name: _cut_alike(constraint, saved.get(name)) for name, constraint in constraints.items()}
    enumerator = Enumerator(topology, batch_size, constraints=constraints)
    options: dict[str, list[ShardingOption]] = {}
    for option in enumerator.enumerate(model, sharders):
        options.setdefault(option.name, []).append(option)
    if options.keys() != saved.keys():
        raise ValueError(
            f"tables of the plan {path} must be those of the model: got {sorted(saved.keys() ^ options.keys())} in "
            "only one of the two; plan again with the same options"
        )
    return to_sharding_plan([_placed(options[name], table, path) for name, table in saved.items()], topology)


def _cut_alike(constraint: ParameterConstraints, table: TableEstimate | None) -> ParameterConstraints:
    """``constraint`` with the plan's columns per shard, because the plan may have used another ``--sharding.kind``."""
    if table is None or table.sharding_type not in COLUMN_TYPES:
        return constraint
    return replace(constraint, min_partition=table.shards[0].size[1])


def _placed(options: list[ShardingOption], table: TableEstimate, path: str) -> ShardingOption:
    """The option that cuts the table like the plan; its shards get the plan's ranks."""
    wanted = [(shard.size, shard.offset) for shard in table.shards]
    for option in options:
        cut = [(tuple(shard.size), tuple(shard.offset)) for shard in option.shards]
        same = (option.sharding_type, option.compute_kernel) == (table.sharding_type, table.compute_kernel)
        if same and cut == wanted:
            _check_bytes(option, table, path)
            for shard, saved in zip(option.shards, table.shards, strict=True):
                shard.rank = saved.rank
            return option
    raise ValueError(
        f"table {table.name!r} of the plan {path} must have the shards of this model on these hosts: got "
        f"{table.sharding_type} of {table.rows} x {table.dim} in {len(wanted)} shards; plan again with the same "
        "options and topology"
    )


def _check_bytes(option: ShardingOption, table: TableEstimate, path: str) -> None:
    """Raises ValueError when the model's weights or moments need other memory than the plan counted."""
    for what, planned, count in (
        ("weights", [shard.weight_bytes for shard in table.shards], shard_weight_bytes),
        ("moments", [shard.optimizer_bytes for shard in table.shards], shard_optimizer_bytes),
    ):
        needed = [count(option, shard.size) for shard in option.shards]
        if needed != planned:
            raise ValueError(
                f"{what} of table {table.name!r} must take the {sum(planned):,} bytes that the plan {path} counts: got "
                f"{sum(needed):,}; plan again with the same data_type and optimizer"
            )
