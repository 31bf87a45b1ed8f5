"""The machines that a plan is made for: the current ones, or any others, which a text or a file describes."""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import (
    BasicCommsBandwidths,
    CollectiveType,
    HardwareConfig,
    KernelConfig,
    TopologyFactory,
    TrainerConfig,
)

from dlrm_torchrec.sharding.cluster.machines import GPUS, HARDWARE, INSTANCES, MACHINES, Machine

MILLISECONDS = 1000  # per second; TorchRec expects bytes per millisecond


def live_topology(device: torch.device, *, world_size: int, local_size: int) -> Topology:
    """The topology of the current machines: their real memory per rank, and bandwidths.

    The bandwidths are those of the machine whose GPUs have this name, or else TorchRec's defaults. All hosts are taken
    for equal.
    """
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hbm_bytes = None
    if device.type == "cuda":
        hbm_bytes = int(torch.cuda.get_device_properties(device).total_memory)
        machine = GPUS.get(torch.cuda.get_device_name(device))
        if machine is not None:
            return _topology(replace(machine, hbm_bytes=hbm_bytes, ddr_bytes=host_bytes), world_size, local_size)
    return Topology(
        world_size=world_size,
        local_world_size=local_size,
        compute_device=device.type,
        hbm_cap=hbm_bytes,
        ddr_cap=host_bytes // local_size,
    )


def whose_bandwidths(topology: Topology) -> str:
    """Whose bandwidths a topology of GPUs has, for people; empty for one of CPUs."""
    if topology.compute_device != "cuda":
        return ""
    names = {machine.hbm_bandwidth / MILLISECONDS: name for name, machine in HARDWARE.items()}
    name = names.get(topology.hbm_mem_bw)
    return f"bandwidths of {name}" if name else "TorchRec's default bandwidths, as no machine of ours has this GPU"


MOST_RANKS = 16_384


@dataclass(frozen=True)
class Cluster:
    """``hosts`` of the same kind, each with one rank on each of its ``devices_per_host`` devices."""

    machine: Machine
    hosts: int
    devices_per_host: int

    def __post_init__(self) -> None:
        if self.world_size > MOST_RANKS:
            raise ValueError(
                f"topology must have at most {MOST_RANKS:,} ranks, because planning takes longer with each: got "
                f"{self.hosts:,} x {self.devices_per_host:,}; plan for fewer hosts"
            )

    def __str__(self) -> str:
        return f"{self.hosts}x{self.devices_per_host}:{self.machine.name}"

    @property
    def world_size(self) -> int:
        return self.hosts * self.devices_per_host

    def node(self, ranks: int) -> Cluster:
        """The first ``ranks`` ranks of the cluster, with their share of a host's memory and of its bandwidth."""
        devices = min(ranks, self.devices_per_host)
        if ranks < 1 or self.world_size % ranks or ranks % devices:
            raise ValueError(
                f"ranks of a node must divide the {self.world_size} ranks of {self} and be whole hosts or part of one "
                f"host: got {ranks}; choose a divisor"
            )
        share = devices / self.devices_per_host
        machine = replace(
            self.machine,
            ddr_bytes=int(self.machine.ddr_bytes * share),
            ddr_bandwidth=self.machine.ddr_bandwidth * share,
        )
        return Cluster(machine, ranks // devices, devices)

    def topology(self) -> Topology:
        """The cluster in the form of TorchRec's planner; ranks share their host's memory and bandwidth equally."""
        return _topology(self.machine, self.world_size, self.devices_per_host)


def _topology(machine: Machine, world_size: int, local_size: int) -> Topology:
    """Hosts of ``local_size`` ranks each, which share their host's memory and bandwidth equally."""
    is_gpu = machine.compute_device == "cuda"
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local_size),
        HardwareConfig(
            hbm_cap_bytes=machine.hbm_bytes if is_gpu else None,
            ddr_cap_bytes=machine.ddr_bytes // local_size,
            hbm_mem_bw=machine.hbm_bandwidth / MILLISECONDS if is_gpu else None,
            ddr_mem_bw=machine.ddr_bandwidth / local_size / MILLISECONDS,
            hbm_to_ddr_mem_bw=machine.pcie_bandwidth / MILLISECONDS if is_gpu else None,
        ),
        KernelConfig(
            compute_device=machine.compute_device,
            use_hardware_based_bandwidth=True,
            generalized_comms_bandwidths=HostBandwidths(
                intra_host_bw=machine.intra_host_bandwidth / MILLISECONDS,
                inter_host_bw=machine.inter_host_bandwidth / MILLISECONDS,
            ),
        ),
    )
    for device in topology.devices:
        device.storage.ssd = 0  # no offered kernel keeps rows on disk; a cap of 0 means 2 TB to TorchRec 1.6
    return topology


class HostBandwidths(BasicCommsBandwidths):
    """TorchRec's bandwidths, except that an all-reduce within one host does not use the network between hosts."""

    def get_bw(self, local_world_size: int, world_size: int, collective_type: CollectiveType) -> float:
        """Bytes per millisecond of a collective among ``world_size`` ranks with ``local_world_size`` per host."""
        inside = world_size <= local_world_size
        bandwidth: float = (
            self.intra_host_bw if inside else super().get_bw(local_world_size, world_size, collective_type)
        )
        return bandwidth


def parse_cluster(text: str) -> Cluster:
    """The cluster that ``text`` describes: ``2x8:h100``, ``2:p5.48xlarge``, ``p5.48xlarge`` or a TOML file.

    The forms are: hosts x devices : machine; a number of hosts and a cloud's instance, which is a whole host; such an
    instance alone, which means one host; and a file for ``load_cluster``. Upper and lower case are equal. Raises
    ValueError for any other text, and for more devices than a host has.
    """
    if text.strip().lower().endswith(".toml"):
        return load_cluster(Path(text.strip()))
    match = re.fullmatch(r"(?:([1-9]\d*)(?:x([1-9]\d*))?:)?([a-z][\w.-]*)", text.strip().lower())
    if match is None:
        raise ValueError(
            "topology must be HOSTSxDEVICES:MACHINE, HOSTS:INSTANCE, INSTANCE or a .toml file: "
            f"got {text!r}; write for example 2x8:h100 or 2:p5.48xlarge"
        )
    hosts, devices, name = match.groups()
    machine = _known(name)
    if devices is None and name not in INSTANCES:
        raise ValueError(
            f"topology must say how many hosts and devices of {machine.name!r} there are: got {text!r}; "
            f"write for example 2x{min(8, machine.devices_per_host)}:{machine.name}"
        )
    ranks = int(devices or machine.devices_per_host)
    if ranks > machine.devices_per_host:
        raise ValueError(
            f"devices per host must be at most {machine.devices_per_host} with {machine.name!r}: got {ranks}; "
            "add hosts, or describe the machine in a .toml file"
        )
    return Cluster(machine, int(hosts or 1), ranks)


# Keys of a topology file, and the fields of Machine that they set
FIELDS = {
    f"{field.name}_bytes_per_s" if field.name.endswith("_bandwidth") else field.name: field.name
    for field in fields(Machine)
    if field.name != "name"
}
GPU_ONLY = {"hbm_bytes", "hbm_bandwidth", "pcie_bandwidth"}
WHOLE = {"hosts", "devices_per_host", "hbm_bytes", "ddr_bytes"}


def load_cluster(path: Path) -> Cluster:
    """The cluster that a TOML file describes.

    The keys are ``hosts``, ``machine`` and the fields of ``Machine`` except the name. ``machine`` is optional and names
    a known machine to start from. Bandwidths carry their unit in the key: ``devices_per_host = 8``,
    ``hbm_bytes = 80e9``, ``hbm_bandwidth_bytes_per_s = 3.35e12``. Without ``machine``, every key except ``source`` is
    required; keys of HBM and PCIe are for ``cuda`` only. Raises ValueError for a key that is unknown or missing, and
    for a figure that is not positive.
    """
    table = _read(path)
    figures: dict[str, Any] = {"source": str(path)}
    if "machine" in table:
        machine = _known(str(table["machine"]).lower())
        figures = {**vars(machine), "source": f"{path}, which starts from {machine.name}: {machine.source}"}
    device = table.get("compute_device", figures.get("compute_device"))
    if device not in ("cuda", "cpu"):
        raise ValueError(f"compute_device in {path} must be 'cuda' or 'cpu': got {device!r}; name one of them")
    keys = {key: field for key, field in FIELDS.items() if device == "cuda" or field not in GPU_ONLY}
    unknown = sorted(table.keys() - keys.keys() - {"hosts", "machine"})
    if unknown:
        raise ValueError(f"keys in {path} must be among {['hosts', 'machine', *keys]}: got {unknown}; remove them")
    figures |= {field: _figure(path, key, table[key]) for key, field in keys.items() if key in table}
    missing = ["hosts"] * ("hosts" not in table) + [key for key, field in keys.items() if field not in figures]
    if missing:
        raise ValueError(f"keys in {path} must describe the whole cluster: got no {missing}; add them")
    figures["name"] = path.stem
    return Cluster(Machine(**figures), _figure(path, "hosts", table["hosts"]), figures["devices_per_host"])


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"topology file must be readable: got {error}; name another file") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"topology file {path} must be TOML: got {error}; correct it") from error


def _figure(path: Path, key: str, value: Any) -> Any:
    """The ``value`` of ``key``, as an integer if only whole numbers make sense."""
    if key in ("compute_device", "source"):
        return value
    whole = key in WHOLE
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf or (whole and value != int(value)):
        raise ValueError(
            f"{key} in {path} must be a positive {'whole ' if whole else ''}number: got {value!r}; correct it"
        )
    return int(value) if whole else value


def _known(name: str) -> Machine:
    if name not in MACHINES:
        raise ValueError(
            f"machine must be one of {[machine.name for machine in MACHINES.values()]}: got {name!r}; "
            "name one of them, or describe your machine in a .toml file"
        )
    return MACHINES[name]
