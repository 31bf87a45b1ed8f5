"""What the planner is told of managed tables, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from torchrec.distributed.planner import Topology
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.managed.table_configs import ManagedEmbeddingBagConfig
from dlrm_torchrec.embeddings.tables import build_tables, bytes_of_ids, physical_configs
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.modules.managed.sharded import ManagedEmbeddingBagCollectionSharder
from dlrm_torchrec.sharding.plan import Plan, make_plan
from dlrm_torchrec.sharding.planner.constraints import table_constraints
from dlrm_torchrec.sharding.planner.enumerator import Enumerator
from dlrm_torchrec.sharding.planner.fit import choices
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from tests.sharding.sharded import Wrapped

ROWS, DIM = 100_096, 16  # 128 buckets of 782 rows
SPEC = DatasetSpec(
    name="test",
    label="label",
    dense=(),
    sparse=(SparseFeature(name="user", rows=ROWS, encoding="managed"), SparseFeature(name="site", rows=ROWS)),
)


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_maps_are_counted_with_the_rows(kind: Any, device: str) -> None:
    tables = build_tables(SPEC.tables(DIM))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="rowwise_adagrad", lr=0.1))
    topology = Topology(world_size=2, local_world_size=2, compute_device=device)
    constraints = table_constraints(
        tables, topology, ShardingConfig(kind=kind), spec=SPEC, batch_size=100, access={}, without=()
    )
    options = Enumerator(topology, 100, constraints).enumerate(
        Wrapped(tables), [ManagedEmbeddingBagCollectionSharder(RowWiseAdagrad)]
    )
    by_name = {option.name: option for option in options}
    totals = {
        name: sum(shard.storage.hbm + shard.storage.ddr for shard in option.shards) for name, option in by_name.items()
    }
    user = next(config for config in physical_configs(tables) if config.name == "t_user")
    assert isinstance(user, ManagedEmbeddingBagConfig)
    assert totals["t_user"] - totals["t_site"] == pytest.approx(user.map_bytes(device), abs=2)
    assert user.map_bytes("cuda") == user.map_bytes("cpu") + 4 * ROWS > 20 * ROWS


def plan(config: ShardingConfig, world_size: int) -> Plan:
    tables = build_tables(SPEC.tables(DIM))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    topology = Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu")
    return make_plan(Wrapped(tables), tables, topology, config, batch_size=100, spec=SPEC)


def test_ranks_that_would_cut_buckets_do_not_share_rows() -> None:
    (found,) = plan(ShardingConfig(), 3).plan.values()
    assert isinstance(found, EmbeddingModuleShardingPlan)
    assert found["t_user"].sharding_type == "table_wise"
    with pytest.raises(ValueError, match="ranks of row-wise managed table 't_user' must divide its 128 buckets: got 3"):
        plan(ShardingConfig(tables={"t_user": "row_wise"}), 3)


@pytest.mark.parametrize("kind", ["column_wise", "data_parallel", "table_row_wise"])
def test_other_sharding_types_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"sharding of table 't_user' must be one of .* decide which id a row belongs"):
        plan(ShardingConfig(tables={"t_user": kind}), 2)


def test_managed_tables_stay_in_the_devices_memory() -> None:
    tables = build_tables(SPEC.tables(DIM))
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    topology = Topology(world_size=2, local_world_size=2, compute_device="cuda")
    found = table_constraints(
        tables, topology, ShardingConfig(host_memory=True), spec=SPEC, batch_size=100, access={}, without=()
    )
    assert found["t_user"].compute_kernels == ["dense", "fused"]
    assert "fused_uvm_caching" in (found["t_site"].compute_kernels or [])


def test_a_fit_leaves_endless_tables_as_they_are_and_counts_maps_of_others() -> None:
    user, site = SPEC.tables(DIM)
    base = TablesConfig(kind="managed")
    (only,) = choices(user, base, RowWiseAdagrad, pooling_factor=1, access=None)
    assert only.bytes == ROWS * (4 * DIM + 4) + bytes_of_ids(physical_configs(build_tables([user]))[0])
    ways = choices(site, base, RowWiseAdagrad, pooling_factor=1, access=None)
    assert [way.config.kind for way in ways[:2]] == ["plain", "managed"]
    for way in ways[1:]:
        (stored,) = physical_configs(build_tables([site], way.config))
        assert way.bytes == stored.num_embeddings * (4 * DIM + 4) + bytes_of_ids(stored)
        assert 0 < way.loss < 1
    assert [way.loss for way in ways] == sorted(way.loss for way in ways)
