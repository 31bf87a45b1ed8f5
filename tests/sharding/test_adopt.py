"""A saved plan taken as it is: the same plan back without a search, or a sentence that says what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.cluster.topology import parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.estimate.estimate import read_estimates
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import plan_to_json
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward


def plan(
    topology: str,
    config: ShardingConfig,
    tables: TablesConfig | None = None,
    optimizer: OptimizerKind = "adagrad",
    stats: EstimateStats | None = None,
) -> dict[str, Any]:
    """The plan of the demo's tables, as checkpoints have it."""
    spec = demo_spec()
    bags = build_tables(spec.tables(dim=16), tables or TablesConfig())
    optimize_tables_in_backward(bags, OptimizerConfig(kind=optimizer, lr=0.1))
    machines = parse_cluster(topology).topology()
    return plan_to_json(make_plan(nn.Sequential(bags), bags, machines, config, batch_size=128, spec=spec, stats=stats))


def save(folder: Path, topology: str, config: ShardingConfig, **options: Any) -> tuple[str, dict[str, Any]]:
    """A plan's file, and the plan."""
    stats, path = EstimateStats(topology), folder / "plan.json"
    made = plan(topology, config, stats=stats, **options)
    assert stats.estimate is not None
    path.write_text(json.dumps([stats.estimate.to_json()]))
    assert read_estimates(str(path)) == [stats.estimate]
    return str(path), made


@pytest.mark.parametrize(
    ("topology", "config"),
    [
        ("2x8:h100", ShardingConfig()),
        ("2x4:a100-40", ShardingConfig(kind="grid_shard")),
        ("1x2:cpu", ShardingConfig(kind="row_wise", tables={"t_id_6": "column_wise", "t_id_0": "data_parallel"})),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "quotient_remainder"])
def test_the_same_plan_comes_back_and_no_proposal_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str, config: ShardingConfig, kind: Any
) -> None:
    tables = TablesConfig(kind=kind, operation="add")
    path, made = save(tmp_path, topology, config, tables=tables)
    monkeypatch.setattr(EmbeddingShardingPlanner, "plan", lambda *_: pytest.fail("a plan was searched for"))
    assert plan(topology, ShardingConfig(plan=path), tables) == made


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"tables": TablesConfig(data_type="fp16")},
            "weights of table 't_.*' must take the [0-9,]+ bytes that the plan",
        ),
        (
            {"optimizer": "sgd"},
            r"moments of table 't_.*' must take the [0-9,]+ bytes that .*: got 0; plan again with the",
        ),
        ({"tables": TablesConfig(kind="hash")}, "table 't_.*' of the plan .* must have the shards of this model"),
    ],
)
def test_tables_of_other_bytes_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path, _ = save(tmp_path, "1x2:h100", ShardingConfig(kind="table_wise"))
    with pytest.raises(ValueError, match=message):
        plan("1x2:h100", ShardingConfig(plan=path), **changed)


@pytest.mark.parametrize("text", ["", "plan", "null", "{}", "[7]", "[" * 100_000, None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"plan.json must be a file that .*plan_sharding.py wrote: got .*; name"):
        read_estimates(str(path))


def test_a_plan_without_a_field_is_refused(tmp_path: Path) -> None:
    path, _ = save(tmp_path, "1x2:h100", ShardingConfig(kind="table_wise"))
    (whole,) = json.loads(Path(path).read_text())
    for changed in ({**whole, "tables": "x"}, {**whole, "tables": [{}]}, {**whole, "hbm_capacity": 7}, {"version": 2}):
        Path(path).write_text(json.dumps([changed]))
        with pytest.raises(ValueError, match=r"plan .*plan.json must have every field of a plan: got .*; plan again"):
            read_estimates(path)
