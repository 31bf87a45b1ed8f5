"""A saved plan, made ready for a model: what was planned on a laptop is what a cluster trains."""

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
    """The plan in the file at ``path`` (recipes/plan_sharding.py) for ``topology``'s number of ranks.

    Raises ValueError when it is of another format, of another number of ranks, or of other tables: every table must
    have the shards that the planner would cut for this model and these ranks, and their bytes.
    """
    saved = {table.name: table for table in estimate_of(path, topology.world_size).tables}
    constraints = {name: _cut_alike(constraint, saved.get(name)) for name, constraint in constraints.items()}
    enumerator = Enumerator(topology, batch_size, constraints=constraints)
    options: dict[str, list[ShardingOption]] = {}
    for option in enumerator.enumerate(model, sharders):
        options.setdefault(option.name, []).append(option)
    if options.keys() != saved.keys():
        raise ValueError(
            f"tables of the plan {path} must be those of the model: got {sorted(saved.keys() ^ options.keys())} in one "
            "of the two only; plan again with the same options"
        )
    return to_sharding_plan([_placed(options[name], table, path) for name, table in saved.items()], topology)


def _cut_alike(constraint: ParameterConstraints, table: TableEstimate | None) -> ParameterConstraints:
    """With the columns per shard of the plan, which may have been made with a ``--sharding.kind`` of its own."""
    if table is None or table.sharding_type not in COLUMN_TYPES:
        return constraint
    return replace(constraint, min_partition=table.shards[0].size[1])


def _placed(options: list[ShardingOption], table: TableEstimate, path: str) -> ShardingOption:
    """The option that cuts the table as the plan does, with the plan's ranks."""
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
        f"table {table.name!r} of the plan {path} must be cut as for this model and these hosts: got "
        f"{table.sharding_type} of {table.rows} x {table.dim} in {len(wanted)} shards; plan again with the same "
        "options and topology"
    )


def _check_bytes(option: ShardingOption, table: TableEstimate, path: str) -> None:
    """ValueError where the model's weights or moments take other memory than was planned for."""
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
