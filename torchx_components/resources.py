"""Named resources for ``-h``: the resources of whole nodes, with the names that ``plan_sharding --topology`` knows.

``h100x8`` is a host with eight GPUs, and ``h100x1`` is an eighth of it. A cloud's instance has the cloud's name for it.
GPUs and memory are the same as in dlrm_torchrec/sharding/cluster/machines.py (a test compares them); its docstring says
how reliable they are. Processors and EFA cards are written from memory of the data sheets and instance pages named
there.
"""

from dataclasses import dataclass, replace

from torchx import specs
from torchx.specs.named_resources_aws import EFA_DEVICE, K8S_ITYPE, MEM_TAX, GiB

MACHINE = "dlrm_torchrec/machine"  # the capability that names the planner's machine


@dataclass(frozen=True)
class Node:
    """A named resource; a call gives the request to a scheduler for one node."""

    machine: str
    gpu: int
    cpu: int
    memory_gib: int
    instance_type: str = ""  # the name by which Kubernetes and AWS Batch select nodes
    efa: int = 0  # AWS's network cards

    def __call__(self) -> specs.Resource:
        """The node without a share of memory and cores for its own services, as TorchX keeps one of the memory."""
        return specs.Resource(
            cpu=max(1, int(self.cpu * MEM_TAX)),
            gpu=self.gpu,
            memMB=self.memory_gib * GiB,
            capabilities={MACHINE: self.machine} | ({K8S_ITYPE: self.instance_type} if self.instance_type else {}),
            devices={EFA_DEVICE: self.efa} if self.efa else {},
        )

    def eighth(self) -> specs.Resource:
        """One GPU of eight, and an eighth of the host."""
        return replace(self, gpu=1, cpu=self.cpu // 8, memory_gib=self.memory_gib // 8)()


def machine_of(resource: specs.Resource) -> str:
    """The planner's name for the machine of ``resource``, also for TorchX's ``aws_...``; empty if unknown."""
    return str(resource.capabilities.get(MACHINE) or resource.capabilities.get(K8S_ITYPE) or "")


def _aws(name: str, cpu: int, memory_gib: int, efa: int) -> Node:
    return Node(name, 8, cpu, memory_gib, name, efa)


def _google(name: str, gpu: int, cpu: int, memory_gib: int) -> Node:
    return Node(name, gpu, cpu, memory_gib, name)


def _azure(name: str, memory_gib: int) -> Node:
    return Node(name, 8, 96, memory_gib, f"Standard_{name}")


cpux80 = Node("cpu", 0, 80, 512)
a100_40x8 = Node("a100-40", 8, 128, 931)
a100_80x8 = Node("a100-80", 8, 128, 1862)
h100x8 = Node("h100", 8, 112, 1862)
h200x8 = Node("h200", 8, 112, 1862)
b200x8 = Node("b200", 8, 112, 1862)
l40sx8 = Node("l40s", 8, 192, 1536)

p4d_24xlarge = _aws("p4d.24xlarge", 96, 1152, 4)
p4de_24xlarge = _aws("p4de.24xlarge", 96, 1152, 4)
p5_48xlarge = _aws("p5.48xlarge", 192, 2048, 32)
p5e_48xlarge = _aws("p5e.48xlarge", 192, 2048, 32)
p5en_48xlarge = _aws("p5en.48xlarge", 192, 2048, 16)
p6_b200_48xlarge = _aws("p6-b200.48xlarge", 192, 2048, 8)
g6e_48xlarge = _aws("g6e.48xlarge", 192, 1536, 4)

a2_highgpu_8g = _google("a2-highgpu-8g", 8, 96, 633)
a2_megagpu_16g = _google("a2-megagpu-16g", 16, 96, 1266)
a2_ultragpu_8g = _google("a2-ultragpu-8g", 8, 96, 1266)
a3_highgpu_8g = _google("a3-highgpu-8g", 8, 208, 1743)
a3_megagpu_8g = _google("a3-megagpu-8g", 8, 208, 1743)

nd96asr_v4 = _azure("ND96asr_v4", 900)
nd96amsr_a100_v4 = _azure("ND96amsr_A100_v4", 1900)
nd96isr_h100_v5 = _azure("ND96isr_H100_v5", 1900)
nd96isr_h200_v5 = _azure("ND96isr_H200_v5", 1850)
