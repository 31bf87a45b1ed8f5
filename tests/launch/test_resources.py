"""Named resources: complete, and of the sizes that the planner and TorchX know."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchx.specs import named_resources
from torchx.specs.named_resources_aws import GiB

from dlrm_torchrec.sharding.cluster.machines import HARDWARE, INSTANCES, Machine
from torchx_components.resources import machine_of

ROOT = Path(__file__).parents[2]
WHOLE = {name: machine for machine in INSTANCES.values() for name in [machine.name]}
WHOLE |= {f"{machine.name}x{machine.devices_per_host}": machine for machine in HARDWARE.values()}


@pytest.mark.parametrize(("name", "machine"), WHOLE.items())
def test_every_machine_of_the_planner_is_a_resource_of_its_size(name: str, machine: Machine) -> None:
    resource = named_resources[name]
    assert machine_of(resource) == machine.name
    if machine.compute_device == "cuda":
        assert resource.gpu == machine.devices_per_host
    else:
        assert resource.gpu == 0
        assert machine.devices_per_host * 0.94 < resource.cpu < machine.devices_per_host
    assert resource.memMB / GiB == machine.ddr_bytes // 2**30
    assert 0.955 < resource.memMB * 2**20 / machine.ddr_bytes < 0.961


@pytest.mark.parametrize("name", [name for name, machine in HARDWARE.items() if machine.compute_device == "cuda"])
def test_one_gpu_comes_with_an_eighth_of_its_host(name: str) -> None:
    whole, eighth = named_resources[f"{name}x8"], named_resources[f"{name}x1"]
    assert machine_of(eighth) == name
    assert eighth.gpu == 1
    assert whole.cpu / 8 - 1 < eighth.cpu <= whole.cpu / 8
    assert whole.memMB / 8 - GiB < eighth.memMB <= whole.memMB / 8


@pytest.mark.parametrize("name", ["p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge"])
def test_instances_that_torchx_knows_are_as_torchx_has_them_but_for_spare_cpus(name: str) -> None:
    ours, stock = named_resources[name], named_resources[f"aws_{name}"]
    assert (ours.gpu, ours.memMB, ours.devices) == (stock.gpu, stock.memMB, stock.devices)
    assert 0.94 * stock.cpu < ours.cpu < stock.cpu
    assert stock.capabilities.items() <= ours.capabilities.items()
    assert machine_of(stock) == machine_of(ours) == name


def test_the_page_names_them_all() -> None:
    page = (ROOT / "docs/schedulers/local.md").read_text()
    assert [name for name in WHOLE if f"`{name}`" not in page] == []


def test_azures_nodes_are_selected_by_the_whole_name_of_their_size() -> None:
    resource = named_resources["ND96isr_H100_v5"]
    assert resource.capabilities["node.kubernetes.io/instance-type"] == "Standard_ND96isr_H100_v5"


def test_a_machine_of_ones_own_has_no_name_for_the_planner() -> None:
    assert machine_of(named_resources["gpu.large"]) == ""
