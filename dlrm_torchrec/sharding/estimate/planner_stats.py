"""The estimates of a plan, taken from the planner that chose it."""

from __future__ import annotations

import re
from typing import Any

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption, Stats, StorageReservation

from dlrm_torchrec.sharding.estimate.estimate import PARTS, Alternative, Estimate, ShardEstimate, TableEstimate
from dlrm_torchrec.sharding.planner.enumerator import shard_optimizer_bytes, shard_weight_bytes, simplicity


class EstimateStats(Stats):
    """Stores the estimates of the plan that the planner chose in ``estimate``."""

    def __init__(self, topology: str) -> None:
        self.estimate: Estimate | None = None
        self._topology = topology

    def log(  # noqa: PLR0917  # TorchRec's
        self,
        sharding_plan: Any,  # noqa: ARG002 (TorchRec's)
        topology: Topology,
        batch_size: int,
        storage_reservation: StorageReservation,
        num_proposals: int,  # noqa: ARG002 (TorchRec's)
        num_plans: int,  # noqa: ARG002 (TorchRec's)
        run_time: float,  # noqa: ARG002 (TorchRec's)
        best_plan: list[ShardingOption],
        *_: Any,
        enumerator: Any = None,
        **__: Any,
    ) -> None:
        if best_plan:
            left = storage_reservation.last_reserved_topology
            assert left is not None
            whole = [device.storage for device in topology.devices]
            reserved = [each - device.storage for each, device in zip(whole, left.devices, strict=True)]
            considered: dict[str, list[ShardingOption]] = {}
            for option in enumerator.last_stored_search_space:
                considered.setdefault(option.name, []).append(option)
            self.estimate = Estimate(
                topology=self._topology,
                batch_size=batch_size,
                hbm_capacity=tuple(storage.hbm for storage in whole),
                ddr_capacity=tuple(storage.ddr for storage in whole),
                hbm_reserved=tuple(storage.hbm for storage in reserved),
                ddr_reserved=tuple(storage.ddr for storage in reserved),
                tables=tuple(
                    _table(option, considered[option.name])
                    for option in sorted(best_plan, key=lambda option: _natural(option.name))
                ),
            )


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers within names by their value."""
    return [(int(piece) if piece.isdigit() else -1, piece) for piece in re.split(r"(\d+)", name)]


def _table(option: ShardingOption, considered: list[ShardingOption]) -> TableEstimate:
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
                weight_bytes=shard_weight_bytes(option, shard.size),
                optimizer_bytes=shard_optimizer_bytes(option, shard.size),
                milliseconds={part: getattr(shard.perf, part) for part in PARTS},
            )
            for shard in option.shards
        ),
        alternatives=tuple(
            sorted(map(_alternative, sorted(considered, key=simplicity)), key=lambda way: way.slowest_shard_ms)
        ),
    )


def _alternative(option: ShardingOption) -> Alternative:
    milliseconds = [sum(getattr(shard.perf, part) for part in PARTS) for shard in option.shards]
    return Alternative(
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        num_shards=len(option.shards),
        slowest_shard_ms=max(milliseconds),
        all_shards_ms=sum(milliseconds),
        largest_shard_bytes=max(shard.storage.hbm + shard.storage.ddr for shard in option.shards),
    )
