"""Machines and topologies: their figures, their units, their names, and a plan for machines that nobody here owns."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import CollectiveType

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.cluster.machines import GPUS, HARDWARE, MACHINES, Machine
from dlrm_torchrec.sharding.cluster.topology import FIELDS, MOST_RANKS, live_topology, parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

BOX = """
hosts = 3
compute_device = "cuda"
devices_per_host = 4
hbm_bytes = 24e9
ddr_bytes = 256_000_000_000
hbm_bandwidth_bytes_per_s = 1.0e12
ddr_bandwidth_bytes_per_s = 200e9
pcie_bandwidth_bytes_per_s = 32e9
intra_host_bandwidth_bytes_per_s = 32e9
inter_host_bandwidth_bytes_per_s = 12.5e9
"""


def memory(topology: Topology) -> set[tuple[int, int, int]]:
    """(HBM, DDR, disk) bytes of each rank, without repetitions."""
    return {(device.storage.hbm, device.storage.ddr, device.storage.ssd) for device in topology.devices}


def write(folder: Path, text: str) -> str:
    file = folder / "cluster.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())
def test_every_machine_has_figures_in_a_sensible_order_and_a_source(machine: Machine) -> None:
    assert min(machine.devices_per_host, machine.ddr_bytes, machine.inter_host_bandwidth) > 0
    assert len(machine.source) > 40
    assert machine.intra_host_bandwidth > machine.inter_host_bandwidth
    if machine.compute_device == "cuda":
        assert 24e9 < machine.hbm_bytes < machine.ddr_bytes
        assert machine.hbm_bandwidth > machine.intra_host_bandwidth >= machine.pcie_bandwidth > 0
        assert machine.hbm_bandwidth > machine.ddr_bandwidth
    else:
        assert machine.ddr_bandwidth / machine.devices_per_host > machine.intra_host_bandwidth
        assert (machine.hbm_bytes, machine.hbm_bandwidth, machine.pcie_bandwidth) == (0, 0, 0)


def test_machines_of_one_gpu_differ_only_in_their_host() -> None:
    for machine in MACHINES.values():
        gpu = machine.source.rpartition("GPU as ")[2]
        if machine.name not in HARDWARE:
            assert machine.hbm_bytes == HARDWARE[gpu].hbm_bytes
            assert machine.hbm_bandwidth == HARDWARE[gpu].hbm_bandwidth
            assert machine.intra_host_bandwidth == HARDWARE[gpu].intra_host_bandwidth


def test_the_guides_file_has_every_key(tmp_path: Path) -> None:
    guide = Path(__file__).parents[3] / "docs" / "from_laptop_to_16_gpus.md"
    (example,) = re.findall(r"```toml\n(.*?)```", guide.read_text(), re.DOTALL)
    assert {"hosts", *FIELDS} == set(re.findall(r"^\w+", example, re.MULTILINE))
    cluster = parse_cluster(write(tmp_path, example))
    written = parse_cluster(write(tmp_path, BOX))
    assert cluster == replace(written, machine=replace(written.machine, source=cluster.machine.source))


def test_units_of_two_h100_hosts() -> None:
    topology = parse_cluster("2x8:h100").topology()
    assert (topology.world_size, topology.local_world_size, topology.intra_group_size) == (16, 8, 8)
    assert topology.compute_device == "cuda"
    assert memory(topology) == {(80_000_000_000, 250_000_000_000, 0)}  # 80 GB, an eighth of 2 TB
    assert topology.hbm_mem_bw == 3_350_000_000  # 3.35 TB/s in bytes per millisecond
    assert topology.ddr_mem_bw == 76_800_000  # 2 sockets x 8 channels x 8 bytes x 4.8 GT/s for 8 ranks
    assert topology.hbm_to_ddr_mem_bw == 64_000_000  # 128 GB/s, both directions
    assert topology.intra_host_bw == 450_000_000  # 900 GB/s, both directions
    assert topology.inter_host_bw == 50_000_000  # 400 Gb/s


def test_units_of_a_cloud_instance_whose_network_is_shared() -> None:
    topology = parse_cluster("p4d.24xlarge").topology()
    assert topology.world_size == topology.local_world_size == 8
    assert memory(topology) == {(40_000_000_000, 1152 * 2**30 // 8, 0)}
    assert topology.inter_host_bw == 6_250_000  # 400 Gb/s for 8 GPUs
    assert topology.ddr_mem_bw == 35_196_000  # 2 sockets x 6 channels x 8 bytes x 2.933 GT/s for 8 ranks


def test_cpu_ranks_share_their_host() -> None:
    one, two = parse_cluster("1x1:cpu").topology(), parse_cluster("1x2:cpu").topology()
    assert two.compute_device == "cpu"
    assert memory(two) == {(0, 256 * 2**30, 0)}
    assert (one.ddr_mem_bw, two.ddr_mem_bw) == (409_600_000, 204_800_000)


@pytest.mark.parametrize(
    ("text", "name", "hosts", "devices"),
    [
        ("2x8:h100", "h100", 2, 8),
        (" 1X8:A100-40 ", "a100-40", 1, 8),
        ("4x2:l40s", "l40s", 4, 2),
        ("1x80:cpu", "cpu", 1, 80),
        ("p5.48xlarge", "p5.48xlarge", 1, 8),
        ("2:P5en.48xlarge", "p5en.48xlarge", 2, 8),
        ("3x4:nd96isr_h100_v5", "ND96isr_H100_v5", 3, 4),
        ("a2-megagpu-16g", "a2-megagpu-16g", 1, 16),
    ],
)
def test_topologies_as_text(text: str, name: str, hosts: int, devices: int) -> None:
    cluster = parse_cluster(text)
    assert (cluster.machine.name, cluster.hosts, cluster.devices_per_host) == (name, hosts, devices)
    topology = parse_cluster(text).topology()
    assert (topology.world_size, topology.local_world_size) == (hosts * devices, devices)


@pytest.mark.parametrize("text", ["100000000x8:h100", "2049x8:h100"])
def test_more_ranks_than_can_be_planned_are_refused(text: str) -> None:
    assert parse_cluster("2048x8:h100").world_size == MOST_RANKS
    with pytest.raises(ValueError, match=r"topology must have at most 16,384 ranks, .*: got .* x 8; plan for fewer"):
        parse_cluster(text)


@pytest.mark.parametrize(
    "text", ["", "h100:", "2x8", "8", "0x8:h100", "2x0:h100", "2*8:h100", "-1x8:h100", "2x8x1:h100"]
)
def test_malformed_topology_is_refused(text: str) -> None:
    message = f"topology must be HOSTSxDEVICES:MACHINE, .* got {re.escape(repr(text))}; write for example 2x8:h100"
    with pytest.raises(ValueError, match=message):
        parse_cluster(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2x8:h1000",
            r"machine must be one of \['cpu', 'a100-40', .*'p5.48xlarge'.*\]: got 'h1000'; name one of them, or",
        ),
        ("2x9:h100", "devices per host must be at most 8 with 'h100': got 9; add hosts, or describe"),
        ("16:h100", "must say how many hosts and devices of 'h100' there are: got '16:h100'; write .* 2x8:h100"),
        ("cpu", "must say how many hosts and devices of 'cpu' there are: got 'cpu'; write .* 2x8:cpu"),
        ("nowhere.toml", "topology file must be readable: got .*nowhere.toml'; name another"),
    ],
)
def test_impossible_topology_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cluster(text)


def test_a_file_describes_a_whole_machine(tmp_path: Path) -> None:
    path = write(tmp_path, BOX)
    topology = parse_cluster(path).topology()
    assert (topology.world_size, topology.local_world_size) == (12, 4)
    assert memory(topology) == {(24_000_000_000, 64_000_000_000, 0)}
    assert (topology.hbm_mem_bw, topology.ddr_mem_bw, topology.hbm_to_ddr_mem_bw) == (1e9, 5e7, 3.2e7)
    assert (topology.intra_host_bw, topology.inter_host_bw) == (3.2e7, 1.25e7)
    machine = parse_cluster(path).machine
    assert (machine.name, machine.source) == ("cluster", path)


def test_a_file_corrects_a_known_machine(tmp_path: Path) -> None:
    path = write(tmp_path, 'hosts = 2\nmachine = "H100"\ninter_host_bandwidth_bytes_per_s = 41e9')
    found, known = parse_cluster(path), parse_cluster("2x8:h100")
    machine = replace(known.machine, name="cluster", inter_host_bandwidth=41e9, source=found.machine.source)
    assert found == replace(known, machine=machine)
    assert found.machine.source.startswith(f"{path}, which starts from h100: NVIDIA H100 data sheet")


def test_a_file_describes_a_cpu_host_without_gpu_figures(tmp_path: Path) -> None:
    lines = [line for line in BOX.splitlines() if not line.startswith(("hbm", "pcie"))]
    topology = parse_cluster(write(tmp_path, "\n".join(lines).replace("cuda", "cpu"))).topology()
    assert topology.compute_device == "cpu"
    assert memory(topology) == {(0, 64_000_000_000, 0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BOX + "hbm_gb = 80",
            r"keys in .*cluster.toml must be among \['hosts', 'machine', .*: got \['hbm_gb'\]; remove",
        ),
        (BOX.replace("cuda", "cpu"), r"must be among .*: got \['hbm_bandwidth_bytes_per_s', 'hbm_bytes', 'pcie"),
        (BOX.replace("hosts = 3", ""), r"must describe the whole cluster: got no \['hosts'\]; add them"),
        (BOX.replace("ddr_bytes = 256_000_000_000", ""), r"whole cluster: got no \['ddr_bytes'\]; add them"),
        (BOX.replace("24e9", "0"), "hbm_bytes in .*cluster.toml must be a positive whole number: got 0; correct it"),
        (BOX.replace("24e9", "true"), "hbm_bytes in .* must be a positive whole number: got True; correct it"),
        (BOX.replace("200e9", "inf"), "ddr_bandwidth_bytes_per_s in .* must be a positive number: got inf; correct it"),
        (BOX.replace("200e9", "nan"), "ddr_bandwidth_bytes_per_s in .* must be a positive number: got nan; correct it"),
        (BOX.replace("200e9", "'2'"), "ddr_bandwidth_bytes_per_s in .* must be a positive number: got '2'; correct it"),
        (BOX.replace("hosts = 3", "hosts = -3"), "hosts in .* must be a positive whole number: got -3; correct it"),
        (BOX.replace("hosts = 3", "hosts = 1.5"), "hosts in .* must be a positive whole number: got 1.5; correct it"),
        (BOX.replace("cuda", "tpu"), "compute_device in .* must be 'cuda' or 'cpu': got 'tpu'; name one of them"),
        (BOX.replace('compute_device = "cuda"', ""), "compute_device in .* must be 'cuda' or 'cpu': got None; name"),
        ('hosts = 1\nmachine = "abacus"', "machine must be one of .*: got 'abacus'; name one of them, or describe"),
        ("hosts = ", "topology file .*cluster.toml must be TOML: got Invalid value.*; correct it"),
    ],
)
def test_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cluster(write(tmp_path, text))


def test_an_all_reduce_takes_the_network_only_between_hosts() -> None:
    for text, all_reduce, all_to_all in (("1x8:h100", 450e6, 450e6), ("2x8:h100", 8 * 50e6, 50e6)):
        topology = parse_cluster(text).topology()
        for collective, expected in (
            (CollectiveType.ALL_REDUCE, all_reduce),
            (CollectiveType.ALL_TO_ALL, all_to_all),
        ):
            found = topology.comms_bandwidths.get_bw(topology.local_world_size, topology.world_size, collective)
            assert found == expected


@pytest.mark.parametrize("text", ["2x8:h100", "1x2:cpu", "2:a3-megagpu-8g"])
def test_a_plan_for_machines_elsewhere(text: str) -> None:
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="adagrad", lr=0.1))
    topology = parse_cluster(text).topology()
    plan = plan_to_json(
        make_plan(torch.nn.Sequential(tables), tables, topology, ShardingConfig(), batch_size=128, spec=spec)
    )
    assert plan.keys() == {table.name for table in tables.embedding_bag_configs()}
    ranks = {shard["rank"] for table in plan.values() for shard in table["shards"]}
    assert ranks <= set(range(topology.world_size))
    by_rows = ShardingConfig(kind="row_wise")
    plan = plan_to_json(make_plan(torch.nn.Sequential(tables), tables, topology, by_rows, batch_size=128, spec=spec))
    assert {shard["rank"] for shard in plan["t_id_0"]["shards"]} == set(range(topology.world_size))


def test_a_node_has_its_share_of_a_host() -> None:
    cluster = parse_cluster("2x8:h100")
    assert cluster.node(16) == cluster
    assert cluster.node(8) == replace(cluster, hosts=1)
    for name in ("2x8:h100", "1x4:cpu"):
        whole, node = parse_cluster(name).topology(), parse_cluster(name).node(2).topology()
        assert memory(node) == memory(whole)
        assert (node.world_size, node.ddr_mem_bw) == (2, whole.ddr_mem_bw)
    with pytest.raises(
        ValueError, match=r"ranks of a node must divide the 24 ranks of 3x8:h100 and .*: got 12; choose a div"
    ):
        parse_cluster("3x8:h100").node(12)


def live(monkeypatch: pytest.MonkeyPatch, name: str, *, world_size: int = 6, local_size: int = 4) -> Topology:
    """The topology of ranks whose GPU says that it is ``name`` and has 70 GB."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=70 * 10**9))
    return live_topology(torch.device("cuda", 0), world_size=world_size, local_size=local_size)


def bandwidths(topology: Topology) -> list[float]:
    between = [topology.comms_bandwidths.get_bw(4, ranks, CollectiveType.ALL_TO_ALL) for ranks in (4, 8)]
    return [topology.hbm_mem_bw, topology.ddr_mem_bw, topology.hbm_to_ddr_mem_bw, *between]


@pytest.mark.parametrize(("name", "machine"), GPUS.items())
def test_live_gpus_of_a_known_machine_have_its_bandwidths(
    monkeypatch: pytest.MonkeyPatch, name: str, machine: Machine
) -> None:
    found = live(monkeypatch, name)
    assert (found.world_size, found.local_world_size) == (6, 4)
    assert bandwidths(found) == bandwidths(parse_cluster(f"2x4:{machine.name}").topology())
    assert {hbm for hbm, _, _ in memory(found)} == {70 * 10**9}  # as much as there is, not as on the data sheet
    assert machine.name.partition("-")[0].upper() in name


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "T4"])
def test_other_live_gpus_have_torchrecs_bandwidths(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    default = Topology(world_size=6, local_world_size=4, compute_device="cuda")
    assert bandwidths(live(monkeypatch, name)) == bandwidths(default)


@pytest.mark.parametrize(
    ("name", "said"),
    [("NVIDIA H200", "planned with bandwidths of h200"), ("T4", "planned with TorchRec's default bandwidths, as no ")],
)
def test_a_plan_says_whose_bandwidths_it_was_made_with(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="adagrad", lr=0.1))
    machine = live(monkeypatch, name, world_size=2, local_size=2)
    plan = make_plan(torch.nn.Sequential(tables), tables, machine, ShardingConfig(), batch_size=128, spec=spec)
    assert describe_plan(plan, tables, 2).splitlines()[-1].startswith(said)
