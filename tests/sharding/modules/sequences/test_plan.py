"""What the planner is told of tables of single ids, and what configs, tables and sharders refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash, QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.sequences import CompositionalEmbeddingCollection
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.tables import build_sequence_tables, build_tables
from dlrm_torchrec.schema import DatasetSpec, SparseFeature, Table
from dlrm_torchrec.sharding.config import CommsConfig, ShardingConfig
from dlrm_torchrec.sharding.modules.composed_shardings import check_sharding
from dlrm_torchrec.sharding.modules.sharder import table_optimizer
from dlrm_torchrec.sharding.plan import SHARDERS, make_plan
from dlrm_torchrec.sharding.planner.constraints import table_constraints
from dlrm_torchrec.sharding.planner.enumerator import Enumerator
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward

IDS, DIM, LENGTH, BATCH = 100_000, 96, 50.0, 128
SPEC = DatasetSpec(
    name="test",
    label="label",
    dense=(),
    sparse=tuple(SparseFeature(name=name, rows=IDS, multi_hot=True, pooling_factor=LENGTH) for name in ("f", "g")),
)
QUOTIENTS = QuotientRemainder(IDS, 20)
OPERATIONS: list[Operation] = [Add(), Concat(), Mult(), Path(hidden=16), TensorTrain()]


def composed(operation: Operation, partition: Partition = QUOTIENTS, features: tuple[str, ...] = ("f", "g")) -> Any:
    return CompositionalEmbeddingConfig(
        name="t",
        num_embeddings=IDS,
        embedding_dim=DIM,
        feature_names=list(features),
        partition=partition,
        operation=operation,
    )


def option(tables: EmbeddingCollection, kind: Any, ranks: int = 2) -> ShardingOption:
    """The planner's option for the only table of a collection on CPUs, with this sharding type."""
    topology = Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu")
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    constraints = table_constraints(
        tables, topology, ShardingConfig(kind=kind), spec=SPEC, batch_size=BATCH, access={}, without=()
    )
    enumerator = Enumerator(topology, BATCH, constraints=constraints)
    ways = [sharder(table_optimizer(tables)) for sharder in SHARDERS]
    (found,) = enumerator.enumerate(nn.Sequential(tables), ways)
    return found


def plain() -> EmbeddingCollection:
    config = EmbeddingConfig(name="t", num_embeddings=IDS, embedding_dim=DIM, feature_names=["f", "g"])
    return EmbeddingCollection([config], torch.device("meta"))


def stored(operation: Operation, partition: Partition = QUOTIENTS) -> CompositionalEmbeddingCollection:
    return CompositionalEmbeddingCollection([composed(operation, partition)], torch.device("meta"))


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_ids_and_vectors_are_counted_once_and_rows_as_they_are(operation: Operation, kind: str) -> None:
    whole, small = option(plain(), kind), option(stored(operation), kind)
    assert not whole.is_pooled
    assert not small.is_pooled
    sent = 8 * 2 * LENGTH * BATCH * 2  # bytes of all ids, of two features and two ranks
    rows_of_ids = sent + 4 * DIM * sent / 8
    for one, other in zip(whole.shards, small.shards, strict=True):
        assert one.storage is not None
        assert other.storage is not None
        weights = 4 * (one.size[0] * one.size[1] - other.size[0] * other.size[1])
        more = sent / (2 if kind == "row_wise" else 1) if isinstance(operation, Concat) else 0  # counted as two ids
        assert one.storage.ddr - other.storage.ddr == pytest.approx(weights - more, abs=2)
        assert one.storage.ddr - 4 * one.size[0] * one.size[1] == rows_of_ids / (2 if kind == "row_wise" else 1)
        assert one.perf is not None
        assert other.perf is not None
        assert other.perf.input_dist_comms == pytest.approx(one.perf.input_dist_comms, rel=1e-3)
        if kind == "table_wise":
            assert other.perf.fwd_comms == pytest.approx(one.perf.fwd_comms, rel=1e-3)
        else:  # and the rows of the remainders
            assert other.perf.fwd_comms > one.perf.fwd_comms
        if not isinstance(operation, Concat):  # whose narrow rows TorchRec thinks slower
            assert other.perf.fwd_compute == pytest.approx(
                one.perf.fwd_compute * (1 + rows_read(operation)) / 2, rel=0.02
            )


def rows_read(operation: Operation) -> float:
    """The rows that are read for one id, where networks are read once per batch."""
    if isinstance(operation, (Add, Mult)):
        return 2
    per_class = 16 + 1 + 16 + 1 if isinstance(operation, Path) else 1  # an 8 x 12 core has one row
    return 1 + 20 * per_class / (2 * LENGTH * BATCH)


def test_listed_classes_are_counted() -> None:
    codes = torch.arange(IDS) % 1000
    listed, hashed = (
        option(stored(Add(), partition), "table_wise").shards[0].storage
        for partition in (Assigned([codes], complementary=False), Hash(IDS, 1000))
    )
    assert listed is not None
    assert hashed is not None
    assert listed.ddr - hashed.ddr == 2 * IDS


@pytest.mark.parametrize(("ranks", "width"), [(2, 48), (3, 32), (5, 24), (7, 16)])
def test_columns_are_cut_into_equal_widths(ranks: int, width: int) -> None:
    """TorchRec's collections take no others."""
    assert {shard.size[1] for shard in option(stored(Mult()), "column_wise", ranks).shards} == {width}


def test_one_plan_for_tables_of_both_kinds() -> None:
    items = Table(name="t_item", rows=IDS, dim=16, features=("f",))
    config = TablesConfig(kind="quotient_remainder", collisions=10)
    bags = build_tables([Table(name="t_tag", rows=IDS, dim=16, features=("g",))], config)
    model = nn.ModuleDict({"sequences": build_sequence_tables([items], config), "bags": bags})
    optimize_tables_in_backward(model, OptimizerConfig(kind="rowwise_adagrad", lr=0.1))
    topology = Topology(world_size=2, local_world_size=2, compute_device="cpu")
    comms = CommsConfig(forward="int8")  # which rows of pooled tables on several ranks do not take
    kinds = ShardingConfig(kind="table_wise", tables={"t_item": "row_wise"}, comms=comms)
    plan = make_plan(model, model, topology, kinds, batch_size=BATCH, spec=SPEC)
    assert {path: {name: each.sharding_type for name, each in part.items()} for path, part in plan.plan.items()} == {
        "sequences": {"t_item": "row_wise"},
        "bags": {"t_tag": "table_wise"},
    }


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        (composed(Concat()), "column_wise", "TorchRec puts a vector's parts in another order"),
        (composed(Path(hidden=4)), "column_wise", "paths and tensor trains mix all columns"),
        (composed(Add(), Hashes(IDS, 100, 2)), "row_wise", "lie on several ranks"),
        (composed(Mult()), "table_row_wise", "TorchRec has no such type for the vectors of single ids"),
        (EmbeddingConfig(num_embeddings=9, embedding_dim=4, name="t"), "grid_shard", "TorchRec has no such type"),
    ],
    ids=["concat", "path", "hashes", "nodes", "plain"],
)
def test_sharding_types_that_a_table_cannot_have(config: Any, kind: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"sharding of table 't' must be one of .* got '{kind}', but .*{reason}"):
        check_sharding(config.stacked() if isinstance(config, CompositionalEmbeddingConfig) else config, kind)


def test_several_vectors_for_an_id_are_refused() -> None:
    with pytest.raises(ValueError, match="operation of table 't' must give one vector for each id of a sequence: got"):
        composed(FeatureGeneration())


def test_tables_of_several_dims_are_refused() -> None:
    tables = [Table(name=name, rows=9, dim=dim, features=(name,)) for name, dim in {"a": 16, "b": 32}.items()]
    with pytest.raises(ValueError, match=r"tables of sequences must have one dim: got \[16, 32\] in plain tables"):
        build_sequence_tables(tables)
    with pytest.raises(ValueError, match=r"must have one dim: got \[16\] in mixed_dimension tables"):
        build_sequence_tables(tables[:1], TablesConfig(kind="mixed_dimension"))
