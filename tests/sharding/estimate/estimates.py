"""Made-up estimates of plans, as the planner's are built: shards of random bytes and times on ranks of any number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dlrm_torchrec.sharding.estimate.estimate import PARTS, Alternative, Estimate, ShardEstimate, TableEstimate

GB = 10**9


def made_up_estimate(
    world_size: int,
    names: Sequence[str],
    *,
    topology: str = "1x8:h100",
    devices: bool = True,
    offloaded: bool = False,
    distinct: bool = True,
    seed: int = 0,
) -> Estimate:
    """A plan of a table per name, of all sharding types in turn; with ``offloaded``, half lie in the hosts' memory.

    Shards of a table differ in bytes and time if ``distinct``, else they are alike.
    """
    draw = random.Random(seed)
    capacity = 80 * GB if devices else 256 * GB
    reserved = tuple(draw.randrange(9 * GB, 12 * GB) if distinct else 12 * GB for _ in range(world_size))
    nothing = (0,) * world_size
    return Estimate(
        topology=topology,
        batch_size=1024,
        hbm_capacity=(capacity,) * world_size if devices else nothing,
        ddr_capacity=(250 * GB,) * world_size if devices else (capacity,) * world_size,
        hbm_reserved=reserved if devices else nothing,
        ddr_reserved=nothing if devices else reserved,
        tables=tuple(
            _table(draw, name, number, world_size, devices, offloaded and number % 2 == 1, distinct)
            for number, name in enumerate(names)
        ),
    )


def _table(
    draw: random.Random, name: str, number: int, world_size: int, devices: bool, offloaded: bool, distinct: bool
) -> TableEstimate:
    rows, dim = draw.choice([10, 5_000, 200_000, 3_000_000]), 32
    ranks = [
        range(world_size),
        [draw.randrange(world_size)],
        range(-(-world_size // 2)),
        sorted(draw.sample(range(world_size), max(1, world_size // 2))),
    ][number % 4]
    kinds = ("data_parallel", "table_wise", "table_row_wise", "row_wise")
    kernel = "fused_uvm_caching" if offloaded else "fused"

    def shard(rank: int, wobble: float) -> ShardEstimate:
        size = (rows if number % 4 < 2 else -(-rows // len(ranks)), dim)
        weights, moments = 4 * size[0] * dim, 4 * size[0]
        buffers = int(3e7 * (1 + wobble))
        bytes_here = weights + moments + buffers
        on_host = weights + moments if offloaded else 0 if devices else bytes_here
        return ShardEstimate(
            rank=rank,
            offset=(0, 0),
            size=size,
            hbm_bytes=(weights // 5 + buffers if offloaded else bytes_here) if devices else 0,
            ddr_bytes=on_host,
            weight_bytes=weights,
            optimizer_bytes=moments,
            milliseconds=dict.fromkeys(PARTS, (0.1 + wobble) * (1 + rank % 3)),
        )

    shared = draw.random()
    shards = tuple(shard(rank, draw.random() if distinct else shared) for rank in ranks)
    slowest = max(sum(each.milliseconds.values()) for each in shards)
    largest = max(each.hbm_bytes + each.ddr_bytes for each in shards)
    ways = [
        Alternative(
            sharding_type=kind,
            compute_kernel=kernel,
            num_shards=len(shards),
            slowest_shard_ms=slowest if kind == kinds[number % 4] else slowest * draw.uniform(0.2, 30),
            all_shards_ms=slowest * len(shards),
            largest_shard_bytes=largest if kind == kinds[number % 4] else int(largest * draw.uniform(0.2, 3)),
        )
        for kind in kinds
    ]
    return TableEstimate(
        name=name,
        rows=rows,
        dim=dim,
        pooling_factors=tuple(float(factor) for factor in range(1, 2 + number)),
        sharding_type=kinds[number % 4],
        compute_kernel=kernel,
        shards=shards,
        alternatives=tuple(sorted(ways, key=lambda way: way.slowest_shard_ms)),
    )
