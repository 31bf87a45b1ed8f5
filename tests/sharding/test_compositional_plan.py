"""What the planner is told of compositional tables, and what planner, sharder and sharded module refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ShardingOption, Stats
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import (
    Add,
    Concat,
    FeatureGeneration,
    Mult,
    Operation,
    Passed,
    Path,
    Summed,
)
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash, QuotientRemainder
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from dlrm_torchrec.schema import DatasetSpec, SparseFeature
from dlrm_torchrec.sharding import plan as plan_module
from dlrm_torchrec.sharding.cluster.topology import HostBandwidths
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.modules.composed_shardings import SHARDINGS, offered_types
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.planner.constraints import table_constraints
from dlrm_torchrec.train.config import OptimizerConfig, OptimizerKind
from dlrm_torchrec.train.optimizers import optimize_tables_in_backward
from tests.distributed import run_ranks
from tests.sharding.sharded import features, shard

IDS, DIM, POOLING = 100_000, 64, 6.0
FEATURES = ["f", "g"]
SPEC = DatasetSpec(
    name="test",
    label="label",
    dense=(),
    sparse=tuple(SparseFeature(name=name, rows=IDS, multi_hot=True, pooling_factor=POOLING) for name in FEATURES),
)
OPERATIONS: list[Operation] = [Add(), Concat(), Mult(), FeatureGeneration(), Path(hidden=16), TensorTrain()]


def collection(
    operation: Operation | None,
    ids: int = IDS,
    pooling: PoolingType = PoolingType.SUM,
    partition: Partition | None = None,
) -> CompositionalEmbeddingBagCollection:
    """One table on meta; a plain one without an operation."""
    shared: dict[str, Any] = {
        "name": "t",
        "num_embeddings": ids,
        "embedding_dim": DIM,
        "feature_names": FEATURES,
        "pooling": pooling,
    }
    config = (
        EmbeddingBagConfig(**shared)
        if operation is None
        else CompositionalEmbeddingBagConfig(
            **shared, partition=partition or QuotientRemainder(ids, 20), operation=operation
        )
    )
    return CompositionalEmbeddingBagCollection([config], device=torch.device("meta"))


class Recorder(Stats):
    """Keeps what the planner estimated for its plan."""

    def __init__(self) -> None:
        self.chosen: list[ShardingOption] = []

    def log(self, *_: Any, best_plan: list[ShardingOption], **__: Any) -> None:
        self.chosen = best_plan


def planned(
    tables: CompositionalEmbeddingBagCollection,
    topology: Topology,
    monkeypatch: pytest.MonkeyPatch,
    config: ShardingConfig | None = None,
    batch_size: int = 128,
    optimizer: OptimizerKind = "sgd",
) -> ShardingOption:
    """The planner's choice for the one table, with its estimates."""
    recorder = Recorder()
    monkeypatch.setattr(
        plan_module,
        "EmbeddingShardingPlanner",
        lambda **options: EmbeddingShardingPlanner(**{**options, "stats": [recorder]}),
    )
    optimize_tables_in_backward(tables, OptimizerConfig(kind=optimizer, lr=0.1))
    make_plan(
        torch.nn.Sequential(tables), tables, topology, config or ShardingConfig(), batch_size=batch_size, spec=SPEC
    )
    (chosen,) = recorder.chosen
    return chosen


def cpus(world_size: int = 2) -> Topology:
    return Topology(world_size=world_size, local_world_size=world_size, compute_device="cpu")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("batch_size", [64, 512])
def test_rows_and_pooling_factors_are_the_true_ones(
    operation: Operation, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ShardingConfig(kind="table_wise")
    option = planned(collection(operation), cpus(), monkeypatch, config, batch_size)
    quotients, remainders = IDS // 20, 20
    network = 16 + 1 + 16 + 1  # rows of W1, b1, W2, b2; an 8 x 8 core has one row
    rows = quotients + remainders * (network if isinstance(operation, Path) else 1)
    assert tuple(option.tensor.shape) == (rows, DIM // 2 if isinstance(operation, Concat) else DIM)
    assert (
        option.input_lengths
        == {
            "Add": [2 * POOLING] * 2,  # k rows per id
            "Mult": [2 * POOLING] * 2,
            "Concat": [POOLING] * 4,  # k outputs of one row per id
            "FeatureGeneration": [POOLING] * 4,
            "Path": [POOLING + remainders * network / batch_size / 2] * 2,  # networks once per batch, for both features
            "TensorTrain": [POOLING + remainders / batch_size / 2] * 2,
        }[type(operation).__name__]
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize(("optimizer", "state"), [("sgd", 0), ("rowwise_adagrad", 1 / DIM), ("adagrad", 1)])
def test_storage_is_that_of_the_rows_and_their_optimizer_state(
    operation: Operation, optimizer: OptimizerKind, state: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares the storage that does not grow with the batch; ``state`` is relative to the weights."""
    ddr = []
    for batch_size in (1000, 2000):
        config = ShardingConfig(kind="table_wise")
        option = planned(collection(operation), cpus(), monkeypatch, config, batch_size, optimizer)
        ddr.append(option.shards[0].storage.ddr)
    rows, dim = option.tensor.shape
    if isinstance(operation, Concat) and optimizer == "rowwise_adagrad":
        state *= 2  # a moment per row of half the dim
    per_class = 34 if isinstance(operation, Path) else int(isinstance(operation, TensorTrain))
    networks = 8 * 2 * 20 * per_class  # as ids, from each of two ranks
    assert 2 * ddr[0] - ddr[1] == 4 * rows * dim * (1 + state) + networks


@pytest.mark.parametrize(("most", "id_bytes"), [(999, 2), (40_000, 4)])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_listed_classes_are_counted_on_every_rank_with_a_shard(
    most: int, id_bytes: int, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = torch.arange(IDS) % (most + 1)
    storages = {}
    for name, partition in {"listed": Assigned([codes], complementary=False), "hashed": Hash(IDS, most + 1)}.items():
        for device in ("cpu", "cuda"):
            topology = Topology(world_size=2, local_world_size=2, compute_device=device)
            tables = collection(Add(), partition=partition)
            option = planned(tables, topology, monkeypatch, ShardingConfig(kind=kind))
            storages[name, device] = [(shard.storage.hbm, shard.storage.ddr) for shard in option.shards]
    for device, memory in (("cuda", 0), ("cpu", 1)):
        pairs = zip(storages["listed", device], storages["hashed", device], strict=True)
        for listed, hashed in pairs:
            assert listed[memory] - hashed[memory] == id_bytes * IDS
            assert listed[1 - memory] == hashed[1 - memory]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "table_row_wise"])
def test_ids_that_are_composed_by_their_owner_are_counted_once(
    operation: Operation, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are those of test_compositional_wire.py; rows that are only summed are sent by row-wise types."""
    config = ShardingConfig(kind=kind)
    plain, composed = (
        planned(collection(each), cpus(), monkeypatch, config).shards[0].perf for each in (None, operation)
    )
    assert plain is not None
    assert composed is not None
    times = 2 if kind != "table_wise" and isinstance(operation, Summed) else 1
    assert composed.input_dist_comms == pytest.approx(times * plain.input_dist_comms, rel=1e-3)


@pytest.mark.parametrize(
    ("operation", "rows"), [(Mult(), 20), (Path(hidden=16), 20 * 34), (TensorTrain(), 20)], ids=str
)
@pytest.mark.parametrize(("kind", "bandwidth"), [("row_wise", "inter_host_bw"), ("table_row_wise", "intra_host_bw")])
def test_rows_that_every_rank_gets_are_counted(
    operation: Operation, rows: int, kind: Any, bandwidth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all-reduced forward and backward, among all ranks or those of a host."""
    machine = Topology(
        world_size=16,
        local_world_size=8,
        compute_device="cuda",
        generalized_comms_bandwidths=HostBandwidths(inter_host_bw=1000, intra_host_bw=5000),
    )
    ways = [planned(collection(each), machine, monkeypatch, ShardingConfig(kind=kind)) for each in (Add(), operation)]
    summed, composed = (way.shards[0].perf for way in ways)
    assert summed is not None
    assert composed is not None
    milliseconds = rows * DIM * 4 / (5000 if bandwidth == "intra_host_bw" else 8 * 1000)
    assert composed.fwd_comms - summed.fwd_comms == pytest.approx(milliseconds)
    assert composed.bwd_comms - summed.bwd_comms == pytest.approx(milliseconds)


@pytest.mark.parametrize("world_size", [2, 16])
@pytest.mark.parametrize("operation", [*OPERATIONS, Path(hidden=0)], ids=str)
def test_auto_keeps_to_what_is_offered(operation: Operation, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here TorchRec would shard a plain table of equally many rows by rows or columns."""
    machine = Topology(world_size=world_size, local_world_size=min(world_size, 8), compute_device="cuda")
    tables = collection(operation, ids=100_000_000)
    (stored,) = tables.physical_configs()
    plain = planned(collection(None, ids=stored.num_embeddings), machine, monkeypatch)
    composed = planned(tables, machine, monkeypatch)
    assert plain.sharding_type not in ("table_wise", "data_parallel")
    assert composed.sharding_type in offered_types(stored)
    if isinstance(operation, Passed):
        assert composed.sharding_type not in ("column_wise", "table_column_wise", "grid_shard")


@pytest.mark.parametrize("operation", [Mult(), Path(hidden=16), Add()], ids=str)
def test_auto_keeps_products_and_paths_whole_on_cpu(operation: Operation) -> None:
    """Their fast kernels there want it; sums take any type."""
    tables = collection(operation)
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    for device in ("cpu", "cuda"):
        machine = Topology(world_size=2, local_world_size=2, compute_device=device)
        found = table_constraints(tables, machine, ShardingConfig(), spec=SPEC, batch_size=128, access={}, without=())[
            "t"
        ].sharding_types
        assert found is not None
        assert ("row_wise" in found) == (device == "cuda" or isinstance(operation, Add))


PART_OF_BAG = "but a rank with a part of the rows does not know how many ids a bag has; choose one of them"
COLUMNS_APART = "but paths and tensor trains mix all columns; choose one of them"
ROW_KINDS, COLUMN_KINDS = ["row_wise", "table_row_wise"], ["column_wise", "table_column_wise"]
REFUSED: list[tuple[Operation | None, PoolingType, str, str]] = [
    *((Path(), PoolingType.SUM, kind, COLUMNS_APART) for kind in [*COLUMN_KINDS, "grid_shard"]),
    (Mult(), PoolingType.MEAN, "row_wise", PART_OF_BAG),
    *((Add(), PoolingType.MEAN, kind, PART_OF_BAG) for kind in [*ROW_KINDS, "grid_shard"]),
    (Concat(), PoolingType.MEAN, "row_wise", PART_OF_BAG),
    (FeatureGeneration(), PoolingType.MEAN, "row_wise", PART_OF_BAG),
    (None, PoolingType.MEAN, "row_wise", PART_OF_BAG),
]


def messages_of_sharder() -> list[str]:
    found = []
    for operation, pooling, kind, _ in REFUSED:
        try:
            shard(collection(operation, 1000, pooling), {"t": kind})
        except ValueError as error:
            found.append(str(error))
    return found


def test_sharder_refuses_a_plan_that_cannot_be() -> None:
    ((*messages,),) = run_ranks(1, messages_of_sharder, timeout_s=60)
    for message, (operation, pooling, kind, reason) in zip(messages, REFUSED, strict=True):
        (stored,) = collection(operation, 1000, pooling).physical_configs()
        offered = offered_types(stored)
        assert kind not in offered
        assert f"sharding of table 't' must be one of {offered}: got '{kind}', {reason}" in message


@pytest.mark.parametrize(("operation", "pooling", "kind", "reason"), REFUSED)
def test_planner_refuses_what_cannot_be(
    operation: Operation | None, pooling: PoolingType, kind: Any, reason: str
) -> None:
    tables = collection(operation, pooling=pooling)
    optimize_tables_in_backward(tables, OptimizerConfig(kind="sgd", lr=0.1))
    with pytest.raises(ValueError, match=f"sharding of table 't' must be one of .*: got '{kind}', {reason}"):
        make_plan(torch.nn.Sequential(tables), tables, cpus(), ShardingConfig(kind=kind), batch_size=128, spec=SPEC)


BAD_IDS = [(kind, feature, value) for kind in SHARDINGS for feature, value in (("f", -1), ("g", -7), ("f", 1000))]


def look_up(kind: str, feature: str, value: int) -> None:
    """Sharded Add of a batch in which the last rank has a bad id."""
    tables = collection(Add(), 1000).to_empty(device="cpu")
    model = shard(tables, {"t": kind})
    ids = features({"f": 1000, "g": 1000}, batch_size=8, longest=4, weighted=False, seed=dist.get_rank())
    if dist.get_rank() == dist.get_world_size() - 1:
        ids[feature].values()[-1] = value
    model(ids).wait()


def messages_of_bad_ids() -> list[str]:
    found = []
    for kind, feature, value in BAD_IDS:
        try:
            look_up(kind, feature, value)
        except ValueError as error:
            found.append(str(error))
    return found


def test_ids_out_of_range_are_named_whichever_rank_composes() -> None:
    (messages,) = run_ranks(1, messages_of_bad_ids, timeout_s=60)
    assert messages == [
        f"ids of feature {feature!r} must be in [0, 1000), the ids of table 't': got {value}; check how "
        "that column was prepared"
        for kind, feature, value in BAD_IDS
    ]


@pytest.mark.parametrize(("kind", "rank"), [("table_wise", 0), ("row_wise", 1)])
def test_ids_of_rank_1_are_named_on_the_rank_that_composes(kind: str, rank: int) -> None:
    with pytest.raises(
        RuntimeError, match=rf"rank {rank} failed:(?s:.*)ids of feature 'g' must be in \[0, 1000\), the"
    ):
        run_ranks(2, look_up, kind, "g", 1000, timeout_s=60)


def several_batch_sizes() -> None:
    model = shard(collection(Add()).to_empty(device="cpu"), {"t": "table_wise"})
    ids = KeyedJaggedTensor(
        keys=["f", "g"], values=torch.arange(5), lengths=torch.tensor([1, 2, 2]), stride_per_key_per_rank=[[1], [2]]
    )
    model(ids)


def test_features_of_several_batch_sizes_are_refused() -> None:
    message = r"features of a collection with compositional tables must have one batch size: got \[1, 2\]; pad them"
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, several_batch_sizes, timeout_s=60)
