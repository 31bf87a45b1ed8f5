"""Planned versus measured: known bandwidths are found again, and files that do not belong together are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding import measured
from dlrm_torchrec.sharding.cluster.topology import Cluster, load_cluster, parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig, ShardingKind
from dlrm_torchrec.sharding.estimate.correction import to_toml
from dlrm_torchrec.sharding.estimate.estimate import Estimate, read_estimates
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from tests.recipe import load_recipe, run_recipe

BATCH = 512
OTHER_PARTS = {"batch": 1.0, "dense_forward": 2.0, "waiting": 3.0}


def plan(cluster: Cluster, config: ShardingConfig, name: str = "", tables: int = 8) -> tuple[dict[str, Any], Estimate]:
    """The plan of the demo's first tables for ``cluster``, as checkpoints have it, and its estimate."""
    spec = demo_spec(one_hot=(50, 100, 200, 300, 500, 1_000, 2_000, 20_000)[:tables], multi_hot=(200,))
    bags = build_tables(spec.tables(dim=16))
    model = DLRM(bags, len(spec.dense), [32, 16], [32, 1])
    optimize_tables_in_backward(bags, OptimizerConfig(kind="sgd", lr=0.1))
    stats = EstimateStats(name or str(cluster))
    found = make_plan(model, bags, cluster.topology(), config, batch_size=BATCH, spec=spec, stats=stats)
    assert stats.estimate is not None
    return json.loads(json.dumps(plan_to_json(found))), stats.estimate


def step_times(estimate: Estimate, plan_json: dict[str, Any], cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """The step times of a run on ``cluster`` that took exactly the estimated time."""
    updates = [0.0] * estimate.world_size  # TorchRec's: 9.22 passes over a replica, at half the memory's bandwidth
    machine = cluster.machine
    memory = machine.hbm_bandwidth or machine.ddr_bandwidth / cluster.devices_per_host
    for table in estimate.tables:
        for shard in table.shards:
            if table.sharding_type == "data_parallel":
                updates[shard.rank] += 1e3 * 9.22 * 4 * table.rows * table.dim / (memory / 2)
    ranks = []
    for update, parts in zip(updates, estimate.rank_milliseconds(), strict=True):
        milliseconds = {
            "input_dist": parts["input_dist_comms"],
            "lookup": parts["prefetch_compute"] + parts["fwd_compute"],
            "output_dist": parts["fwd_comms"],
            "lookup_backward": parts["bwd_compute"],
            "output_dist_backward": parts["bwd_comms"] - update,
            "tables_optimizer": update,
            **OTHER_PARTS,
        }
        ranks.append(
            {"milliseconds": milliseconds, "weight_bytes": 12_345, "optimizer_bytes": 678, "peak_device_bytes": None}
        )
    return {
        "version": 1,
        "device": "cpu",
        "world_size": estimate.world_size,
        "batch_size": estimate.batch_size,
        "steps": [5, 9],
        "plan": plan_json,
        "ranks": ranks,
    } | changes


def with_bandwidths(cluster: Cluster, memory: float, wires: float) -> Cluster:
    """``cluster`` with memory and connections that are faster by these factors."""
    machine = cluster.machine
    return replace(
        cluster,
        machine=replace(
            machine,
            hbm_bandwidth=machine.hbm_bandwidth * memory,
            ddr_bandwidth=machine.ddr_bandwidth * memory,
            pcie_bandwidth=machine.pcie_bandwidth * memory,
            intra_host_bandwidth=machine.intra_host_bandwidth * wires,
            inter_host_bandwidth=machine.inter_host_bandwidth * wires,
        ),
    )


def write(folder: Path, estimates: list[Estimate], times: dict[str, Any]) -> tuple[str, str]:
    """Paths of step_times.json and of plan.json."""
    (folder / "step_times.json").write_text(json.dumps(times))
    (folder / "plan.json").write_text(json.dumps([estimate.to_json() for estimate in estimates]))
    return str(folder / "step_times.json"), str(folder / "plan.json")


def slowest(estimate: Estimate) -> float:
    return sum(estimate.rank_milliseconds()[estimate.critical_rank()].values())


MIXED: dict[str, ShardingKind] = {"t_id_7": "row_wise", "t_id_6": "data_parallel", "t_id_5": "column_wise"}
KNOWN = [
    ("1x2:cpu", ShardingConfig(kind="table_wise"), {"ddr_bandwidth", "intra_host_bandwidth"}),
    ("1x2:cpu", ShardingConfig(kind="row_wise"), {"ddr_bandwidth", "intra_host_bandwidth"}),
    ("1x4:cpu", ShardingConfig(kind="data_parallel"), {"ddr_bandwidth", "intra_host_bandwidth"}),
    ("1x2:cpu", ShardingConfig(kind="table_wise", tables=MIXED), {"ddr_bandwidth", "intra_host_bandwidth"}),
    ("1x1:cpu", ShardingConfig(), {"ddr_bandwidth", "intra_host_bandwidth"}),
    ("2x2:h100", ShardingConfig(kind="row_wise"), {"hbm_bandwidth", "inter_host_bandwidth"}),
    (
        "2x2:h100",
        ShardingConfig(kind="table_row_wise"),
        {"hbm_bandwidth", "inter_host_bandwidth", "intra_host_bandwidth"},
    ),
]


@pytest.mark.parametrize(("topology", "config", "corrected"), KNOWN)
def test_the_bandwidths_of_the_machine_that_ran_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], topology: str, config: ShardingConfig, corrected: set[str]
) -> None:
    assumed = parse_cluster(topology)
    real = with_bandwidths(assumed, memory=0.3, wires=0.2)
    ran, times = plan(real, config)
    _, estimate = plan(assumed, config, topology)
    found = str(tmp_path / "measured.toml")
    measured.main(*write(tmp_path, [estimate], step_times(times, ran, real)), output=found)

    expected = {name: getattr(real.machine if name in corrected else assumed.machine, name) for name in BANDWIDTHS}
    machine = parse_cluster(found).machine
    assert {name: getattr(machine, name) for name in BANDWIDTHS} == pytest.approx(expected, rel=1e-6)
    assert machine.source.startswith(f"measured by {tmp_path}/step_times.json on cpu; other figures: ")
    again, replanned = plan(parse_cluster(found), config)
    assert again == ran
    assert slowest(replanned) == pytest.approx(slowest(times), rel=1e-6)

    shown = capsys.readouterr().out
    for rank, (planned, took) in enumerate(zip(estimate.rank_milliseconds(), times.rank_milliseconds(), strict=True)):
        totals = sum(planned.values()), sum(took.values())
        assert (
            f"{rank:>4}  {'tables':<16}  {totals[0]:>10.3f}  {totals[1]:>11.3f}  {totals[1] / totals[0]:>8.2f}" in shown
        )
        weights = sum(shard.weight_bytes for shard in estimate.shards_of(rank))
        assert f"{rank:>4}  {'weights':<16}  {weights:>15,}  {12_345:>15,}" in shown
    assert ("one factor for sending" in shown) == (len(corrected) == 3)


BANDWIDTHS = ("hbm_bandwidth", "ddr_bandwidth", "pcie_bandwidth", "intra_host_bandwidth", "inter_host_bandwidth")


def test_one_factor_for_all_where_memory_alone_would_be_too_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = parse_cluster("1x2:cpu")
    ran, estimate = plan(cluster, ShardingConfig(kind="row_wise"), "1x2:cpu")
    times = step_times(estimate, ran, cluster)
    for rank in times["ranks"]:  # TorchRec's estimate of row-wise tables has copies on the way back
        rank["milliseconds"] |= {"lookup": 9.0, "lookup_backward": 9.0, "output_dist_backward": 0.1, "output_dist": 0.1}
    found = str(tmp_path / "measured.toml")
    measured.main(*write(tmp_path, [estimate], times), output=found)
    factors = {
        getattr(cluster.machine, name) / getattr(parse_cluster(found).machine, name)
        for name in ("ddr_bandwidth", "intra_host_bandwidth")
    }
    assert max(factors) == pytest.approx(min(factors))
    took = max(18.2 + rank["milliseconds"]["input_dist"] for rank in times["ranks"])
    assert slowest(plan(parse_cluster(found), ShardingConfig(kind="row_wise"))[1]) == pytest.approx(took)
    assert "one factor for all: with the factor of lookups alone" in capsys.readouterr().out


def test_tables_in_the_host_s_memory_correct_its_bandwidth_too(tmp_path: Path) -> None:
    config, file = ShardingConfig(kind="table_wise", host_memory=True), tmp_path / "small.toml"
    h100 = parse_cluster("1x2:h100")
    file.write_text(to_toml(replace(h100, machine=replace(h100.machine, hbm_bytes=2_500_000))))
    assumed = load_cluster(file)
    real = with_bandwidths(assumed, memory=0.5, wires=0.4)
    ran, times = plan(real, config)
    _, estimate = plan(assumed, config, str(file))
    assert {table.compute_kernel for table in estimate.tables} == {"fused", "fused_uvm_caching"}
    found = str(tmp_path / "measured.toml")
    measured.main(*write(tmp_path, [estimate], step_times(times, ran, real)), output=found)
    for name in ("hbm_bandwidth", "pcie_bandwidth", "intra_host_bandwidth"):
        assert getattr(parse_cluster(found).machine, name) == pytest.approx(getattr(real.machine, name))


def test_a_rank_without_tables_is_no_obstacle(tmp_path: Path) -> None:
    assumed, config = parse_cluster("1x4:cpu"), ShardingConfig(kind="table_wise")
    real = with_bandwidths(assumed, memory=3, wires=2)
    ran, times = plan(real, config, tables=2)
    _, estimate = plan(assumed, config, "1x4:cpu", tables=2)
    assert not estimate.shards_of(3)
    found = str(tmp_path / "measured.toml")
    measured.main(*write(tmp_path, [estimate], step_times(times, ran, real)), output=found)
    assert parse_cluster(found).machine.ddr_bandwidth == pytest.approx(real.machine.ddr_bandwidth)
    assert parse_cluster(found).machine.intra_host_bandwidth == pytest.approx(real.machine.intra_host_bandwidth)


def test_a_topology_is_chosen_by_name_and_one_that_moved_is_named(tmp_path: Path) -> None:
    config = ShardingConfig(kind="table_wise")
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(with_bandwidths(parse_cluster("1x2:cpu"), 0.5, 0.5)))
    estimates = [plan(parse_cluster(name), config, name)[1] for name in ("1x2:cpu", str(file), "1x4:cpu")]
    ran, _ = plan(load_cluster(file), config)
    paths = write(tmp_path, estimates, step_times(estimates[1], ran, load_cluster(file)))
    with pytest.raises(
        ValueError, match=r"must hold one plan for 2 ranks: got plans for \['2 of 1x2:cpu', '2 of .*mine.toml', .*\]; p"
    ):
        measured.main(*paths)
    found = str(tmp_path / "measured.toml")
    measured.main(*paths, topology=str(file), output=found)
    assert load_cluster(Path(found)).machine.ddr_bandwidth == pytest.approx(load_cluster(file).machine.ddr_bandwidth)

    only = write(tmp_path, [estimates[1]], json.loads(Path(paths[0]).read_text()))
    file.rename(tmp_path / "moved.toml")
    with pytest.raises(ValueError, match="topology file must be readable"):
        measured.main(*only)
    measured.main(*only, topology=str(tmp_path / "moved.toml"))


def test_a_real_run_holds_exactly_the_planned_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rows=4096", "--batch-size=1024", "--eval-every=0", "--sparse.kind=adagrad", "--tables.operation=add"]
    options += ["--sharding.tables", "t_id_0", "data_parallel", "t_id_5", "row_wise", "t_id_6", "column_wise"]
    files = [f"--output={tmp_path}/plan.json", f"--page={tmp_path}/plan.html"]
    planned = load_recipe("plan_sharding").command(
        ["train_dlrm_compositional", "--topology=1x2:cpu", *files, "--", *options]
    )
    assert planned == 0
    timed = [f"--plan={tmp_path}/plan.json", "--log.timed", "2", "4", f"--run-dir={tmp_path}/run"]
    run_recipe("train_dlrm_compositional", ["demo", *options, *timed], 2)
    capsys.readouterr()
    measured.main(f"{tmp_path}/run/demo/step_times.json", f"{tmp_path}/plan.json")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    held = {(row[0], row[1]): row[2:] for row in rows if row[1:2] in (["weights"], ["moments"])}
    assert held.keys() == {(rank, what) for rank in "01" for what in ("weights", "moments")}
    assert all(planned == real != "0" for planned, real in held.values())


def _other_rank(times: dict[str, Any]) -> None:
    shards = times["plan"]["t_id_7"]["shards"]
    shards[0]["rank"] = 1 - shards[0]["rank"]


REFUSED = [
    (lambda times: times.update(version=0), r"step times .* must have version 1: got 0; time the run again with this"),
    (
        lambda times: times["ranks"].pop(),
        r"must hold one plan for 1 ranks: got plans for \['2 of 1x2:cpu'\]; plan only one",
    ),
    (lambda times: times.update(batch_size=BATCH + 1), "rows per rank of the plan must equal .*, 513: got 512"),
    (lambda times: times["plan"].pop("t_id_7"), "tables of the plan must equal those of the timed run, .*; time"),
    (_other_rank, "shards of 't_id_7' of the plan must equal those of the timed run, .* trains with --plan and this"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_another_plan_than_the_one_that_ran_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    cluster = parse_cluster("1x2:cpu")
    ran, estimate = plan(cluster, ShardingConfig(kind="table_wise"))
    times = step_times(estimate, ran, cluster)
    change(times)
    with pytest.raises(ValueError, match=message):
        measured.main(*write(tmp_path, [estimate], times))


def test_another_topology_than_the_plan_s_is_refused(tmp_path: Path) -> None:
    cluster = parse_cluster("1x2:cpu")
    ran, estimate = plan(cluster, ShardingConfig(kind="table_wise"))
    paths = write(tmp_path, [estimate], step_times(estimate, ran, cluster))
    assert read_estimates(paths[1]) == [estimate]
    with pytest.raises(ValueError, match="topology must be that of the plan, '1x2:cpu': got 1x2:h100, with other"):
        measured.main(*paths, topology="1x2:h100")


def test_a_topology_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for name in ("3x4:h100", "2:p5.48xlarge", "1x7:cpu"):
        cluster = parse_cluster(name)
        quoted = replace(cluster, machine=replace(cluster.machine, source='a "sheet" of \\ Jänner'))
        (tmp_path / "cluster.toml").write_text(to_toml(quoted))
        machine = replace(quoted.machine, name="cluster", devices_per_host=cluster.devices_per_host)
        read = load_cluster(tmp_path / "cluster.toml")
        assert read == replace(quoted, machine=replace(machine, source=read.machine.source))
        assert 'a "sheet" of \\ Jänner' in read.machine.source
