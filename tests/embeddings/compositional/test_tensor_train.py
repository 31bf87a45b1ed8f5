"""Tensor trains: the published formula, how they are stored, read and sized."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import MixedRadix
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.sizes import (
    chinese_remainder_for_collisions,
    mixed_radix_for_collisions,
    quotient_remainder_for_collisions,
)
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain, even_factors, tensor_train_for_rows
from tests.embeddings.compositional.test_operations import (
    LONG,
    SHORT,
    assert_as_defined,
    initial_weight,
    random_weight,
    stacked,
    vectors,
)

RADICES = (4, 5, 3)
NUM_IDS = prod(RADICES)


def test_published_formula() -> None:
    """W[(i1, j1), (i2, j2), (i3, j3)] = G1[i1, j1] G2[i2, j2] G3[i3, j3], equation 3 of arXiv 2101.11714."""
    rank = 5
    config = stacked(MixedRadix(NUM_IDS, RADICES), TensorTrain(rank), dim=24)
    weight = random_weight(config)
    first, second, third = weight.split(config.stack.sizes)
    g1 = first.view(4, 2, 12)  # classes, d1, first rank
    g2 = second.view(5, -1)[:, : 12 * 3 * rank].view(5, 12, 3, rank)
    g3 = third.view(3, -1)[:, : rank * 4].view(3, rank, 4)
    whole = torch.einsum("xar,yrbs,zsc->zyxabc", g1, g2, g3)  # the first digit of an id counts least
    torch.testing.assert_close(vectors(config, weight), whole.reshape(NUM_IDS, 24), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "rank", "rows"),
    [
        (16, 4, (1, 4, 1)),  # 2 x 8, 8 x 2 x 4 and 4 x 4 numbers: no unused ones
        (16, 6, (1, 6, 2)),  # 24 numbers in 2 rows
        (64, 16, (1, 16, 1)),  # 4 x 16, 16 x 4 x 16 and 16 x 4
        (128, 8, (1, 8, 1)),  # 4 x 32, 32 x 4 x 8 and 8 x 8: half of the last row is unused
        (7, 2, (1, 2, 2)),  # 1 x 7, 7 x 1 x 2 and 2 x 7: a prime dim cannot be split
    ],
)
def test_rows_of_a_class(dim: int, rank: int, rows: tuple[int, ...]) -> None:
    assert TensorTrain(rank).class_rows(dim, 3) == rows


def test_two_and_four_cores() -> None:
    assert TensorTrain(9).class_rows(64, 2) == (1, 1)  # 8 x 8 and 8 x 8, whatever the rank is
    assert TensorTrain(4).class_rows(81, 4) == (1, 4, 1, 1)  # 3 x 27, 27 x 3 x 4, 4 x 3 x 4 and 4 x 3


@given(product_=st.integers(1, 400), k=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_factors_are_the_most_even_ones(product_: int, k: int) -> None:
    found = even_factors(product_, k)
    divisors = [d for d in range(1, product_ + 1) if product_ % d == 0]
    all_sums = [
        sum(each) + product_ // prod(each) for each in product(divisors, repeat=k - 1) if product_ % prod(each) == 0
    ]
    assert prod(found) == product_
    assert list(found) == sorted(found)
    assert sum(found) == min(all_sums)


def test_ids_of_long_bags_are_summed_by_class_first() -> None:
    config = stacked(MixedRadix(95, (48, 2, 1)), TensorTrain(3))
    later = sum(config.stack.sizes[1:])
    for weights in (None, torch.rand(sum(map(len, LONG)))):
        assert assert_as_defined(config, LONG, weights) == [2 * len(LONG) + later]
    learned = torch.rand(sum(map(len, LONG)), requires_grad=True)
    distinct = {x for bag in LONG for x in bag}
    assert assert_as_defined(config, LONG, learned) == [len(distinct) + later]
    assert assert_as_defined(config, SHORT, None) == [len({x for bag in SHORT for x in bag}) + later]


def test_unused_numbers_learn_nothing() -> None:
    config = stacked(MixedRadix(NUM_IDS, RADICES), TensorTrain(3), dim=24)  # 12 numbers of a last core in rows of 24
    weight = random_weight(config).requires_grad_()
    vectors(config, weight).sum().backward()
    assert weight.grad is not None
    assert not weight.grad[-3:, 12:].any()
    assert weight.grad[-3:, :12].all()


@pytest.mark.parametrize("dim", [16, 24])
def test_initial_vectors_have_the_moments_of_a_plain_table(dim: int) -> None:
    torch.manual_seed(0)
    config = stacked(MixedRadix(1000, (10, 10, 10)), TensorTrain(4), dim=dim)
    drawn = torch.stack([vectors(config, initial_weight(config)) for _ in range(60)]).double() * 3000**0.5
    assert abs(drawn.mean()) < 0.03
    assert drawn.square().mean() == pytest.approx(1, rel=0.05)


KINDS: dict[str, Callable[[int, int], Partition]] = {
    "radix 3": partial(mixed_radix_for_collisions, k=3),
    "moduli 3": partial(chinese_remainder_for_collisions, k=3),
    "radix 4": partial(mixed_radix_for_collisions, k=4),
    "quotients": quotient_remainder_for_collisions,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_ids", "max_rows"), [(20_011, 5000), (20_011, 400), (997, 120), (50, 40)])
def test_rows_include_cores(kind: str, num_ids: int, max_rows: int) -> None:
    of_collisions = partial(KINDS[kind], num_ids)
    partition, operation = tensor_train_for_rows(of_collisions, 16, max_rows=max_rows, rank=4)
    config = stacked(partition, operation, dim=16)
    assert config.num_embeddings <= max_rows
    assert operation.rank == 4
    fitting = [
        each.classes
        for each in map(of_collisions, range(1, 2 + 2 * num_ids // partition.classes[0]))
        if sum(c * r for c, r in zip(each.classes, config.stack.class_rows, strict=True)) <= max_rows
    ]
    assert partition.classes[0] >= 0.97 * max(classes[0] for classes in fitting)  # bisection is a little off


def test_few_rows_lower_the_rank() -> None:
    ranks = [
        tensor_train_for_rows(partial(KINDS["radix 3"], 20_011), 16, max_rows=rows, rank=8)[1].rank
        for rows in (110, 200, 400)
    ]
    assert 1 <= ranks[0] < ranks[1] < ranks[2] == 8


def test_too_few_rows() -> None:
    with pytest.raises(
        ValueError, match="max_rows must hold a tensor train of rank 1 for 20011 ids in 3 partitions: got"
    ):
        tensor_train_for_rows(partial(KINDS["radix 3"], 20_011), 16, max_rows=50, rank=8)


def test_a_rank_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="rank of a tensor train must be at least 1: got 0; the paper uses 8 to 64"):
        TensorTrain(0)
