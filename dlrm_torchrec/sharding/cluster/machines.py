"""Machines to plan for: memory and bandwidths from their data sheets. 1 GB is 10**9 bytes.

Bandwidths are peak values in one direction. NVIDIA's data sheets add both directions of NVLink and PCIe, so this file
has half of their figures. The devices of a host share a cloud's network equally. A host's memory bandwidth is that of
all memory channels of its processors, fully populated.

A ``source`` says where to check a figure. It does not mean that the figure was checked: no document could be opened
when this file was written. Most figures were quoted elsewhere. These are from memory: H100's bandwidth, the memory
channels of hosts, PCIe generations, DGX host memory, the networks of p4d, p4de, p5e, p5en, p6-b200, g6e, A3 and
ND H200, and p6-b200's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

GB = 10**9
GIB = 2**30
GBIT = GB / 8
DDR4_2933, DDR4_3200, DDR5_4800, DDR5_5600 = (8 * 10**6 * rate for rate in (2933, 3200, 4800, 5600))  # per channel
PCIE_3, PCIE_4, PCIE_5 = 16 * GB, 32 * GB, 64 * GB  # 16 lanes


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A kind of host and its devices, which are GPUs or the ranks of a CPU host; HBM and PCIe of a CPU host are 0."""

    name: str
    compute_device: Literal["cuda", "cpu"]
    devices_per_host: int
    hbm_bytes: int = 0  # per device
    ddr_bytes: int  # per host
    hbm_bandwidth: float = 0  # bytes/s per device
    ddr_bandwidth: float  # bytes/s per host
    pcie_bandwidth: float = 0  # bytes/s per device, to the host's memory
    intra_host_bandwidth: float  # bytes/s per device, to devices of the same host: NVLink, PCIe or the host's memory
    inter_host_bandwidth: float  # bytes/s per device, to other hosts
    source: str

    @property
    def table_bytes(self) -> int:
        """Bytes per device of the memory that holds tables unless they are offloaded."""
        return self.hbm_bytes if self.compute_device == "cuda" else self.ddr_bytes // self.devices_per_host


CPU = Machine(
    name="cpu",
    compute_device="cpu",
    devices_per_host=80,
    ddr_bytes=512 * GIB,
    ddr_bandwidth=2 * 8 * DDR4_3200,
    intra_host_bandwidth=4 * GB,
    inter_host_bandwidth=10 * GBIT,
    source="two sockets of Intel Xeon Platinum 8380 (Intel product page, 2021), at most one rank per core; assumptions "
    "that should be replaced by measurements: 512 GiB, gloo at 4 GB/s within and 10 Gb/s between hosts",
)
A100_40 = Machine(
    name="a100-40",
    compute_device="cuda",
    devices_per_host=8,
    hbm_bytes=40 * GB,
    ddr_bytes=1000 * GB,
    hbm_bandwidth=1555 * GB,
    ddr_bandwidth=2 * 8 * DDR4_3200,
    pcie_bandwidth=PCIE_4,
    intra_host_bandwidth=300 * GB,
    inter_host_bandwidth=200 * GBIT,
    source="NVIDIA A100 data sheet (2020), SXM; host: NVIDIA DGX A100 data sheet (2020), AMD EPYC 7742 product page",
)
A100_80 = replace(
    A100_40,
    name="a100-80",
    hbm_bytes=80 * GB,
    ddr_bytes=2000 * GB,
    hbm_bandwidth=2039 * GB,
    source="NVIDIA A100 data sheet (2021), SXM; host: NVIDIA DGX A100 640GB data sheet (2021), AMD EPYC 7742 product "
    "page",
)
H100 = Machine(
    name="h100",
    compute_device="cuda",
    devices_per_host=8,
    hbm_bytes=80 * GB,
    ddr_bytes=2000 * GB,
    hbm_bandwidth=3350 * GB,
    ddr_bandwidth=2 * 8 * DDR5_4800,
    pcie_bandwidth=PCIE_5,
    intra_host_bandwidth=450 * GB,
    inter_host_bandwidth=400 * GBIT,
    source="NVIDIA H100 data sheet (2023), SXM; host: NVIDIA DGX H100 data sheet (2023), Intel Xeon Platinum 8480C",
)
H200 = replace(
    H100,
    name="h200",
    hbm_bytes=141 * GB,
    hbm_bandwidth=4800 * GB,
    source="NVIDIA H200 data sheet (2024), SXM; host: NVIDIA DGX H200 data sheet (2024), Intel Xeon Platinum 8480C",
)
B200 = replace(
    H100,
    name="b200",
    hbm_bytes=180 * GB,
    hbm_bandwidth=8000 * GB,
    ddr_bandwidth=2 * 8 * DDR5_5600,
    intra_host_bandwidth=900 * GB,
    source="NVIDIA DGX B200 data sheet (2024) and user guide, an eighth of its GPU memory; host: the same, Intel Xeon "
    "Platinum 8570",
)
L40S = Machine(
    name="l40s",
    compute_device="cuda",
    devices_per_host=8,
    hbm_bytes=48 * GB,
    ddr_bytes=1536 * GIB,
    hbm_bandwidth=864 * GB,
    ddr_bandwidth=2 * 8 * DDR4_3200,
    pcie_bandwidth=PCIE_4,
    intra_host_bandwidth=PCIE_4,
    inter_host_bandwidth=400 * GBIT / 8,
    source="NVIDIA L40S data sheet (2023), GDDR6 and no NVLink; host: as AWS g6e.48xlarge",
)

# What CUDA calls the GPUs of these machines. GPUs of the same kind on a PCIe card, or parts of one (MIG), have other
# bandwidths and other names.
GPUS = {
    "NVIDIA A100-SXM4-40GB": A100_40,
    "NVIDIA A100-SXM4-80GB": A100_80,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "NVIDIA B200": B200,
    "NVIDIA L40S": L40S,
}

AWS = "AWS instance page of {0} and AWS EC2 user guide; host: {1}; GPU as {2}"
GOOGLE = "Google Cloud's pages on accelerator-optimized machines and GPU network bandwidth, {0}; host: {1}; GPU as {2}"
AZURE = "Microsoft Azure's page of the {0} size series; host: {1}; GPU as {2}"
CASCADE_LAKE = "Intel Cascade Lake, 2 x 6 channels of DDR4-2933, PCIe 3"
MILAN = "AMD EPYC 7R13, 2 x 8 channels of DDR4-3200, PCIe 4"
ROME = "AMD EPYC 7V12, 2 x 8 channels of DDR4-3200, PCIe 4"
SAPPHIRE_RAPIDS = "Intel Sapphire Rapids, 2 x 8 channels of DDR5-4800, PCIe 5"
EMERALD_RAPIDS = "Intel Emerald Rapids, 2 x 8 channels of DDR5-5600, PCIe 5"

P4D = replace(
    A100_40,
    name="p4d.24xlarge",
    ddr_bytes=1152 * GIB,
    ddr_bandwidth=2 * 6 * DDR4_2933,
    pcie_bandwidth=PCIE_3,
    inter_host_bandwidth=400 * GBIT / 8,
    source=AWS.format("P4d", CASCADE_LAKE, "a100-40"),
)
P4DE = replace(
    P4D,
    name="p4de.24xlarge",
    hbm_bytes=A100_80.hbm_bytes,
    hbm_bandwidth=A100_80.hbm_bandwidth,
    source=AWS.format("P4de", CASCADE_LAKE, "a100-80"),
)
P5 = replace(
    H100,
    name="p5.48xlarge",
    ddr_bytes=2048 * GIB,
    ddr_bandwidth=2 * 8 * DDR4_3200,
    pcie_bandwidth=PCIE_4,
    inter_host_bandwidth=3200 * GBIT / 8,
    source=AWS.format("P5", MILAN, "h100"),
)
P5E = replace(
    P5,
    name="p5e.48xlarge",
    hbm_bytes=H200.hbm_bytes,
    hbm_bandwidth=H200.hbm_bandwidth,
    source=AWS.format("P5e", MILAN, "h200"),
)
P5EN = replace(
    H200,
    name="p5en.48xlarge",
    ddr_bytes=2048 * GIB,
    inter_host_bandwidth=3200 * GBIT / 8,
    source=AWS.format("P5en", SAPPHIRE_RAPIDS, "h200"),
)
P6_B200 = replace(
    B200,
    name="p6-b200.48xlarge",
    ddr_bytes=2048 * GIB,
    inter_host_bandwidth=3200 * GBIT / 8,
    source=AWS.format("P6-B200", EMERALD_RAPIDS, "b200"),
)
G6E = replace(L40S, name="g6e.48xlarge", source=AWS.format("G6e", MILAN, "l40s"))

A2_HIGH = replace(
    P4D,
    name="a2-highgpu-8g",
    ddr_bytes=680 * GB,
    inter_host_bandwidth=100 * GBIT / 8,
    source=GOOGLE.format("A2 High", CASCADE_LAKE, "a100-40"),
)
A2_MEGA = replace(
    A2_HIGH,
    name="a2-megagpu-16g",
    devices_per_host=16,
    ddr_bytes=1360 * GB,
    inter_host_bandwidth=100 * GBIT / 16,
    source=GOOGLE.format("A2 Mega", CASCADE_LAKE, "a100-40"),
)
A2_ULTRA = replace(
    P4DE,
    name="a2-ultragpu-8g",
    ddr_bytes=1360 * GB,
    inter_host_bandwidth=100 * GBIT / 8,
    source=GOOGLE.format("A2 Ultra", CASCADE_LAKE, "a100-80"),
)
A3_HIGH = replace(
    H100,
    name="a3-highgpu-8g",
    ddr_bytes=1872 * GB,
    inter_host_bandwidth=4 * 200 * GBIT / 8,
    source=GOOGLE.format("A3 High, the network cards of the GPUs", SAPPHIRE_RAPIDS, "h100"),
)
A3_MEGA = replace(
    A3_HIGH,
    name="a3-megagpu-8g",
    inter_host_bandwidth=8 * 200 * GBIT / 8,
    source=GOOGLE.format("A3 Mega, the network cards of the GPUs", SAPPHIRE_RAPIDS, "h100"),
)

ND_A100 = replace(
    A100_40,
    name="ND96asr_v4",
    ddr_bytes=900 * GIB,
    source=AZURE.format("ND A100 v4", ROME, "a100-40"),
)
NDM_A100 = replace(
    A100_80,
    name="ND96amsr_A100_v4",
    ddr_bytes=1900 * GIB,
    source=AZURE.format("NDm A100 v4", ROME, "a100-80"),
)
ND_H100 = replace(
    H100,
    name="ND96isr_H100_v5",
    ddr_bytes=1900 * GIB,
    source=AZURE.format("ND H100 v5", SAPPHIRE_RAPIDS, "h100"),
)
ND_H200 = replace(
    H200,
    name="ND96isr_H200_v5",
    ddr_bytes=1850 * GIB,
    source=AZURE.format("ND H200 v5", SAPPHIRE_RAPIDS, "h200"),
)

# Keys are names in lower case. A cloud's instance is a whole host, so its name also says how many devices it has.
HARDWARE = {machine.name: machine for machine in (CPU, A100_40, A100_80, H100, H200, B200, L40S)}
INSTANCES = {
    machine.name.lower(): machine
    for machine in (
        *(P4D, P4DE, P5, P5E, P5EN, P6_B200, G6E),
        *(A2_HIGH, A2_MEGA, A2_ULTRA, A3_HIGH, A3_MEGA),
        *(ND_A100, NDM_A100, ND_H100, ND_H200),
    )
}
MACHINES = HARDWARE | INSTANCES
