"""Plans: what is forced, what is refused, what is printed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torchrec.distributed.planner import Topology
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward


def plan(optimizer: OptimizerKind = "sgd", world_size: int = 2, **topology: Any) -> Any:
    """A function from ShardingConfig to (plan, tables) of the demo model."""
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16))
    model = DLRM(tables, len(spec.dense), [32, 16], [32, 1])
    optimize_tables_in_backward(tables, OptimizerConfig(kind=optimizer, lr=0.1))
    machine = Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu", **topology)

    def make(config: ShardingConfig) -> tuple[ShardingPlan, Any]:
        return make_plan(model, tables, machine, config, batch_size=128, spec=spec), tables

    return make


@pytest.mark.parametrize(
    "kind", ["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard"]
)
def test_one_flag_forces_every_table(kind: Any) -> None:
    found, _ = plan()(ShardingConfig(kind=kind))
    assert {parameter["sharding_type"] for parameter in plan_to_json(found).values()} == {kind}


def test_column_wise_cuts_columns_and_row_wise_cuts_rows() -> None:
    columns, _ = plan()(ShardingConfig(kind="column_wise"))
    assert {tuple(s["size"])[1] for t in plan_to_json(columns).values() for s in t["shards"]} == {8}
    rows, _ = plan()(ShardingConfig(kind="row_wise"))
    assert {s["rank"] for t in plan_to_json(rows).values() for s in t["shards"]} == {0, 1}


def test_single_tables_come_before_the_kind() -> None:
    config = ShardingConfig(kind="table_wise", tables={"t_id_0": "data_parallel"})
    found = plan_to_json(plan()(config)[0])
    assert found["t_id_0"]["sharding_type"] == "data_parallel"
    assert {table["sharding_type"] for name, table in found.items() if name != "t_id_0"} == {"table_wise"}


def test_description_names_every_table_and_counts_every_byte() -> None:
    found, tables = plan()(ShardingConfig(kind="row_wise"))
    text = describe_plan(found, tables, 2)
    configs = tables.embedding_bag_configs()
    assert all(config.name in text for config in configs)
    found_lines = re.findall(r"^ranks? (\d)(?:-(\d))?: ([\d.]+) MiB of table weights$", text, re.M)
    mib = [float(each) * (2 if last else 1) for _, last, each in found_lines]
    total = sum(config.num_embeddings * config.embedding_dim * 4 for config in configs)
    assert sum(mib) == pytest.approx(total / 2**20, abs=0.11)


REFUSED = [
    ("sgd", ShardingConfig(tables={"nowhere": "row_wise"}), r"sharded tables must be tables of the model: got"),
    ("sgd", ShardingConfig(kind="diagonal"), "must be one of .* got 'diagonal'; name one"),  # type: ignore[arg-type]  # refused
    (
        "rowwise_adagrad",
        ShardingConfig(kind="column_wise"),
        "must leave RowWiseAdagrad's arithmetic unchanged: got 'col",
    ),
]


@pytest.mark.parametrize(("optimizer", "config", "message"), REFUSED)
def test_impossible_sharding_is_refused(optimizer: OptimizerKind, config: ShardingConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(optimizer)(config)


def test_adam_on_cpu_is_for_float32() -> None:
    spec = demo_spec()
    machine = Topology(world_size=2, local_world_size=2, compute_device="cpu")

    def make(config: TablesConfig) -> ShardingPlan:
        tables = build_tables(spec.tables(dim=16), config)
        optimize_tables_in_backward(tables, OptimizerConfig(kind="adam", lr=0.1))
        return make_plan(torch.nn.Sequential(tables), tables, machine, ShardingConfig(), batch_size=128, spec=spec)

    assert plan_to_json(make(TablesConfig()))
    with pytest.raises(ValueError, match="tables with Adam must be fp32 on cpu: got FP16 for"):
        make(TablesConfig(data_type="fp16"))


def test_adam_is_planned_for_gpus_without_replicas() -> None:
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="adam", lr=0.1))
    machine = Topology(world_size=2, local_world_size=2, compute_device="cuda")
    model = torch.nn.Sequential(tables)
    found = plan_to_json(make_plan(model, tables, machine, ShardingConfig(), batch_size=128, spec=spec))
    assert "data_parallel" not in {table["sharding_type"] for table in found.values()}
    with pytest.raises(ValueError, match="must leave Adam's arithmetic unchanged: got 'data_parallel', but then"):
        make_plan(model, tables, machine, ShardingConfig(kind="data_parallel"), batch_size=128, spec=spec)


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tables must fit the memory of 2 cpu ranks: got .*; add ranks, or shrink"):
        plan(ddr_cap=1000)(ShardingConfig())


def test_planning_needs_the_optimizer() -> None:
    spec = demo_spec()
    tables = build_tables(spec.tables(dim=16))
    topology = Topology(world_size=1, compute_device="cpu", local_world_size=1)
    with pytest.raises(ValueError, match=r"must be marked with one optimizer before planning: got \[\]; call"):
        make_plan(torch.nn.Sequential(tables), tables, topology, ShardingConfig(), batch_size=128, spec=spec)
