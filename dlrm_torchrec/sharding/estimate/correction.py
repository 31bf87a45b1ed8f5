"""Bandwidths with which the planner would have expected the times that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torchrec.distributed.planner.constants import DP_ELEMENTWISE_KERNELS_PERF_FACTOR, kernel_bw_lookup

from dlrm_torchrec.sharding.cluster.machines import Machine
from dlrm_torchrec.sharding.cluster.topology import FIELDS, GPU_ONLY, Cluster
from dlrm_torchrec.sharding.estimate.estimate import Estimate, ShardEstimate, TableEstimate
from dlrm_torchrec.sharding.modules.sharder import HOST_KERNELS, ROW_TYPES

# What is planned, and the parts of a step that are timed for it (dlrm_torchrec.train.timing.stopwatch)
TIMED = {
    "input_dist_comms": ("input_dist",),
    "fwd_compute": ("lookup",),
    "fwd_comms": ("output_dist",),
    "bwd_compute": ("lookup_backward",),
    "bwd_comms": ("output_dist_backward", "tables_optimizer"),
}
IN_MEMORY = ("lookup", "lookup_backward", "tables_optimizer")  # what the memory's bandwidth alone decides


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How many times the planned milliseconds it takes: to read and write memory, and to send."""

    memory: float
    wires: float
    fields: dict[str, float]  # bandwidths of a Machine that change, in bytes/s

    @property
    def is_one_factor(self) -> bool:
        """Whether times in memory alone would be too long, if only they were corrected by what they were."""
        return self.memory == self.wires

    def apply(self, cluster: Cluster, source: str) -> Cluster:
        """``cluster`` with the corrected bandwidths, which ``source`` tells the origin of."""
        return replace(cluster, machine=Machine(**{**vars(cluster.machine), **self.fields, "source": source}))


@dataclass(frozen=True)
class _Planned:
    """Milliseconds of a rank by what they shrink with: the memory's bandwidth, or that between ranks."""

    memory: float  # lookups and updates
    copies: float  # of gradients that an all-gather brought: by memory, but timed as part of sending
    wires: float


def correct(estimate: Estimate, cluster: Cluster, measured: Sequence[Mapping[str, float]]) -> Correction:
    """Bandwidths for which the slowest rank's estimate of the same plan is what the slowest rank measured.

    ``measured`` are milliseconds by part of a step, per rank; every planned time is inverse in one bandwidth. The
    memory's is such that the longest time in memory is as measured. That between ranks is then the lowest for which
    no rank takes longer than the slowest one did. Where memory alone would take longer, one factor changes both.
    """
    planned = [_planned(estimate, cluster, rank) for rank in range(estimate.world_size)]
    slowest = max(sum(tables_milliseconds(parts).values()) for parts in measured)
    memory = max(sum(parts[name] for name in IN_MEMORY) for parts in measured) / max(rank.memory for rank in planned)
    wires = min((slowest - memory * (rank.memory + rank.copies)) / rank.wires for rank in planned if rank.wires)
    if wires <= 0:
        memory = wires = slowest / max(rank.memory + rank.copies + rank.wires for rank in planned)
    machine = cluster.machine
    factors = dict.fromkeys(_memories(estimate), memory) | dict.fromkeys(_wires(estimate, cluster), wires)
    return Correction(
        memory=memory, wires=wires, fields={name: getattr(machine, name) / factor for name, factor in factors.items()}
    )


def tables_milliseconds(parts: Mapping[str, float]) -> dict[str, float]:
    """What was timed of a rank, under the names of what was planned."""
    return {name: sum(parts[part] for part in timed) for name, timed in TIMED.items()}


def _planned(estimate: Estimate, cluster: Cluster, rank: int) -> _Planned:
    memory = copies = wires = 0.0
    for table in estimate.tables:
        for shard in table.shards:
            if shard.rank == rank:
                parts, total = shard.milliseconds, sum(shard.milliseconds.values())
                looked_up = parts["prefetch_compute"] + parts["fwd_compute"] + parts["bwd_compute"]
                updated, copied = _update_ms(table, shard, cluster), _copy_ms(table, shard)
                memory, copies = memory + looked_up + updated, copies + copied
                wires += total - looked_up - updated - copied
    return _Planned(memory, copies, wires)


def _update_ms(table: TableEstimate, shard: ShardEstimate, cluster: Cluster) -> float:
    """The optimizer of a replicated table, which TorchRec counts as a part of the gradients' all-reduce."""
    if table.sharding_type != "data_parallel":
        return 0.0
    topology = cluster.topology()
    bandwidth = kernel_bw_lookup(
        topology.compute_device,
        table.compute_kernel,
        topology.hbm_mem_bw,
        topology.ddr_mem_bw,
        topology.hbm_to_ddr_mem_bw,
    )
    return float(shard.weight_bytes * DP_ELEMENTWISE_KERNELS_PERF_FACTOR / bandwidth)


def _copy_ms(table: TableEstimate, shard: ShardEstimate) -> float:
    """For row-wise types, TorchRec adds copies in memory to the way back, which else is that of the way there."""
    parts = shard.milliseconds
    return parts["bwd_comms"] - parts["fwd_comms"] if table.sharding_type in ROW_TYPES else 0.0


def _memories(estimate: Estimate) -> list[str]:
    if estimate.memory == "ddr":
        return ["ddr_bandwidth"]
    in_host = any(table.compute_kernel in HOST_KERNELS for table in estimate.tables)
    return ["hbm_bandwidth", *(["pcie_bandwidth"] if in_host else [])]


def _wires(estimate: Estimate, cluster: Cluster) -> list[str]:
    if cluster.hosts == 1:
        return ["intra_host_bandwidth"]
    on_hosts = any(table.sharding_type in ("table_row_wise", "grid_shard") for table in estimate.tables)
    return ["inter_host_bandwidth", *(["intra_host_bandwidth"] if on_hosts else [])]


def to_toml(cluster: Cluster) -> str:
    """The topology file from which ``load_cluster`` reads ``cluster``."""
    machine = replace(cluster.machine, devices_per_host=cluster.devices_per_host)
    keys = {key: field for key, field in FIELDS.items() if machine.compute_device == "cuda" or field not in GPU_ONLY}
    values = {"hosts": cluster.hosts} | {key: getattr(machine, field) for key, field in keys.items()}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
