"""What the planner expects of a plan: bytes and milliseconds of every shard, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption, Stats

VERSION = 1
PARTS = ("input_dist_comms", "fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


@dataclass(frozen=True, kw_only=True)
class ShardEstimate:
    """A piece of a table: ``size`` rows and columns from ``offset`` on, with its optimizer's state and its buffers."""

    rank: int
    offset: tuple[int, ...]
    size: tuple[int, ...]
    hbm_bytes: int
    ddr_bytes: int
    milliseconds: dict[str, float]  # of a step, by PARTS


@dataclass(frozen=True, kw_only=True)
class TableEstimate:
    name: str
    rows: int
    dim: int
    pooling_factors: tuple[float, ...]  # rows that a bag of each feature looks up
    sharding_type: str
    compute_kernel: str
    shards: tuple[ShardEstimate, ...]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A plan for ``batch_size`` rows per rank, as TorchRec's planner sees it; a step of tables only."""

    topology: str
    batch_size: int
    hbm_capacity: tuple[int, ...]  # bytes of each rank
    ddr_capacity: tuple[int, ...]
    tables: tuple[TableEstimate, ...]

    @property
    def world_size(self) -> int:
        return len(self.hbm_capacity)

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

    def _shards(self) -> list[ShardEstimate]:
        return [shard for table in self.tables for shard in table.shards]


class EstimateStats(Stats):
    """Keeps the estimates of the plan that the planner chose in ``found``."""

    def __init__(self, topology: str) -> None:
        self.found: Estimate | None = None
        self._topology = topology

    def log(
        self,
        sharding_plan: Any,  # noqa: ARG002 (TorchRec's)
        topology: Topology,
        batch_size: int,
        storage_reservation: Any,  # noqa: ARG002
        num_proposals: int,  # noqa: ARG002
        num_plans: int,  # noqa: ARG002
        run_time: float,  # noqa: ARG002
        best_plan: list[ShardingOption],
        *_: Any,
        **__: Any,
    ) -> None:
        if best_plan:
            self.found = Estimate(
                topology=self._topology,
                batch_size=batch_size,
                hbm_capacity=tuple(device.storage.hbm for device in topology.devices),
                ddr_capacity=tuple(device.storage.ddr for device in topology.devices),
                tables=tuple(_table(option) for option in sorted(best_plan, key=lambda option: str(option.name))),
            )


def _table(option: ShardingOption) -> TableEstimate:
    return TableEstimate(
        name=option.name,
        rows=option.tensor.size(0),
        dim=option.tensor.size(1),
        pooling_factors=tuple(option.input_lengths),
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        shards=tuple(
            ShardEstimate(
                rank=shard.rank,
                offset=tuple(shard.offset),
                size=tuple(shard.size),
                hbm_bytes=shard.storage.hbm,
                ddr_bytes=shard.storage.ddr,
                milliseconds={part: getattr(shard.perf, part) for part in PARTS},
            )
            for shard in option.shards
        ),
    )


def describe_ranks(estimate: Estimate) -> str:
    """Memory and estimated time per rank, as a table for a terminal; the rank that the others wait for is marked."""
    lines = [f"{'rank':>4}  {'HBM GB':>14}  {'DDR GB':>15}  {'ms':>7}  " + "  ".join(f"{p:>16}" for p in PARTS)]
    rows = zip(
        estimate.rank_bytes("hbm"),
        estimate.hbm_capacity,
        estimate.rank_bytes("ddr"),
        estimate.ddr_capacity,
        estimate.rank_milliseconds(),
        strict=True,
    )
    for rank, (hbm, hbm_capacity, ddr, ddr_capacity, parts) in enumerate(rows):
        mark = "  <- critical" if rank == estimate.critical_rank() else ""
        lines.append(
            f"{rank:>4}  {hbm / 1e9:>6.2f} / {hbm_capacity / 1e9:>5.1f}  {ddr / 1e9:>6.2f} / {ddr_capacity / 1e9:>6.1f}"
            f"  {sum(parts.values()):>7.3f}  " + "  ".join(f"{parts[part]:>16.3f}" for part in PARTS) + mark
        )
    return "\n".join(lines)


def compare(estimates: list[Estimate]) -> str:
    """One line per topology: what the fullest rank holds, and what the slowest one takes."""
    lines = [
        f"{'topology':<20}  {'ranks':>5}  {'HBM GB, fullest':>15}  {'of':>6}  {'ms, slowest':>11}  rows/s of tables"
    ]
    for estimate in estimates:
        milliseconds = sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())
        lines.append(
            f"{estimate.topology:<20}  {estimate.world_size:>5}  {max(estimate.rank_bytes('hbm')) / 1e9:>15.2f}  "
            f"{max(estimate.hbm_capacity) / 1e9:>6.1f}  {milliseconds:>11.3f}  "
            f"{1e3 * estimate.batch_size * estimate.world_size / milliseconds:,.0f}"
        )
    return "\n".join(lines)
