"""The search for a plan: never slower than TorchRec's plan, and no change of a single table makes it faster."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.types import ShardingOption

from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding import plan as module
from dlrm_torchrec.sharding.cluster.topology import parse_cluster
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.estimate.estimate import Estimate
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.modules.sharder import COLUMN_TYPES
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.planner.enumerator import SHARDING_TYPES
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward


def plan(topology: str, tables: dict[str, Any] | None = None) -> Estimate:
    """The estimate of the demo's plan, with the sharding of single tables given."""
    spec, stats = demo_spec(), EstimateStats(topology)
    bags = build_tables(spec.tables(dim=16))
    optimize_tables_in_backward(bags, OptimizerConfig(kind="rowwise_adagrad", lr=0.1))
    config = ShardingConfig(tables=tables or {})
    make_plan(
        nn.Sequential(bags), bags, parse_cluster(topology).topology(), config, batch_size=128, spec=spec, stats=stats
    )
    assert stats.estimate is not None
    return stats.estimate


def slowest(estimate: Estimate) -> float:
    return max(sum(parts.values()) for parts in estimate.rank_milliseconds())


def torchrecs_own(monkeypatch: pytest.MonkeyPatch, topology: str) -> Estimate:
    """The plan that the planner finds without our proposals."""

    def without(*_: Any, proposer: Any, **options: Any) -> EmbeddingShardingPlanner:
        assert proposer is not None
        return EmbeddingShardingPlanner(**options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "EmbeddingShardingPlanner", without)
        return plan(topology)


@pytest.mark.parametrize(
    ("topology", "gains"), [("2x8:h100", True), ("4x2:cpu", True), ("1x2:cpu", False), ("1x1:h100", False)]
)
def test_no_slower_than_torchrec_s_own(monkeypatch: pytest.MonkeyPatch, topology: str, gains: bool) -> None:
    found, theirs = slowest(plan(topology)), slowest(torchrecs_own(monkeypatch, topology))
    assert found < 0.9 * theirs if gains else found == theirs


@pytest.mark.parametrize("topology", ["2x4:h100", "4x2:cpu"])
def test_no_single_change_of_a_table_of_the_slowest_rank_is_faster(topology: str) -> None:
    found = plan(topology)
    chosen = {table.name: table.sharding_type for table in found.tables}
    assert slowest(plan(topology, chosen)) == pytest.approx(slowest(found))
    critical = [table.name for table in found.tables if found.critical_rank() in {shard.rank for shard in table.shards}]
    assert critical
    for name in critical:
        for kind in set(SHARDING_TYPES) - {*COLUMN_TYPES, chosen[name]}:
            assert slowest(plan(topology, {**chosen, name: kind})) >= slowest(found) - 1e-12


def test_the_ids_on_their_way_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rated: list[float] = []

    class Spy(NoopPerfModel):
        def rate(self, plan: list[ShardingOption]) -> float:
            rated.append(super().rate(plan))
            return rated[-1]

    def spied_on(topology: Topology, **options: Any) -> EmbeddingShardingPlanner:
        return EmbeddingShardingPlanner(topology, performance_model=Spy(topology), **options)

    monkeypatch.setattr(module, "EmbeddingShardingPlanner", spied_on)
    found = plan("2x4:h100")
    assert found.rank_milliseconds()[0]["input_dist_comms"] > 0
    assert min(rated) == pytest.approx(slowest(found))
