"""Mixed dimensions: properties of the power rule; the collection against loops, plain tables and itself sharded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward
from torchrec.distributed.types import ShardedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table, initialize_tables
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection, power_rule_dims
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.train.config import OptimizerConfig
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.task import BinaryRankingTask
from tests.distributed import here, run_ranks

ROWS = st.lists(st.integers(1, 10**9), min_size=1, max_size=12)
ALPHA = st.floats(0, 1)
BASE = st.integers(1, 64).map(lambda fours: 4 * fours)


@given(ROWS, BASE, ALPHA, st.booleans(), st.none() | st.floats(0, 1))
def test_dims_obey_their_limits(
    rows: list[int], base_dim: int, alpha: float, powers: bool, share: float | None
) -> None:
    budget = None if share is None else math.ceil(sum(rows) * (4 + share * (base_dim - 4)))
    dims = power_rule_dims(rows, base_dim=base_dim, alpha=alpha, budget=budget, round_to_power_of_two=powers)
    assert len(dims) == len(rows)
    for dim in dims:
        assert 4 <= dim <= base_dim
        assert dim % 4 == 0
        assert not powers or dim == base_dim or math.log2(dim).is_integer()
    by_rows = [dim for _, dim in sorted(zip(rows, dims, strict=True))]
    assert by_rows == sorted(by_rows, reverse=True)
    assert len(set(zip(rows, dims, strict=True))) == len(set(rows))  # tables alike are treated alike
    if budget is None:
        assert dims[rows.index(min(rows))] == base_dim
    else:
        assert sum(n * dim for n, dim in zip(rows, dims, strict=True)) <= budget


@settings(max_examples=40, deadline=None)
@given(ROWS, ALPHA, st.floats(0.05, 1))
def test_a_budget_is_used_as_far_as_the_rule_allows(rows: list[int], alpha: float, share: float) -> None:
    budget = math.ceil(share * 64 * sum(rows))

    def by_formula(scale: float) -> list[int]:
        exact = [min(max(scale * n**-alpha, 1), 64) for n in rows]
        return [2 ** round(math.log2(dim)) for dim in exact]

    tried = [by_formula(2 ** (step / 16)) for step in range(40 * 16)]
    costs = [sum(n * dim for n, dim in zip(rows, dims, strict=True)) for dims in tried]
    ours = power_rule_dims(rows, base_dim=64, alpha=alpha, budget=budget, multiple_of=1)
    assert sum(n * dim for n, dim in zip(rows, ours, strict=True)) >= max(cost for cost in costs if cost <= budget)


def test_dims_of_the_paper_without_a_budget() -> None:
    rows = [feature.rows for feature in criteo_kaggle_spec().sparse]
    expected = [2 ** round(math.log2(max(1, 16 * (min(rows) / n) ** 0.3))) for n in rows]
    assert power_rule_dims(rows, base_dim=16, alpha=0.3, multiple_of=1) == expected
    assert power_rule_dims(rows, base_dim=16, alpha=0.3) == [max(4, dim) for dim in expected]
    assert len(set(expected)) > 3


def test_dims_of_the_paper_with_a_budget() -> None:
    """Where no dim is clipped and rounding hardly matters, λ is budget / Σ n^(1-alpha)."""
    rows, alpha, budget = [100, 5, 30_000], 0.4, 10**8
    scale = budget / sum(n ** (1 - alpha) for n in rows)
    dims = power_rule_dims(rows, base_dim=10**6, alpha=alpha, budget=budget, round_to_power_of_two=False, multiple_of=1)
    assert dims == pytest.approx([scale * n**-alpha for n in rows], rel=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, r"rows must be at least 1 for every table: got \[\]; give each table's rows"),
        ({"rows": [3, 0]}, r"rows must be at least 1 for every table: got \[3, 0\]"),
        ({"alpha": -0.1}, "alpha must lie between 0 and 1: got -0.1; try 0.3"),
        ({"alpha": math.nan}, "alpha must lie between 0 and 1: got nan"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1: got 1.5"),
        ({"base_dim": 0}, "base_dim must be a positive multiple of 4: got 0; choose such a dim, or change"),
        ({"base_dim": 18}, "base_dim must be a positive multiple of 4: got 18"),
        ({"multiple_of": 0}, "multiple_of must be positive, and a power of two if .*: got 0; use 4"),
        ({"multiple_of": 12}, "multiple_of must be positive, and a power of two if .*: got 12; use 4"),
        ({"budget": 39}, "budget must hold all tables at the least dim, 4: got 39 elements; raise it to 40 or use"),
    ],
)
def test_impossible_rules_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_rule_dims(**{"rows": [3, 7], "base_dim": 16, "alpha": 0.3, **arguments})


DIM = 16


def config(name: str, rows: int, dim: int, *features: str, mean: bool = False) -> EmbeddingBagConfig:
    pooling = PoolingType.MEAN if mean else PoolingType.SUM
    return EmbeddingBagConfig(
        name=name, num_embeddings=rows, embedding_dim=dim, feature_names=list(features), pooling=pooling
    )


def configs() -> list[EmbeddingBagConfig]:
    """Every case: the full dim, two features of one table, mean pooling, the least dim."""
    return [
        config("t0", 50, 16, "f0"),
        config("t1", 40, 8, "f3", "f1"),
        config("t2", 61, 4, "f2", mean=True),
        config("t3", 30, 8, "f4"),
    ]


def features(rows: int, generator: torch.Generator, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to 3 ids, repeats among them."""
    lengths = torch.randint(0, 4, (5 * rows,), generator=generator)
    total = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=[f"f{i}" for i in range(5)],
        values=torch.randint(0, 30, (total,), generator=generator),
        lengths=lengths,
        weights=torch.rand(total, generator=generator) if weighted else None,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_vectors_are_those_of_loops_in_float64(weighted: bool) -> None:
    torch.manual_seed(1)
    tables = [table for table in configs() if not (weighted and table.pooling is PoolingType.MEAN)]
    tables.append(config("t4", 35, 12, "f0"))  # f0 is looked up in two tables
    collection = MixedDimensionEmbeddingBagCollection(tables, DIM, is_weighted=weighted)
    ids = features(20, torch.Generator().manual_seed(2), weighted)
    result = collection(ids)
    assert result.keys() == EmbeddingBagCollection(tables=tables)(ids).keys()
    assert result.length_per_key() == [DIM] * len(result.keys())
    for table in tables:
        rows = collection.tables.embedding_bags[table.name].weight.double()
        if table.embedding_dim < DIM:
            rows = rows @ collection.projections[table.name].weight.double().T
        for feature in table.feature_names:
            expected = torch.zeros(20, DIM, dtype=torch.float64)
            for bag in range(20):
                start, stop = ids[feature].offsets()[bag : bag + 2].tolist()
                weights = ids[feature].weights_or_none()
                for position in range(start, stop):
                    weight = 1.0 if weights is None else float(weights[position])
                    expected[bag] += weight * rows[ids[feature].values()[position]]
                if table.pooling is PoolingType.MEAN:
                    expected[bag] /= max(1, stop - start)
            key = f"{feature}@{table.name}" if feature == "f0" else feature
            torch.testing.assert_close(result[key].double(), expected, rtol=1e-5, atol=1e-6)


MODELS = {
    "DLRM": lambda tables: DLRM(tables, 3, [8, DIM], [8, 1]),
    "DLRM_DCN": lambda tables: DLRM_DCN(tables, 3, [8, DIM], [8, 1], dcn_num_layers=2, dcn_low_rank_dim=4),
    "DeepFM": lambda tables: SimpleDeepFMNN(3, tables, hidden_layer_size=8, deep_fm_dimension=4),
}


@pytest.mark.parametrize("model", MODELS)
def test_models_see_plain_tables_of_the_common_dim(model: str) -> None:
    """Logits and gradients are those of the model with plain tables whose rows are the projected ones."""
    torch.manual_seed(3)
    mixed = MODELS[model](MixedDimensionEmbeddingBagCollection(configs(), DIM))
    collection = mixed.sparse_arch.embedding_bag_collection
    plain_tables = EmbeddingBagCollection(tables=collection.embedding_bag_configs())
    plain = MODELS[model](plain_tables)
    dense = {name: value for name, value in mixed.state_dict().items() if "embedding_bag_collection" not in name}
    assert set(plain.load_state_dict(dense, strict=False).missing_keys) == {
        f"sparse_arch.embedding_bag_collection.embedding_bags.t{i}.weight" for i in range(4)
    }
    rows = {}
    for table in configs():
        rows[table.name] = collection.tables.embedding_bags[table.name].weight
        if table.embedding_dim < DIM:
            rows[table.name] = rows[table.name] @ collection.projections[table.name].weight.T
        plain_tables.embedding_bags[table.name].weight.data.copy_(rows[table.name])

    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(9, 3, generator=generator), features(9, generator)
    result, expected = mixed(*inputs), plain(*inputs)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    ours = {name: parameter.grad for name, parameter in collection.named_parameters()}
    assert set(ours) == {
        *(f"tables.embedding_bags.t{i}.weight" for i in range(4)),
        *(f"projections.t{i}.weight" for i in (1, 2, 3)),
    }
    collection.zero_grad()
    torch.autograd.backward(
        list(rows.values()), [plain_tables.embedding_bags[name].weight.grad for name in rows]
    )  # the chain rule through rows = table x projection
    for name, parameter in collection.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_projected_rows_start_with_the_mean_and_variance_of_plain_ones() -> None:
    torch.manual_seed(5)
    count, dims = 500, [4, 8, 32, 96, 128]
    tables = [config(f"t{dim}", count, dim, f"f{dim}") for dim in dims]
    collection = MixedDimensionEmbeddingBagCollection(tables, 128)
    every_row = KeyedJaggedTensor(
        keys=[f"f{dim}" for dim in dims],
        values=torch.arange(count).repeat(len(dims)),
        lengths=torch.ones(count * len(dims), dtype=torch.int64),
    )
    for values in collection(every_row).to_dict().values():
        assert float(values.double().var()) * 3 * count == pytest.approx(1, abs=0.12)  # 4 x 128 draws: sd 0.04
        assert abs(float(values.double().mean())) < 3e-3  # of a standard deviation of 0.026


def test_tables_may_wait_on_meta() -> None:
    torch.manual_seed(6)
    collection = MixedDimensionEmbeddingBagCollection(configs(), DIM, device=torch.device("meta"))
    assert {parameter.is_meta for parameter in collection.tables.parameters()} == {True}
    assert {parameter.is_meta for parameter in collection.projections.parameters()} == {False}
    everywhere = MixedDimensionEmbeddingBagCollection(
        configs(), DIM, device=torch.device("meta"), dense_device=torch.device("meta")
    )
    assert {parameter.is_meta for parameter in everywhere.parameters()} == {True}
    assert [table.embedding_dim for table in everywhere.embedding_bag_configs()] == [DIM] * 4
    assert [table.embedding_dim for table in everywhere.tables.embedding_bag_configs()] == [16, 8, 4, 8]


@pytest.mark.parametrize("dim", [0, 17])
def test_a_table_wider_than_the_common_dim_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim of table 't9' must lie between 1 and the common dim 16: got {dim}; low"):
        MixedDimensionEmbeddingBagCollection([*configs(), config("t9", 10, dim, "f9")], DIM)


STEPS, BATCH, SEED = 3, 8, 7
CPU = torch.device("cpu")
SGD = OptimizerConfig(kind="sgd", lr=0.5)
SPEC = DatasetSpec(
    name="mixed",
    label="y",
    dense=tuple(DenseFeature(name=f"d{i}") for i in range(3)),
    sparse=tuple(SparseFeature(name=f"f{i}", rows=30, multi_hot=True, pooling_factor=1.5) for i in range(5)),
)


def batch(step: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return Batch(
        dense_features=torch.randn(BATCH, 3, generator=generator),
        sparse_features=features(BATCH, generator),
        labels=torch.randint(0, 2, (BATCH,), generator=generator).float(),
        num_rows=BATCH,
        global_rows=2 * BATCH,
    )


def build(device: torch.device) -> tuple[DLRM, MixedDimensionEmbeddingBagCollection]:
    torch.manual_seed(SEED)
    collection = MixedDimensionEmbeddingBagCollection(configs(), DIM, device=device, dense_device=CPU)
    torch.manual_seed(SEED)
    for projection in collection.projections.parameters():
        nn.init.normal_(projection)
    return DLRM(collection, 3, [8, DIM], [8, 1], dense_device=CPU), collection


Pieces = dict[str, list[tuple[tuple[int, ...], torch.Tensor]]]


def train_sharded(kinds: ShardingConfig) -> tuple[list[torch.Tensor], Pieces]:
    """The logits of each step and of one more forward; then every local piece of a weight with its offset."""
    world = here()
    dlrm, collection = build(torch.device("meta"))
    task = BinaryRankingTask(dlrm, 2)
    optimize_tables_in_backward(collection.tables, SGD)
    plan = make_plan(
        task,
        collection.tables,
        live_topology(CPU, world_size=2, local_size=2),
        kinds,
        batch_size=BATCH,
        spec=SPEC,
        group=world.control,
    )
    model = DistributedModelParallel(task, device=CPU, plan=plan, sharders=plan.sharders)
    initialize_tables(model, seed=SEED)
    pipeline = train_pipeline(model, build_optimizer(model, SGD, SGD), world)
    assert isinstance(pipeline, TrainPipelineSparseDist)
    batches = iter([batch(step, world.rank) for step in range(STEPS)])
    logits = [pipeline.progress(batches)[1] for _ in range(STEPS)]
    overlapped = [part for part in model.modules() if isinstance(part.forward, PipelinedForward)]
    assert len(overlapped) == 1
    with torch.no_grad():
        logits.append(pipeline.detach()(batch(STEPS, world.rank))[1][1])
        keys = dlrm.sparse_arch.embedding_bag_collection(batch(STEPS, world.rank).sparse_features).keys()
    assert keys == ["f0", "f3", "f1", "f2", "f4"]  # whatever the plan's order
    pieces: Pieces = {}
    for name, value in model.state_dict().items():
        shards = value.local_shards() if isinstance(value, ShardedTensor) else []
        pieces[name] = [(tuple(shard.metadata.shard_offsets), shard.tensor.detach().clone()) for shard in shards]
        if not isinstance(value, ShardedTensor):
            pieces[name] = [((0,) * value.dim(), value.detach().clone())]
    return logits, pieces


def train_unsharded() -> tuple[list[list[torch.Tensor]], dict[str, torch.Tensor]]:
    """The logits of each step by rank, and of one more forward, of plain PyTorch; then the weights."""
    dlrm, collection = build(CPU)
    for table in configs():
        weight = collection.tables.embedding_bags[table.name].weight.data
        fill_table(weight, [InitialRows.plain(table.num_embeddings)], seed=SEED, table=table.name)
    optimizer = torch.optim.SGD(dlrm.parameters(), lr=SGD.lr)
    logits = []
    for step in range(STEPS + 1):
        both = [batch(step, rank) for rank in range(2)]
        outputs = [dlrm(part.dense_features, part.sparse_features).squeeze(-1) for part in both]
        labels = torch.cat([part.labels for part in both])
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(torch.cat(outputs), labels).backward()
        if step < STEPS:
            optimizer.step()
        logits.append([output.detach() for output in outputs])
    return logits, dlrm.state_dict()


MIXED = {"t0": "row_wise", "t1": "table_wise", "t2": "data_parallel", "t3": "column_wise"}


@pytest.mark.parametrize(
    "kinds",
    [
        ShardingConfig(kind="table_wise"),
        ShardingConfig(kind="row_wise", tables={"t2": "table_wise"}),  # t2 is averaged
        ShardingConfig(kind="column_wise"),
        ShardingConfig(tables=MIXED),  # type: ignore[arg-type]  # literals
    ],
    ids=["table_wise", "row_wise", "column_wise", "mixed"],
)
def test_sharded_and_pipelined_equals_unsharded(kinds: ShardingConfig) -> None:
    expected_logits, expected = train_unsharded()
    results = run_ranks(2, train_sharded, kinds)
    initial = build(CPU)[0].state_dict()
    covered = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    for rank, (logits, pieces) in enumerate(results):
        torch.testing.assert_close(logits, [by_rank[rank] for by_rank in expected_logits], rtol=1e-5, atol=1e-6)
        assert {name.removeprefix("model.") for name in pieces} == set(expected)
        for name, local in pieces.items():
            weight = expected[name.removeprefix("model.")]
            for offset, piece in local:
                place = tuple(slice(start, start + size) for start, size in zip(offset, piece.shape, strict=True))
                torch.testing.assert_close(piece, weight[place], rtol=1e-5, atol=1e-6)
                covered[name.removeprefix("model.")][place] = 1
    assert all(bool(mask.all()) for mask in covered.values())
    assert all(not torch.allclose(initial[name], expected[name], atol=1e-4) for name in expected if "projec" in name)
