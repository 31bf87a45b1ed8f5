"""Bandwidths with which the planner would have predicted the measured times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torchrec.distributed.planner.constants import DP_ELEMENTWISE_KERNELS_PERF_FACTOR, kernel_bw_lookup

from dlrm_torchrec.sharding.cluster.machines import Machine
from dlrm_torchrec.sharding.cluster.topology import FIELDS, GPU_ONLY, Cluster
from dlrm_torchrec.sharding.estimate.estimate import Estimate, ShardEstimate, TableEstimate
from dlrm_torchrec.sharding.modules.sharder import HOST_KERNELS, ROW_TYPES

# The planned parts of a step, and for each of them the timed parts (dlrm_torchrec.train.timing.stopwatch)
TIMED = {
    "input_dist_comms": ("input_dist",),
    "fwd_compute": ("lookup",),
    "fwd_comms": ("output_dist",),
    "bwd_compute": ("lookup_backward",),
    "bwd_comms": ("output_dist_backward", "tables_optimizer"),
}
IN_MEMORY = ("lookup", "lookup_backward", "tables_optimizer")  # parts that only the memory's bandwidth decides


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Measured divided by planned milliseconds, for reading and writing memory and for sending."""

    memory: float
    wires: float
    fields: dict[str, float]  # bandwidths of a Machine that change, in bytes/s

    @property
    def is_one_factor(self) -> bool:
        """Whether one factor corrects both, because the corrected times in memory alone would exceed the step."""
        return self.memory == self.wires

    def apply(self, cluster: Cluster, source: str) -> Cluster:
        """``cluster`` with the corrected bandwidths; ``source`` says where they come from."""
        return replace(cluster, machine=Machine(**{**vars(cluster.machine), **self.fields, "source": source}))


@dataclass(frozen=True)
class _Planned:
    """Planned milliseconds of a rank, split by the bandwidth that decides them: the memory's, or that between ranks."""

    memory: float  # lookups and updates
    copies: float  # copies of gradients after an all-gather: the memory decides, but they are timed as sending
    wires: float


def correct(estimate: Estimate, cluster: Cluster, measured: Sequence[Mapping[str, float]]) -> Correction:
    """Bandwidths for which the same plan's estimate of its slowest rank equals the measured time of the slowest rank.

    ``measured`` holds milliseconds by part of a step, for each rank. Every planned time is inversely proportional to
    one bandwidth. The memory's bandwidth makes the longest planned time in memory equal to the longest measured one.
    The bandwidth between ranks is then the lowest for which no rank takes longer than the measured slowest rank. If
    time in memory alone would already exceed that, one factor changes both bandwidths.
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
    """The timed milliseconds of a rank, under the names of the planned parts."""
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
    """Milliseconds of a replicated table's optimizer, which TorchRec counts as part of the gradients' all-reduce."""
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
    """Milliseconds of copies in memory, which TorchRec adds to the backward comms of row-wise types.

    Without these copies, backward comms take as long as forward comms.
    """
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
    """The text of a topology file that ``load_cluster`` reads as ``cluster``."""
    machine = replace(cluster.machine, devices_per_host=cluster.devices_per_host)
    keys = {key: field for key, field in FIELDS.items() if machine.compute_device == "cuda" or field not in GPU_ONLY}
    values = {"hosts": cluster.hosts} | {key: getattr(machine, field) for key, field in keys.items()}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
