"""Operations against plain float64 loops and the published formulas, the reference's defects, and initial weights."""

from __future__ import annotations

from math import gcd, prod

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchrec.modules.embedding_configs import PoolingType

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.collection import LookUpIn
from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.sizes import optimal_mixed_radix
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.pooling import pool_ids
from dlrm_torchrec.embeddings.compositional.table_configs import (
    CompositionalEmbeddingBagConfig,
    StackedEmbeddingBagConfig,
)
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain
from tests.embeddings.compositional import reference

NUM_IDS, DIM = 95, 12
PARTITIONS = {
    "naive": Naive(NUM_IDS),
    "hash": Hash(NUM_IDS, 24),
    "quotient-remainder": QuotientRemainder(NUM_IDS, 4),
    "mixed-radix": MixedRadix(NUM_IDS, (12, 4, 2)),
    "chinese-remainder": ChineseRemainder(NUM_IDS, (32, 3)),
    "hot-hash": HotCold(11, Hash(NUM_IDS - 11, 8)),
    "hot-quotient-remainder": HotCold(11, QuotientRemainder(NUM_IDS - 11, 6)),
    "hot-in-all": HotCold(11, ChineseRemainder(NUM_IDS - 11, (4, 3, 7)), own_in_all=True),
    "assigned": Assigned.from_clusters(torch.randperm(NUM_IDS, generator=torch.Generator().manual_seed(0)) // 4),
    "clusters-and-hash": Together((Assigned([torch.arange(NUM_IDS) // 4 * 2], complementary=False), Hash(NUM_IDS, 4))),
}
FEW_COMBINATIONS = [
    name for name, each in PARTITIONS.items() if len(each.classes) > 1 and prod(each.classes[1:]) < NUM_IDS / 2
]
OPERATIONS = {
    "add": Add(),
    "concat": Concat(),
    "mult-around-1": Mult(center=1.0, spread=0.5),
    "mult-around-0": Mult(),
    "path-linear": Path(hidden=0),
    "path-7": Path(hidden=7),
    "path-24": Path(hidden=24),
    "feature-generation": FeatureGeneration(),
    "tensor-train-2": TensorTrain(rank=2),
    "tensor-train-5": TensorTrain(rank=5),
}
POOLINGS = [PoolingType.SUM, PoolingType.MEAN]
SHORT = [[3, 57, 91], [], [0], [94, 94], [], [5, 6, 5, 6, 5], [0]]
LONG = [[*range(0, 90, 3), 9, 9, 9], [4, 5, 6, 7] * 4, [], [94] * 12]
SHAPES = [SHORT, LONG, [[], [], []], [[8]], []]


def stacked(
    partition: Partition, operation: Operation, dim: int = DIM, pooling: PoolingType = PoolingType.SUM
) -> StackedEmbeddingBagConfig:
    return CompositionalEmbeddingBagConfig(
        num_embeddings=partition.num_ids,
        embedding_dim=dim,
        name="t",
        feature_names=["f"],
        pooling=pooling,
        partition=partition,
        operation=operation,
    ).stacked()


def as_bags(bags: list[list[int]], weights: torch.Tensor | None = None) -> Bags:
    values = torch.tensor([x for bag in bags for x in bag], dtype=torch.int64)
    return Bags(values, torch.tensor([len(bag) for bag in bags], dtype=torch.int64), weights)


def initial_weight(config: StackedEmbeddingBagConfig) -> torch.Tensor:
    assert config.init_fn is not None
    return config.init_fn(torch.empty(config.num_embeddings, config.embedding_dim))


def random_weight(config: StackedEmbeddingBagConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(config.num_embeddings, config.embedding_dim, generator=generator, dtype=torch.float64)


class RecordedLookUp:
    """Looks up in ``weight`` in its own precision, and keeps the number of bags of each call."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._look_up = LookUpIn(weight)
        self.num_bags: list[int] = []

    def __call__(self, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        self.num_bags.append(len(offsets) - 1)
        return self._look_up(rows, offsets, None if weights is None else weights.to(self._look_up.weight.dtype))


def assert_as_defined(
    config: StackedEmbeddingBagConfig, bags: list[list[int]], weights: torch.Tensor | None
) -> list[int]:
    """Forward and gradients are those of the plain loops; returns the bags of each lookup."""
    partition, operation = config.logical.partition, config.operation
    ours, theirs = random_weight(config).requires_grad_(), random_weight(config).requires_grad_()
    their_weights = None if weights is None else weights.detach().double().requires_grad_()
    look_up = RecordedLookUp(ours)
    found = pool_ids(config, as_bags(bags, weights), look_up)
    expected = reference.pooled(operation, partition, theirs, bags, their_weights, config.pooling is PoolingType.MEAN)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    towards = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found.backward(towards)
    assert ours.grad is not None
    if any(bags):
        expected.backward(towards)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
        assert ours.grad.any()
        if weights is not None and weights.requires_grad:
            assert their_weights is not None
            assert their_weights.grad is not None
            torch.testing.assert_close(weights.grad, their_weights.grad.to(weights.dtype))
    else:
        assert not ours.grad.any()
    return look_up.num_bags


@pytest.mark.parametrize("weighted", ["unweighted", "weighted", "learned-weights"])
@pytest.mark.parametrize("pooling", POOLINGS, ids=["sum", "mean"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_pooled_and_gradients(partition: Partition, operation: Operation, pooling: PoolingType, weighted: str) -> None:
    config = stacked(partition, operation, pooling=pooling)
    for bags in SHAPES:
        weights = torch.rand(sum(map(len, bags)), generator=torch.Generator().manual_seed(3))
        weights.requires_grad_(weighted == "learned-weights")
        assert_as_defined(config, bags, None if weighted == "unweighted" else weights)


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    num_ids = draw(st.integers(1, 40))
    match draw(st.sampled_from(["hash", "hot-cold", "quotient-remainder", "mixed-radix", "chinese-remainder"])):
        case "hash":
            return Hash(num_ids, draw(st.integers(1, 50)))
        case "hot-cold":
            return HotCold(draw(st.integers(1, 20)), QuotientRemainder(num_ids, draw(st.integers(1, 50))))
        case "quotient-remainder":
            return QuotientRemainder(num_ids, draw(st.integers(1, 50)))
        case "mixed-radix":
            radices = draw(st.lists(st.integers(1, 5), max_size=3))
            return MixedRadix(num_ids, (*radices, -(-num_ids // prod(radices))))
    one, other = draw(st.tuples(st.integers(1, 9), st.integers(1, 50)))
    assume(gcd(one, other) == 1 and one * other >= num_ids)
    return ChineseRemainder(num_ids, (one, other))


operations = st.sampled_from([Add(), Concat(), Mult(), FeatureGeneration()])
operations |= st.integers(0, 9).map(Path) | st.integers(1, 9).map(TensorTrain)


@settings(max_examples=60, deadline=None)
@given(partition=partitions(), operation=operations, columns=st.integers(1, 4), data=st.data())
def test_any_bags_and_class_counts(
    partition: Partition, operation: Operation, columns: int, data: st.DataObject
) -> None:
    ids = st.integers(0, partition.num_ids - 1)
    bags = data.draw(st.lists(st.lists(ids, max_size=12), max_size=5))
    config = stacked(partition, operation, columns * len(partition.classes), data.draw(st.sampled_from(POOLINGS)))
    weights = torch.rand(sum(map(len, bags))) if data.draw(st.booleans()) else None
    assert_as_defined(config, bags, weights)


@pytest.mark.parametrize("name", FEW_COMBINATIONS)
def test_mult_sums_by_class_where_bags_are_long(name: str) -> None:
    config = stacked(PARTITIONS[name], Mult())
    k, combinations = len(config.stack.sizes), prod(config.stack.sizes[1:])
    at_the_limit = [list(range(2 * combinations - 1)), [7]]
    for bags in (LONG, at_the_limit):
        by_class = combinations * len(bags) + (k - 1) * combinations
        assert assert_as_defined(config, bags, None) == [by_class]
        assert assert_as_defined(config, bags, torch.rand(sum(map(len, bags)))) == [by_class]


@pytest.mark.parametrize("name", FEW_COMBINATIONS)
def test_mult_looks_up_each_id_where_bags_are_short_or_weights_learn(name: str) -> None:
    config = stacked(PARTITIONS[name], Mult())
    k, combinations = len(config.stack.sizes), prod(config.stack.sizes[1:])
    below_the_limit = [list(range(2 * combinations - 1)), []]
    for bags in (SHORT, below_the_limit):
        assert assert_as_defined(config, bags, None) == [k * sum(map(len, bags))]
    num_ids = sum(map(len, LONG))
    for weights in (torch.rand(num_ids, requires_grad=True), torch.rand(num_ids, dtype=torch.float64)):
        assert assert_as_defined(config, LONG, weights) == [k * num_ids]


def test_path_sends_an_id_through_its_network_once() -> None:
    config = stacked(PARTITIONS["quotient-remainder"], Path(hidden=7))
    for bags in (SHORT, LONG):
        distinct = {x for bag in bags for x in bag}
        assert assert_as_defined(config, bags, None) == [len(distinct) + config.stack.sizes[1]]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("bags", [SHORT, LONG], ids=["short", "long"])
def test_half_precision_tables(operation: Operation, bags: list[list[int]]) -> None:
    config = stacked(PARTITIONS["quotient-remainder"], operation)
    weight = (random_weight(config) / 4).half()
    weights = torch.rand(sum(map(len, bags))).half()
    found = pool_ids(config, as_bags(bags, weights), LookUpIn(weight))
    expected = reference.pooled(operation, config.logical.partition, weight.double(), bags, weights.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)


def one_hot(partition: Partition, j: int) -> torch.Tensor:
    """The published matrix (classes of P_j, ids) that is 1 where an id is of a class."""
    return torch.tensor(
        [
            [float(reference.classes_of(partition, x)[j] == c) for x in range(partition.num_ids)]
            for c in range(partition.classes[j])
        ],
        dtype=torch.float64,
    )


def vectors(config: StackedEmbeddingBagConfig, weight: torch.Tensor) -> torch.Tensor:
    """The vector of every id."""
    return pool_ids(config, as_bags([[x] for x in range(config.stack.partition.num_ids)]), LookUpIn(weight))


@pytest.mark.parametrize("operation", [Add(), Concat(), Mult()])
def test_published_formula_of_quotient_remainder(operation: Operation) -> None:
    """x_emb = W1^T R e ∘ W2^T Q e, equation 2 and section 4 of arXiv 1909.02107."""
    partition = PARTITIONS["quotient-remainder"]
    config = stacked(partition, operation)
    weight = random_weight(config)
    w1, w2 = weight.split(list(partition.classes))
    one, two = (w1.T @ one_hot(partition, 0)).T, (w2.T @ one_hot(partition, 1)).T
    expected = {Add: one + two, Concat: torch.cat([one, two], dim=1), Mult: one * two}[type(operation)]
    torch.testing.assert_close(vectors(config, weight), expected, rtol=1e-12, atol=1e-12)


def test_published_formula_of_hashing() -> None:
    config = stacked(PARTITIONS["hash"], Add())
    weight = random_weight(config)
    torch.testing.assert_close(vectors(config, weight), (weight.T @ one_hot(PARTITIONS["hash"], 0)).T)


@pytest.mark.parametrize("hidden", [0, 7, 12, 30])
def test_published_formula_of_the_path(hidden: int) -> None:
    """x_emb = M_{p3(x)}(M_{p2(x)}(W e_{p1(x)})), every id through all networks, of which the one-hots choose."""
    partition = PARTITIONS["mixed-radix"]
    config = stacked(partition, Path(hidden=hidden))
    weight = random_weight(config) / 4
    table, *networks = weight.split(config.stack.sizes)
    expected = one_hot(partition, 0).T @ table
    for j, of_partition in enumerate(networks, start=1):
        each = of_partition.unflatten(0, (partition.classes[j], -1))
        through_all = torch.stack([torch.stack([reference.path(m, hidden, x) for x in expected]) for m in each])
        expected = torch.einsum("cn,cnd->nd", one_hot(partition, j), through_all)
    torch.testing.assert_close(vectors(config, weight), expected, rtol=1e-10, atol=1e-10)


def test_mult_of_a_bag_is_the_sum_of_products() -> None:
    """The reference multiplies the sums of the bag {3, 57, 91}."""
    partition = PARTITIONS["quotient-remainder"]
    config = stacked(partition, Mult())
    weight = random_weight(config)
    quotients, remainders = weight[: partition.classes[0]], weight[partition.classes[0] :]
    q, r = quotients[[0, 14, 22]], remainders[[3, 1, 3]]
    found = pool_ids(config, as_bags([[3, 57, 91]]), LookUpIn(weight))[0]
    torch.testing.assert_close(found, (q * r).sum(0))
    assert not torch.allclose(found, q.sum(0) * r.sum(0))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("bags", [[[3, 57, 91]], LONG[:1]], ids=["short", "long"])
def test_a_weight_of_two_doubles(operation: Operation, bags: list[list[int]]) -> None:
    """The reference scales by 4."""
    config = stacked(PARTITIONS["quotient-remainder"], operation)
    look_up = RecordedLookUp(random_weight(config))
    twos = torch.full((len(bags[0]),), 2.0)
    found = pool_ids(config, as_bags(bags, twos), look_up)
    torch.testing.assert_close(found, 2 * pool_ids(config, as_bags(bags), look_up))


@pytest.mark.parametrize("operation", [Mult(), Mult(center=1.0, spread=0.5), Path(hidden=8)])
def test_bags_of_swapped_remainders_differ(operation: Operation) -> None:
    """In the reference {12, 34} and {14, 32} collide at 10 collisions: their quotients and remainders are the same."""
    config = stacked(QuotientRemainder(NUM_IDS, 10), operation)
    one, other = pool_ids(config, as_bags([[12, 34], [14, 32]]), LookUpIn(random_weight(config)))
    assert ((one - other).abs() > 1e-3).all()


@pytest.mark.parametrize(
    ("num_ids", "collisions"), [(2**24 + 3, 3), (40_000_000, 3), (40_000_000, 4), (2**31 + 9, 4), (2**40, 2**20)]
)
def test_ids_beyond_float32_and_int32_find_their_rows(num_ids: int, collisions: int) -> None:
    """The reference divides in float32, which is wrong from 2^24 on."""
    config = stacked(QuotientRemainder(num_ids, collisions), Concat(), dim=2)
    generator = torch.Generator().manual_seed(0)
    ids = [0, 2**24 + 1, num_ids - 2, num_ids - 1, *torch.randint(num_ids, (200,), generator=generator).tolist()]
    found = pool_ids(config, as_bags([[x] for x in ids]), lambda rows, *_: rows.double().unsqueeze(1))
    assert found.tolist() == [[x // collisions, -(-num_ids // collisions) + x % collisions] for x in ids]


def test_a_table_beyond_int32() -> None:
    config = stacked(QuotientRemainder(2**31 + 9, 2**16), Mult(), dim=1)
    weight = random_weight(config)
    ids = [2**31 + 8, 2**31, 2**31 - 1, 2**24 + 1]
    expected = [weight[x >> 16] * weight[2**15 + 1 + x % 2**16] for x in ids]
    assert torch.equal(pool_ids(config, as_bags([[x] for x in ids]), LookUpIn(weight)), torch.stack(expected))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    ("partition", "dim"),
    [
        (QuotientRemainder(1000, 4), 16),
        (QuotientRemainder(300, 20), 4),
        (optimal_mixed_radix(5000, 2), 8),
        pytest.param(optimal_mixed_radix(1000, 3), 12, marks=pytest.mark.slow),
        (ChineseRemainder(1000, (11, 13, 7)), 3),
        (Hash(1000, 250), 16),
        (HotCold(100, QuotientRemainder(900, 25)), 16),
    ],
)
def test_initial_vectors_have_the_moments_of_a_plain_table(
    operation: Operation, partition: Partition, dim: int
) -> None:
    torch.manual_seed(0)
    config = stacked(partition, operation, dim)
    drawn_per_table = dim * min(partition.classes)
    ids = torch.randperm(partition.num_ids)[:300]
    bags = Bags(ids, torch.ones_like(ids), None)
    draws = []
    for _ in range(-(-10_000 // drawn_per_table)):
        weight = initial_weight(config)
        draws.append(pool_ids(config, bags, LookUpIn(weight)))
    drawn = torch.stack(draws).double() * (3 * partition.num_ids) ** 0.5
    assert abs(drawn.mean()) < 0.03
    assert drawn.square().mean() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("partition", PARTITIONS.values(), ids=PARTITIONS)
def test_distinct_ids_have_distinct_initial_vectors(partition: Partition, operation: Operation) -> None:
    torch.manual_seed(0)
    config = stacked(partition, operation)
    weight = initial_weight(config)
    distinct = len(vectors(config, weight).unique(dim=0))
    assert distinct == len({reference.classes_of(partition, x) for x in range(NUM_IDS)})


@pytest.mark.parametrize("operation", [Add(), Concat()])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_several_hashes_into_one_table(operation: Operation, pooling: PoolingType, weighted: bool) -> None:
    config = stacked(Hashes(NUM_IDS, 17, 3), operation, pooling=pooling)
    assert config.num_embeddings == 17
    hot = stacked(HotCold(11, Hashes(NUM_IDS - 11, 17, 3), own_in_all=True), operation, pooling=pooling)
    assert hot.num_embeddings == 3 * 11 + 17
    for bags in SHAPES:
        for each in (config, hot):
            assert_as_defined(each, bags, torch.rand(sum(map(len, bags))) if weighted else None)


def test_several_hashes_cannot_be_multiplied() -> None:
    with pytest.raises(ValueError, match="operation of table 't' must be add or concat for several hashes into the"):
        stacked(Hashes(NUM_IDS, 17, 3), Mult())


def test_negative_hidden_units_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden units of a path must be 0 \(linear\) or more: got -1; the paper"):
        Path(hidden=-1)


@pytest.mark.parametrize(("center", "spread"), [(0, 0), (1, -0.5)])
def test_factors_that_cannot_start(center: float, spread: float) -> None:
    with pytest.raises(ValueError, match=rf"factors of a product must start as .* got center {center} and spread"):
        Mult(center=center, spread=spread)
