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


@dataclass(frozen=True, kw_only=True)
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


def _aws(name: str, *, cpu: int, memory_gib: int, efa: int) -> Node:
    return Node(machine=name, gpu=8, cpu=cpu, memory_gib=memory_gib, instance_type=name, efa=efa)


def _google(name: str, *, gpu: int, cpu: int, memory_gib: int) -> Node:
    return Node(machine=name, gpu=gpu, cpu=cpu, memory_gib=memory_gib, instance_type=name)


def _azure(name: str, *, memory_gib: int) -> Node:
    return Node(machine=name, gpu=8, cpu=96, memory_gib=memory_gib, instance_type=f"Standard_{name}")


cpux80 = Node(machine="cpu", gpu=0, cpu=80, memory_gib=512)
a100_40x8 = Node(machine="a100-40", gpu=8, cpu=128, memory_gib=931)
a100_80x8 = Node(machine="a100-80", gpu=8, cpu=128, memory_gib=1862)
h100x8 = Node(machine="h100", gpu=8, cpu=112, memory_gib=1862)
h200x8 = Node(machine="h200", gpu=8, cpu=112, memory_gib=1862)
b200x8 = Node(machine="b200", gpu=8, cpu=112, memory_gib=1862)
l40sx8 = Node(machine="l40s", gpu=8, cpu=192, memory_gib=1536)

p4d_24xlarge = _aws("p4d.24xlarge", cpu=96, memory_gib=1152, efa=4)
p4de_24xlarge = _aws("p4de.24xlarge", cpu=96, memory_gib=1152, efa=4)
p5_48xlarge = _aws("p5.48xlarge", cpu=192, memory_gib=2048, efa=32)
p5e_48xlarge = _aws("p5e.48xlarge", cpu=192, memory_gib=2048, efa=32)
p5en_48xlarge = _aws("p5en.48xlarge", cpu=192, memory_gib=2048, efa=16)
p6_b200_48xlarge = _aws("p6-b200.48xlarge", cpu=192, memory_gib=2048, efa=8)
g6e_48xlarge = _aws("g6e.48xlarge", cpu=192, memory_gib=1536, efa=4)

a2_highgpu_8g = _google("a2-highgpu-8g", gpu=8, cpu=96, memory_gib=633)
a2_megagpu_16g = _google("a2-megagpu-16g", gpu=16, cpu=96, memory_gib=1266)
a2_ultragpu_8g = _google("a2-ultragpu-8g", gpu=8, cpu=96, memory_gib=1266)
a3_highgpu_8g = _google("a3-highgpu-8g", gpu=8, cpu=208, memory_gib=1743)
a3_megagpu_8g = _google("a3-megagpu-8g", gpu=8, cpu=208, memory_gib=1743)

nd96asr_v4 = _azure("ND96asr_v4", memory_gib=900)
nd96amsr_a100_v4 = _azure("ND96amsr_A100_v4", memory_gib=1900)
nd96isr_h100_v5 = _azure("ND96isr_H100_v5", memory_gib=1900)
nd96isr_h200_v5 = _azure("ND96isr_H200_v5", memory_gib=1850)
