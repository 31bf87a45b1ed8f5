"""The collection against TorchRec's own, the definitions, TorchRec's models and their initial loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.sizes import (
    chinese_remainder_for_collisions,
    hash_for_collisions,
    mixed_radix_for_collisions,
    quotient_remainder_for_collisions,
)
from dlrm_torchrec.embeddings.compositional.table_configs import CompositionalEmbeddingBagConfig
from tests.embeddings.compositional import reference

FEATURES = ["a", "b", "c", "d", "e", "f"]
IDS = 50  # of every table, so that a feature may feed any of them
QR = QuotientRemainder(IDS, 4)
plain = partial(EmbeddingBagConfig, num_embeddings=IDS, embedding_dim=8)
composed = partial(CompositionalEmbeddingBagConfig, num_embeddings=IDS, embedding_dim=8, partition=QR)


def mixed_tables(plain_pooling: PoolingType = PoolingType.MEAN) -> list[EmbeddingBagConfig]:
    """Plain and compositional tables of several dims and several features, of which a, d and e are shared."""
    return [
        plain(name="plain", feature_names=["b", "a"], pooling=plain_pooling),
        composed(name="mult", embedding_dim=4, feature_names=["c", "a"], pooling=PoolingType.MEAN),
        composed(
            name="concat",
            embedding_dim=12,
            feature_names=["d", "e"],
            partition=MixedRadix(IDS, (5, 5, 2)),
            operation=Concat(),
        ),
        composed(name="hash", embedding_dim=4, feature_names=["e"], partition=Hash(IDS, 9), operation=Add()),
        plain(name="last", embedding_dim=4, feature_names=["d"]),
        composed(name="path", feature_names=["f"], partition=ChineseRemainder(IDS, (11, 5)), operation=Path(hidden=9)),
    ]


def logical(tables: list[EmbeddingBagConfig]) -> list[EmbeddingBagConfig]:
    """Plain tables of the same names, rows, dims and features."""
    return [
        EmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            feature_names=list(table.feature_names),
        )
        for table in tables
    ]


def random_bags(features: list[str], weighted: bool = False, batch_size: int = 7) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 6, (len(features) * batch_size,), generator=generator)
    values = torch.randint(IDS, (int(lengths.sum()),), generator=generator)
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return KeyedJaggedTensor(keys=features, values=values, lengths=lengths, weights=weights)


def as_defined(
    collection: CompositionalEmbeddingBagCollection, table: EmbeddingBagConfig, name: str, features: KeyedJaggedTensor
) -> torch.Tensor:
    """The vectors of one feature of one table."""
    compositional = isinstance(table, CompositionalEmbeddingBagConfig)
    bags = features[name]
    weights = bags.weights_or_none()
    return reference.pooled(
        table.operation if compositional else Add(),
        table.partition if compositional else Naive(IDS),
        collection.embedding_bags[table.name].weight.detach().double(),
        [bag.tolist() for bag in bags.values().split(bags.lengths().tolist())],
        None if weights is None else weights.double(),
        table.pooling is PoolingType.MEAN,
    ).float()


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_keys_order_and_dims_are_torchrecs_and_vectors_as_defined(weighted: bool) -> None:
    tables = mixed_tables(PoolingType.SUM if weighted else PoolingType.MEAN)
    collection = CompositionalEmbeddingBagCollection(tables, is_weighted=weighted)
    features = random_bags(FEATURES[::-1], weighted)
    found = collection(features)
    like = EmbeddingBagCollection(logical(tables), is_weighted=weighted)(features)
    keys = ["b", "a@plain", "c", "a@mult", "d@concat", "e@concat", "e@hash", "d@last", "f"]
    assert found.keys() == like.keys() == keys
    assert found.length_per_key() == like.length_per_key() == [8, 8, 4, 4, 12, 12, 4, 4, 8]
    assert (found.values().shape, found.values().dtype) == (like.values().shape, like.values().dtype)
    fed = [(table, feature) for table in tables for feature in table.feature_names]
    for key, (table, feature) in zip(keys, fed, strict=True):
        torch.testing.assert_close(found[key].detach(), as_defined(collection, table, feature, features))


def test_feature_generation_gives_one_key_per_partition() -> None:
    table = composed(
        name="t", feature_names=["b", "a"], partition=MixedRadix(IDS, (5, 5, 2)), operation=FeatureGeneration()
    )
    collection = CompositionalEmbeddingBagCollection([plain(name="p", feature_names=["c"]), table])
    features = random_bags(["a", "b", "c"])
    found = collection(features)
    assert found.keys() == ["c", "b#0", "b#1", "b#2", "a#0", "a#1", "a#2"]
    assert found.length_per_key() == [8] * 7
    for name in ("a", "b"):
        vectors = torch.cat([found[f"{name}#{j}"] for j in range(3)], dim=1).detach()
        torch.testing.assert_close(vectors, as_defined(collection, table, name, features))
    model = collection.embedding_bag_configs()[1]
    assert (model.num_embeddings, model.embedding_dim, model.feature_names) == (IDS, 8, found.keys()[1:])


def test_models_see_logical_tables_and_checkpoints_physical_ones() -> None:
    tables = mixed_tables()
    collection = CompositionalEmbeddingBagCollection(tables)
    for seen, table in zip(collection.embedding_bag_configs(), tables, strict=True):
        for entry in ("name", "num_embeddings", "embedding_dim", "feature_names", "pooling", "data_type"):
            assert getattr(seen, entry) == getattr(table, entry)
    networks = 2 * 9 + 2 + 1
    physical = {
        "plain": (IDS, 8), "mult": (13 + 4, 4), "concat": (5 + 5 + 2, 4), "hash": (9, 4), "last": (IDS, 4),
        "path": (11 + 5 * networks, 8),
    }  # fmt: skip
    assert {c.name: (c.num_embeddings, c.embedding_dim) for c in collection.physical_configs()} == physical
    shapes = {name: tuple(values.shape) for name, values in collection.state_dict().items()}
    assert shapes == {f"embedding_bags.{name}.weight": shape for name, shape in physical.items()}
    assert collection.physical().state_dict().keys() == shapes.keys()


def test_a_state_dict_brings_the_same_vectors() -> None:
    one, other = (CompositionalEmbeddingBagCollection(mixed_tables()) for _ in range(2))
    features = random_bags(FEATURES)
    assert not torch.equal(one(features).values(), other(features).values())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(features).values(), other(features).values())


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("operation", [Add(), Concat(), Mult(), Path()])
def test_one_class_per_id_is_a_plain_table(operation: Operation, weighted: bool) -> None:
    table = composed(name="t", feature_names=["a", "b"], partition=Naive(IDS), operation=operation)
    collection = CompositionalEmbeddingBagCollection([table], is_weighted=weighted)
    like = EmbeddingBagCollection(logical([table]), is_weighted=weighted)
    like.load_state_dict(collection.state_dict())
    features = random_bags(["a", "b"], weighted)
    found, expected = collection(features).values(), like(features).values()
    if isinstance(operation, Add):
        assert torch.equal(found, expected)  # the same lookups by the same kernel
    torch.testing.assert_close(found, expected)
    for each in (found, expected):
        each.square().sum().backward()
    torch.testing.assert_close(
        collection.embedding_bags["t"].weight.grad, like.embedding_bags["t"].weight.grad, rtol=1e-5, atol=1e-6
    )


def test_a_table_without_features_is_fed_by_its_own_name() -> None:
    collection = CompositionalEmbeddingBagCollection([composed(name="a")])
    assert collection(random_bags(["a"])).keys() == ["a"]
    assert collection.embedding_bag_configs()[0].feature_names == ["a"]


def test_int32_ids_and_lengths() -> None:
    collection = CompositionalEmbeddingBagCollection(mixed_tables())
    features = random_bags(FEATURES)
    short = KeyedJaggedTensor(keys=FEATURES, values=features.values().int(), lengths=features.lengths().int())
    torch.testing.assert_close(collection(short).values(), collection(features).values())


def test_half_precision_tables_give_float32() -> None:
    half = CompositionalEmbeddingBagCollection([composed(name="t", feature_names=["a"], data_type=DataType.FP16)])
    full = CompositionalEmbeddingBagCollection([composed(name="t", feature_names=["a"])])
    assert half.embedding_bags["t"].weight.dtype == torch.float16
    full.load_state_dict(half.state_dict())
    features = random_bags(["a"])
    assert half(features).values().dtype == torch.float32
    torch.testing.assert_close(half(features).values(), full(features).values(), rtol=0.02, atol=0.02)


def test_batches_without_repeated_rows_are_expanded_as_by_torchrec() -> None:
    """A KJT of variable strides: a row of a feature is sent once, and its inverse indices say where it belongs."""
    features = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 3, 4]),
        lengths=torch.tensor([1, 1, 2]),
        stride_per_key_per_rank=[[2], [1]],
        inverse_indices=(["a", "b"], torch.tensor([[0, 1, 0], [0, 0, 0]])),
    )
    whole = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.tensor([1, 2, 1, 3, 4, 3, 4, 3, 4]),
        lengths=torch.tensor([1, 1, 1, 2, 2, 2]),
    )
    tables = [
        composed(name="concat", feature_names=["a", "b"], operation=Concat()),
        composed(name="generated", feature_names=["b"], operation=FeatureGeneration()),
        plain(name="plain", feature_names=["a"]),
    ]
    collection = CompositionalEmbeddingBagCollection(tables)
    torch.testing.assert_close(collection(features).values(), collection(whole).values())


OPERATIONS = [Add(), Concat(), Mult(), Path(hidden=0), Path(hidden=16)]
DIM = 16


def dlrm(tables: EmbeddingBagCollection) -> DLRM:
    return DLRM(tables, 3, [8, DIM], [8, 1])


def dlrm_dcn(tables: EmbeddingBagCollection) -> DLRM_DCN:
    return DLRM_DCN(tables, 3, [8, DIM], [8, 1], dcn_num_layers=2, dcn_low_rank_dim=4)


def deepfm(tables: EmbeddingBagCollection) -> SimpleDeepFMNN:
    return SimpleDeepFMNN(3, tables, hidden_layer_size=8, deep_fm_dimension=4)


@pytest.mark.parametrize("model", [dlrm, dlrm_dcn, deepfm])
def test_every_table_learns_in_torchrecs_models(model: Callable[[EmbeddingBagCollection], nn.Module]) -> None:
    torch.manual_seed(0)
    tables = [
        plain(name="plain", embedding_dim=DIM, feature_names=["a"]),
        *(
            composed(name=f"t{j}", embedding_dim=DIM, feature_names=[f"b{j}"], operation=operation)
            for j, operation in enumerate([*OPERATIONS, FeatureGeneration()])
        ),
    ]
    collection = CompositionalEmbeddingBagCollection(tables)
    features = random_bags([feature for table in tables for feature in table.feature_names], batch_size=64)
    logits = model(collection)(torch.rand(64, 3), features)
    assert logits.shape == (64, 1)
    binary_cross_entropy_with_logits(logits.squeeze(), torch.rand(64).round()).backward()
    for name, weight in collection.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_feature_generation_adds_interactions() -> None:
    def over_features(operation: Operation) -> int:
        tables = [composed(name=name, embedding_dim=DIM, feature_names=[name], operation=operation) for name in "ab"]
        model = dlrm(CompositionalEmbeddingBagCollection(tables))
        model(torch.rand(7, 3), random_bags(["a", "b"]))
        first: nn.Linear = next(module for module in model.over_arch.modules() if isinstance(module, nn.Linear))
        return first.in_features

    assert over_features(Mult()) == DIM + 3  # a, b and the dense vector in pairs
    assert over_features(FeatureGeneration()) == DIM + 10  # two of each in their place


PARTITIONS: dict[str, Callable[[int], Partition]] = {
    "hash": lambda rows: hash_for_collisions(rows, 4),
    "quotient-remainder": lambda rows: quotient_remainder_for_collisions(rows, 4),
    "quotient-remainder-60": lambda rows: quotient_remainder_for_collisions(rows, 60),
    "mixed-radix": lambda rows: mixed_radix_for_collisions(rows, 4, k=3),
    "chinese-remainder": lambda rows: chinese_remainder_for_collisions(rows, 4),
}
SEEDS = range(6)


@cache
def demo_batch() -> Batch:
    return next(SyntheticStream(demo_spec(), num_rows=1024, global_batch_size=1024).batches())


def initial_losses(first_seed: int, partition: Callable[[int], Partition], operation: Operation) -> torch.Tensor:
    """BCE before any training of DLRMs on the demo's first rows: dense weights of ``SEEDS``, tables of others."""
    tables = [
        CompositionalEmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.rows,
            embedding_dim=12,
            feature_names=list(table.features),
            partition=partition(table.rows),
            operation=operation,
        )
        for table in demo_spec().tables(dim=12)
    ]
    batch, losses = demo_batch(), []
    for seed in SEEDS:
        torch.manual_seed(first_seed + seed)
        collection = CompositionalEmbeddingBagCollection(tables)
        torch.manual_seed(seed)
        model = DLRM(collection, len(demo_spec().dense), [64, 12], [64, 32, 1])
        with torch.no_grad():
            logits = model(batch.dense_features, batch.sparse_features).squeeze()
        losses.append(binary_cross_entropy_with_logits(logits, batch.labels))
    return torch.stack(losses)


@cache
def plain_losses() -> torch.Tensor:
    return initial_losses(100, Naive, Add())


COMPRESSED = [
    (name, operation)
    for name in PARTITIONS
    for operation in ([Add()] if name == "hash" else [*OPERATIONS, Mult(center=1.0, spread=0.5)])
]


@pytest.mark.parametrize(("partition", "operation"), COMPRESSED, ids=str)
def test_initial_loss_is_that_of_plain_tables(partition: str, operation: Operation) -> None:
    """The reference starts at 48; other draws of plain tables move it by 1e-4, other dense weights by 0.03."""
    losses = initial_losses(0, PARTITIONS[partition], operation)
    torch.testing.assert_close(losses, plain_losses(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_initial_loss_of_feature_generation_is_that_of_plain_tables(partition: Callable[[int], Partition]) -> None:
    """Within four standard errors: the top has more inputs, and so other weights."""
    losses = initial_losses(0, partition, FeatureGeneration())
    assert abs(losses.mean() - plain_losses().mean()) < 4 * ((losses.var() + plain_losses().var()) / len(SEEDS)) ** 0.5


def look_up_bad_id(value: int, feature: str) -> KeyedTensor:
    table = composed(name="t", feature_names=["a", "b"])
    lengths, values = torch.tensor([1, 0, 2, 1]), torch.tensor([0, 1, 2, 3])
    values[0 if feature == "a" else 2] = value
    return CompositionalEmbeddingBagCollection([table])(
        KeyedJaggedTensor(keys=["a", "b"], values=values, lengths=lengths)
    )


ERRORS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: composed(name="t", num_embeddings=IDS + 1),
        "partition of table 't' must cover its 51 ids: got a partition of 50; make the two equal",
    ),
    (
        lambda: composed(name="t", partition=MixedRadix(IDS, (5, 5, 2)), operation=Concat()),
        "dim of table 't' must be a multiple of 3, its number of partitions, for concat: got 8; change the dim",
    ),
    (
        lambda: composed(name="t", embedding_dim=2, partition=MixedRadix(IDS, (5, 5, 2)), operation=Concat()),
        "dim of table 't' must be a multiple of 3, its number of partitions, for concat: got 2",
    ),
    (
        lambda: composed(name="t", init_fn=torch.nn.init.zeros_),
        "initial weights of table 't' must come from its operation: got an init_fn or limits; leave them out",
    ),
    (lambda: composed(name="t", weight_init_max=0.1), "initial weights of table 't' must come from its operation"),
    (lambda: composed(name="t", weight_init_min=0.0), "initial weights of table 't' must come from its operation"),
    (
        lambda: CompositionalEmbeddingBagCollection([plain(name="p", pooling=PoolingType.MEAN)], is_weighted=True),
        "pooling of plain table 'p' must be sum with per-sample weights, as in PyTorch: got mean; choose sum",
    ),
    (
        lambda: CompositionalEmbeddingBagCollection(
            [composed(name="t", feature_names=["a"]), plain(name="p", feature_names=["b", "a#0"])]
        ),
        "features must not have the name of an output of a compositional table: got 'a#0' in table 'p'; rename it",
    ),
    (
        lambda: look_up_bad_id(-5, "a"),
        r"ids of feature 'a' must be in \[0, 50\), the ids of table 't': got -5; check how that column",
    ),
    (lambda: look_up_bad_id(50, "a"), r"ids of feature 'a' must be in \[0, 50\), the ids of table 't': got 50;"),
    (lambda: look_up_bad_id(-1, "b"), r"ids of feature 'b' must be in \[0, 50\), the ids of table 't': got -1;"),
    (lambda: look_up_bad_id(2**40, "b"), r"ids of feature 'b' must be in .* of table 't': got 1099511627776;"),
]


@pytest.mark.parametrize(("build", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
