"""The planner's estimates for a plan: bytes and milliseconds of every shard, as objects and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from iopath.common.file_io import g_pathmgr

VERSION = 2
PARTS = ("input_dist_comms", "prefetch_compute", "fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


@dataclass(frozen=True, kw_only=True)
class ShardEstimate:
    """A piece of a table: ``size`` (rows, columns) from ``offset`` on.

    HBM and DDR bytes include weights, moments and buffers.
    """

    rank: int
    offset: tuple[int, ...]
    size: tuple[int, ...]
    hbm_bytes: int
    ddr_bytes: int
    weight_bytes: int
    optimizer_bytes: int  # the moments of its rows
    milliseconds: dict[str, float]  # of one step, by PARTS


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to shard a table; it may not fit together with the other tables."""

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
    alternatives: tuple[Alternative, ...]  # all ways that were considered, also the chosen one, fastest first


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """TorchRec's estimates for a plan with ``batch_size`` rows per rank; they cover only the tables' part of a step."""

    topology: str
    batch_size: int
    hbm_capacity: tuple[int, ...]  # bytes of each rank
    ddr_capacity: tuple[int, ...]
    hbm_reserved: tuple[int, ...]  # bytes of the capacity for everything that is not sharded, and a margin
    ddr_reserved: tuple[int, ...]
    tables: tuple[TableEstimate, ...]
    activation_bytes: int = 0  # those of the reserved bytes that the rest of the model needs for its activations

    @property
    def world_size(self) -> int:
        return len(self.hbm_capacity)

    @property
    def memory(self) -> str:
        """The memory that holds tables unless they are offloaded: hbm, or ddr on hosts without GPUs."""
        return "hbm" if any(self.hbm_capacity) else "ddr"

    def capacity(self, memory: str) -> tuple[int, ...]:
        """Bytes that each rank has; ``memory`` is hbm or ddr."""
        return self.hbm_capacity if memory == "hbm" else self.ddr_capacity

    def rank_bytes(self, memory: str) -> list[int]:
        """Bytes of tables on each rank; ``memory`` is hbm or ddr."""
        total = [0] * self.world_size
        for shard in self._shards():
            total[shard.rank] += shard.hbm_bytes if memory == "hbm" else shard.ddr_bytes
        return total

    def used_bytes(self, memory: str) -> list[int]:
        """Bytes of tables and of activations on each rank; ``memory`` is hbm or ddr."""
        activations = self.activation_bytes if memory == self.memory else 0
        return [of_tables + activations for of_tables in self.rank_bytes(memory)]

    def rank_milliseconds(self) -> list[dict[str, float]]:
        """Milliseconds that each rank spends on its shards in a step, by part."""
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
        """The shards that one rank holds."""
        return [shard for shard in self._shards() if shard.rank == rank]

    def _shards(self) -> list[ShardEstimate]:
        return [shard for table in self.tables for shard in table.shards]


def read_estimates(path: str) -> list[Estimate]:
    """The estimates in a plan.json; raises ValueError when it cannot be read or has another version."""
    try:
        with g_pathmgr.open(path, "r") as stream:
            plans: list[dict[str, Any]] = json.load(stream)
        if not isinstance(plans, list) or not all(isinstance(plan, dict) for plan in plans):
            raise ValueError("no list of plans")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"plan {path} must be a file that recipes/plan_sharding.py wrote: got {error}; name another file"
        ) from error
    versions = sorted({str(plan.pop("version", None)) for plan in plans})
    if versions != [str(VERSION)]:
        raise ValueError(f"plan {path} must have version {VERSION}: got {versions}; plan again with this release")
    try:
        return [_read_estimate(plan) for plan in plans]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"plan {path} must have every field of a plan: got {error!r}; plan again") from error


def estimate_of(path: str, world_size: int, topology: str = "") -> Estimate:
    """The estimate for ``world_size`` ranks in a plan.json; ``topology`` chooses if there are several.

    Raises ValueError when that does not leave exactly one.
    """
    plans = read_estimates(path)
    fitting = [plan for plan in plans if plan.world_size == world_size]
    if len(fitting) > 1:
        fitting = [plan for plan in fitting if plan.topology == topology]
    if len(fitting) != 1:
        raise ValueError(
            f"plan {path} must hold one plan for {world_size} ranks: got plans for "
            f"{[f'{plan.world_size} of {plan.topology}' for plan in plans]}; plan only one such topology"
        )
    return fitting[0]


def _read_estimate(plan: dict[str, Any]) -> Estimate:
    return Estimate(
        topology=plan["topology"],
        batch_size=plan["batch_size"],
        hbm_capacity=tuple(plan["hbm_capacity"]),
        ddr_capacity=tuple(plan["ddr_capacity"]),
        hbm_reserved=tuple(plan["hbm_reserved"]),
        ddr_reserved=tuple(plan["ddr_reserved"]),
        tables=tuple(map(_read_table, plan["tables"])),
        activation_bytes=plan.get("activation_bytes", 0),  # earlier releases did not write it
    )


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
