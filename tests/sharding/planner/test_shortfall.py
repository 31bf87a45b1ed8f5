"""Why tables do not fit: the table, all tables, or the rank, with the exact number of bytes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.schema import DatasetSpec, SparseFeature, Table
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.estimate.planner_stats import EstimateStats
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.planner.shortfall import DoesNotFitError
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

DIM = 128
ROW = 4 * DIM + 4  # bytes of a row and its one moment


class Model(nn.Module):
    """Tables in a model that has nothing else."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables
        self.dense = nn.Linear(1, 1)


def plan(
    rows: list[int],
    ranks: int,
    megabytes: int,
    *,
    kind: Any = "auto",
    optimizer: Any = "rowwise_adagrad",
    data_type: Any = "fp32",
    host_memory: bool = False,
) -> EstimateStats:
    """The estimates of tables with ``rows`` rows for ranks with ``megabytes``, of which 15 % are reserved."""
    tables = build_tables(
        [Table(name=f"t{i}", rows=n, dim=DIM, features=(f"f{i}",)) for i, n in enumerate(rows)],
        TablesConfig(data_type=data_type),
    )
    optimize_tables_in_backward(tables, OptimizerConfig(kind=optimizer, lr=0.1))
    spec = DatasetSpec(
        name="s", label="y", dense=(), sparse=tuple(SparseFeature(name=f"f{i}", rows=n) for i, n in enumerate(rows))
    )
    topology = Topology(
        world_size=ranks, local_world_size=ranks, compute_device="cuda", hbm_cap=megabytes * 10**6, ddr_cap=10**10
    )
    stats = EstimateStats("test")
    config = ShardingConfig(kind=kind, host_memory=host_memory)
    make_plan(Model(tables), tables, topology, config, batch_size=16, spec=spec, stats=stats)
    return stats


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DoesNotFitError) as error:
        plan(*args, **kwargs)
    return str(error.value)


def too_many(text: str) -> float:
    """Bytes."""
    found = re.search(r"([\d,.]+) GB too many", text)
    assert found is not None, text
    return 1e9 * float(found[1].replace(",", ""))


def test_one_table_is_too_large_for_any_rank() -> None:
    text = refusal([1000, 200_000], 2, 100, kind="table_wise")
    assert "GB too many, because table 't1' needs at least 0.10" in text
    assert too_many(text) == pytest.approx(200_000 * ROW - 85e6, abs=700_000)  # buffers are small


def test_all_tables_together_are_too_large() -> None:
    text = refusal([100_000, 150_000, 100_000], 2, 100)
    assert "GB too many, because all tables need at least 0.181 GB and 0.170 GB is free" in text
    assert "(the largest table, 't1', needs 0.077 GB)" in text
    assert too_many(text) == pytest.approx(350_000 * ROW - 170e6, abs=800_000)


def test_tables_that_do_not_divide_among_ranks() -> None:
    text = refusal([100_000] * 3, 2, 100, kind="table_wise")  # two of them are more than a rank
    assert "when tables are placed largest first, although they need 0.155 GB of 0.170 GB in total" in text
    assert too_many(text) == pytest.approx(200_000 * ROW - 85e6, abs=800_000)


def test_the_host_s_memory_is_used_when_asked_for_only() -> None:
    refusal([200_000], 1, 100)
    found = plan([200_000], 1, 100, host_memory=True).estimate
    assert found is not None
    (table,) = found.tables
    assert table.compute_kernel in ("fused_uvm_caching", "fused_uvm")
    assert found.rank_bytes("ddr")[0] >= 200_000 * 4 * DIM
    assert found.rank_bytes("hbm")[0] < 85e6
    fits = plan([1000], 1, 100, host_memory=True).estimate
    assert fits is not None
    assert fits.tables[0].compute_kernel == "fused"


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd", 0), ("rowwise_adagrad", 1), ("adagrad", DIM)])
def test_moments_are_counted_and_those_of_half_precision_are_float32(optimizer: Any, moments: int) -> None:
    buffers = []
    for data_type, width in (("fp32", 4), ("fp16", 2)):
        found = plan([1000], 1, 100, optimizer=optimizer, data_type=data_type).estimate
        assert found is not None
        (shard,) = found.tables[0].shards
        assert shard.weight_bytes == width * DIM * 1000
        assert shard.optimizer_bytes == 4 * moments * 1000
        buffers.append(shard.hbm_bytes - shard.weight_bytes - shard.optimizer_bytes)
    assert 0 < buffers[1] < buffers[0] < 100_000  # the planner takes outputs for as wide as weights


def test_half_precision_is_not_replicated() -> None:
    found = plan([100] * 4, 2, 100, data_type="fp16").estimate
    assert found is not None
    assert "data_parallel" not in {way.sharding_type for table in found.tables for way in table.alternatives}
    with pytest.raises(ValueError, match=r"a replicated table must have fp32 weights .*: got fp16 for 't0'; choose an"):
        plan([100], 2, 100, kind="data_parallel", data_type="fp16")
