"""What the planner expects of a plan: bytes and milliseconds of every shard, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from iopath.common.file_io import g_pathmgr

VERSION = 2
PARTS = ("input_dist_comms", "prefetch_compute", "fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


@dataclass(frozen=True, kw_only=True)
class ShardEstimate:
    """A piece of a table: ``size`` rows and columns from ``offset`` on; what HBM and DDR hold beyond are buffers."""

    rank: int
    offset: tuple[int, ...]
    size: tuple[int, ...]
    hbm_bytes: int
    ddr_bytes: int
    weight_bytes: int
    optimizer_bytes: int  # the moments of its rows
    milliseconds: dict[str, float]  # of a step, by PARTS


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to shard a table, whether or not it would fit beside the others."""

    sharding_type: str
    compute_kernel: str
    num_shards: int
    slowest_shard_ms: float
    all_shards_ms: float
    largest_shard_bytes: int


@dataclass(frozen=True, kw_only=True)
class TableEstimate:
    name: str
    rows: int
    dim: int
    pooling_factors: tuple[float, ...]  # rows that a bag of each feature looks up
    sharding_type: str
    compute_kernel: str
    shards: tuple[ShardEstimate, ...]
    alternatives: tuple[Alternative, ...]  # all that were considered, the chosen one among them, fastest first


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A plan for ``batch_size`` rows per rank, as TorchRec's planner sees it; a step of tables only."""

    topology: str
    batch_size: int
    hbm_capacity: tuple[int, ...]  # bytes of each rank
    ddr_capacity: tuple[int, ...]
    hbm_reserved: tuple[int, ...]  # of it for what is not sharded, and a margin
    ddr_reserved: tuple[int, ...]
    tables: tuple[TableEstimate, ...]

    @property
    def world_size(self) -> int:
        return len(self.hbm_capacity)

    @property
    def memory(self) -> str:
        """Where tables lie unless they are offloaded: hbm, or ddr on hosts without devices."""
        return "hbm" if any(self.hbm_capacity) else "ddr"

    def capacity(self, memory: str) -> tuple[int, ...]:
        """Bytes of each rank; ``memory`` is hbm or ddr."""
        return self.hbm_capacity if memory == "hbm" else self.ddr_capacity

    def rank_bytes(self, memory: str) -> list[int]:
        """Bytes of tables on each rank; ``memory`` is hbm or ddr."""
        total = [0] * self.world_size
        for shard in self._shards():
            total[shard.rank] += shard.hbm_bytes if memory == "hbm" else shard.ddr_bytes
        return total

    def rank_milliseconds(self) -> list[dict[str, float]]:
        """Milliseconds of a step that each rank spends on its shards, by part."""
        total = [dict.fromkeys(PARTS, 0.0) for _ in range(self.world_size)]
        for shard in self._shards():
            for part, milliseconds in shard.milliseconds.items():
                total[shard.rank][part] += milliseconds
        return total

    def critical_rank(self) -> int:
        """The rank that the others wait for."""
        sums = [sum(parts.values()) for parts in self.rank_milliseconds()]
        return sums.index(max(sums))

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    def shards_of(self, rank: int) -> list[ShardEstimate]:
        """What one rank holds."""
        return [shard for shard in self._shards() if shard.rank == rank]

    def _shards(self) -> list[ShardEstimate]:
        return [shard for table in self.tables for shard in table.shards]


def read_estimates(path: str) -> list[Estimate]:
    """The estimates in a file of ``to_json``s; ValueError when it cannot be read or is of another version."""
    try:
        with g_pathmgr.open(path, "r") as stream:
            plans: list[dict[str, Any]] = json.load(stream)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"plan {path} must be a file of recipes/plan_sharding.py: got {error}; name another"
        ) from error
    versions = sorted({str(plan.pop("version", None)) for plan in plans})
    if versions != [str(VERSION)]:
        raise ValueError(f"plan {path} must be of version {VERSION}: got {versions}; plan again with this release")
    return [
        Estimate(
            topology=plan["topology"],
            batch_size=plan["batch_size"],
            hbm_capacity=tuple(plan["hbm_capacity"]),
            ddr_capacity=tuple(plan["ddr_capacity"]),
            hbm_reserved=tuple(plan["hbm_reserved"]),
            ddr_reserved=tuple(plan["ddr_reserved"]),
            tables=tuple(map(_read_table, plan["tables"])),
        )
        for plan in plans
    ]


def estimate_of(path: str, world_size: int, topology: str = "") -> Estimate:
    """The one estimate for ``world_size`` ranks in a file, or of several that of ``topology``; else ValueError."""
    plans = read_estimates(path)
    fitting = [plan for plan in plans if plan.world_size == world_size]
    if len(fitting) > 1:
        fitting = [plan for plan in fitting if plan.topology == topology]
    if len(fitting) != 1:
        raise ValueError(
            f"plan {path} must hold one plan for {world_size} ranks: got plans for "
            f"{[f'{plan.world_size} of {plan.topology}' for plan in plans]}; plan one such topology alone"
        )
    return fitting[0]


def _read_table(table: dict[str, Any]) -> TableEstimate:
    shards = [
        ShardEstimate(**{**shard, "offset": tuple(shard["offset"]), "size": tuple(shard["size"])})
        for shard in table["shards"]
    ]
    rest = {
        "pooling_factors": tuple(table["pooling_factors"]),
        "shards": tuple(shards),
        "alternatives": tuple(Alternative(**way) for way in table["alternatives"]),
    }
    return TableEstimate(**{**table, **rest})
