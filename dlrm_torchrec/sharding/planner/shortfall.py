"""Why tables do not fit: the table or the rank that breaks it, and by how many bytes."""

from __future__ import annotations

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption


class DoesNotFitError(ValueError):
    """No plan fits the memory of the ranks."""


def shortfall(options: list[ShardingOption], left: Topology) -> str:
    """What breaks the smallest of all plans, in words.

    ``options`` are all ways to shard each table; ``left`` is the topology with what is reserved taken off. The
    planner's own text is about its last proposal, which need not be its smallest.
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
            f"table {name!r}, of which every way of sharding puts at least {_bytes(largest[name])} on a rank that has "
            f"{_bytes(max(free))} for tables: {largest[name] - max(free):,} bytes too many"
        )
    smallest = {name: min(each, key=sum) for name, each in ways.items()}
    total = sum(map(sum, smallest.values()))
    if total > sum(free):
        name = max(smallest, key=lambda table: sum(smallest[table]))
        return (
            f"tables of at least {_bytes(total)} where {_bytes(sum(free))} are free for them: "
            f"{total - sum(free):,} bytes too many, with table {name!r} the largest, {_bytes(sum(smallest[name]))}"
        )
    rank, over = _fullest(list(smallest.values()), free)
    return (
        f"tables that would fit all memory together ({_bytes(total)} of {_bytes(sum(free))}) but not rank by rank: "
        f"placed largest first, rank {rank} gets {over:,} bytes more than it has"
        if over > 0
        else f"sharding types that leave no plan, although {_bytes(total)} fit {_bytes(sum(free))}"
    )


def _fullest(tables: list[list[int]], free: list[int]) -> tuple[int, int]:
    """The rank that lacks most bytes, and how many, when each shard goes where most are left."""
    left = list(free)
    for shards in sorted(tables, key=max, reverse=True):
        if len(shards) == len(left):
            left = [before - shard for before, shard in zip(left, shards, strict=True)]
        else:
            for shard in shards:
                left[left.index(max(left))] -= shard
    return left.index(min(left)), -min(left)


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
