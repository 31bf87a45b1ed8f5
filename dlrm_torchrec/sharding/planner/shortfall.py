"""Why tables do not fit: which table or rank needs too much, and how much memory is missing."""

from __future__ import annotations

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption


class DoesNotFitError(ValueError):
    """No plan fits the memory of the ranks."""


def shortfall(options: list[ShardingOption], left: Topology) -> str:
    """The reason, as text, why even the smallest of all plans does not fit.

    ``options`` are all ways to shard each table; ``left`` is the topology without the reserved memory. The planner's
    own message describes its last proposal, which may not be the smallest.
    """
    memory = "hbm" if left.compute_device == "cuda" else "ddr"
    free = [getattr(device.storage, memory) for device in left.devices]
    ways: dict[str, list[list[int]]] = {}
    for option in options:
        ways.setdefault(option.name, []).append([getattr(shard.storage, memory) for shard in option.shards])
    largest = {name: min(max(shards) for shards in each) for name, each in ways.items()}
    name = max(largest, key=lambda table: largest[table])
    if largest[name] > max(free):
        return (
            f"{_gb(largest[name] - max(free))} too many, because table {name!r} needs at least "
            f"{_gb(largest[name])} on one rank and {_gb(max(free))} is free"
        )
    smallest = {name: min(each, key=sum) for name, each in ways.items()}
    total = sum(map(sum, smallest.values()))
    if total > sum(free):
        name = max(smallest, key=lambda table: sum(smallest[table]))
        return (
            f"{_gb(total - sum(free))} too many, because all tables need at least {_gb(total)} and "
            f"{_gb(sum(free))} is free (the largest table, {name!r}, needs {_gb(sum(smallest[name]))})"
        )
    rank, over = _fullest(list(smallest.values()), free)
    return (
        f"{_gb(over)} too many on rank {rank} when tables are placed largest first, although they need "
        f"{_gb(total)} of {_gb(sum(free))} in total"
        if over > 0
        else f"no plan with the allowed sharding types, although tables need {_gb(total)} of {_gb(sum(free))}"
    )


def _fullest(tables: list[list[int]], free: list[int]) -> tuple[int, int]:
    """The rank that lacks most bytes, and how many, if each shard goes where most bytes are left."""
    left = list(free)
    for shards in sorted(tables, key=max, reverse=True):
        if len(shards) == len(left):
            left = [before - shard for before, shard in zip(left, shards, strict=True)]
        else:
            for shard in shards:
                left[left.index(max(left))] -= shard
    return left.index(min(left)), -min(left)


def _gb(count: int) -> str:
    return f"{count / 1e9:,.3f} GB"
