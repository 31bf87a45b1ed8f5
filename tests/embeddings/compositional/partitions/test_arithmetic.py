"""Partitions against plain Python integers, small and exhaustively, and sampled up to the end of int64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, count, product
from math import gcd, isqrt, prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.base import Complementary, Partition
from tests.embeddings.compositional.reference import classes_of

INT64_MAX = 2**63 - 1
Kind = Callable[[int], st.SearchStrategy[Complementary]]


def counts(smallest: int, largest: int) -> st.SearchStrategy[int]:
    """Counts from ``smallest`` to ``largest``, every number of bits as likely as another."""
    bits = st.sampled_from(range(smallest.bit_length(), largest.bit_length() + 1))
    return bits.flatmap(lambda n: st.integers(max(smallest, 1 << n - 1), min(largest, (1 << n) - 1)))


def quotient_remainders(num_ids: int) -> st.SearchStrategy[Complementary]:
    return counts(1, min(2 * num_ids, INT64_MAX)).map(lambda m: QuotientRemainder(num_ids, m))


@st.composite
def mixed_radices(draw: st.DrawFn, num_ids: int) -> Complementary:
    radices = draw(st.lists(counts(1, num_ids), max_size=3))
    return MixedRadix(num_ids, (*radices, -(-num_ids // prod(radices))))


@st.composite
def chinese_remainders(draw: st.DrawFn, num_ids: int) -> Complementary:
    moduli: list[int] = []
    for modulus in draw(st.lists(counts(1, isqrt(num_ids)), max_size=3)):
        while gcd(modulus, prod(moduli)) > 1:
            modulus //= gcd(modulus, prod(moduli))
        moduli.append(modulus)
    moduli.append(next(m for m in count(-(-num_ids // prod(moduli))) if gcd(m, prod(moduli)) == 1))
    return ChineseRemainder(num_ids, tuple(draw(st.permutations(moduli))))


KINDS = (lambda num_ids: st.just(Naive(num_ids)), quotient_remainders, mixed_radices, chinese_remainders)


def tuples(partition: Partition, ids: list[int]) -> list[tuple[int, ...]]:
    return list(zip(*(classes.tolist() for classes in partition.of(torch.tensor(ids))), strict=True))


def assert_names(partition: Complementary, ids: set[int]) -> None:
    """The classes of ``ids`` are those defined, in range, distinct, and lead back to the ids."""
    ordered = sorted(x for x in ids if 0 <= x < partition.num_ids)
    found = tuples(partition, ordered)
    assert found == [classes_of(partition, x) for x in ordered]
    assert all(0 <= c < n for classes in found for c, n in zip(classes, partition.classes, strict=True))
    assert len(set(found)) == len(ordered)
    assert partition.ids_of(*partition.of(torch.tensor(ordered))).tolist() == ordered


@pytest.mark.parametrize("kind", KINDS, ids=["naive", "quotient-remainder", "mixed-radix", "chinese-remainder"])
@pytest.mark.parametrize("smallest", [1, 2**24, 2**31], ids=["any", "beyond-float32", "beyond-int32"])
@given(data=st.data())
def test_complementary_partitions_name_ids(kind: Kind, smallest: int, data: st.DataObject) -> None:
    partition = data.draw(data.draw(counts(smallest, INT64_MAX).map(kind)))
    last = partition.num_ids - 1
    ids = data.draw(st.sets(st.integers(0, last), max_size=15)) | {0, last // 2}
    ids |= {last - x for x in ids}
    # the likeliest to collide
    assert_names(partition, ids | {x + step for x in ids for step in (1, *partition.classes)})


@pytest.mark.parametrize("num_ids", [*range(1, 14), 30])
def test_complementary_partitions_name_every_id(num_ids: int) -> None:
    every = set(range(num_ids))
    for m in range(1, num_ids + 3):
        assert_names(QuotientRemainder(num_ids, m), every)
    for factors in product(range(1, 8), repeat=3):
        if prod(factors) >= num_ids:
            assert_names(MixedRadix(num_ids, factors), every)
            if all(gcd(a, b) == 1 for a, b in combinations(factors, 2)):
                assert_names(ChineseRemainder(num_ids, factors), every)


@pytest.mark.parametrize(
    "moduli",
    [
        (isqrt(INT64_MAX), isqrt(INT64_MAX) - 1),  # the largest squares that int64 holds
        (3, 2**61 - 1),
        (2**62 + 1, 3_000_000_019, 7),  # a product beyond int64
        (2_097_143, 2_097_145, 2_097_151),
    ],
)
def test_chinese_remainder_is_exact_at_the_end_of_int64(moduli: tuple[int, ...]) -> None:
    num_ids = min(prod(moduli), INT64_MAX)
    assert_names(
        ChineseRemainder(num_ids, moduli), {0, *(num_ids - 1 - 10**e for e in range(18)), num_ids - 1, *moduli}
    )


@given(num_ids=counts(1, INT64_MAX), num_classes=counts(1, INT64_MAX), data=st.data())
def test_hash(num_ids: int, num_classes: int, data: st.DataObject) -> None:
    partition = Hash(num_ids, num_classes)
    ids = data.draw(st.lists(st.integers(0, num_ids - 1), min_size=1))
    assert tuples(partition, ids) == [classes_of(partition, x) for x in ids]
    if num_classes < num_ids:
        assert tuples(partition, [0]) == tuples(partition, [num_classes])
    assert partition.classes == (num_classes,)


def test_class_counts() -> None:
    assert Naive(7).classes == (7,)
    assert QuotientRemainder(10, 4).classes == (3, 4)
    assert QuotientRemainder(10, 1).classes == (10, 1)
    assert QuotientRemainder(10, 12).classes == (1, 12)
    assert MixedRadix(10, (2, 5)).classes == (2, 5)
    assert ChineseRemainder(10, (2, 5)).classes == (2, 5)


def test_partitions_are_values() -> None:
    assert QuotientRemainder(10, 4) == QuotientRemainder(10, 4) != QuotientRemainder(10, 5)
    assert len({MixedRadix(10, (2, 5)), MixedRadix(10, (2, 5)), ChineseRemainder(10, (2, 5)), Naive(10)}) == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
@pytest.mark.parametrize(
    "partition",
    [Naive(6), Hash(6, 4), QuotientRemainder(6, 4), MixedRadix(6, (2, 3)), ChineseRemainder(6, (2, 3))],
    ids=lambda partition: type(partition).__name__,
)
def test_classes_are_int64_shaped_like_the_ids(
    partition: Partition, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    ids = torch.arange(6)[: prod(shape)].reshape(shape).to(dtype)
    for classes in partition.of(ids):
        assert classes.dtype == torch.int64
        assert classes.shape == shape
    if isinstance(partition, Complementary):
        back = partition.ids_of(*partition.of(ids))
        assert back.dtype == torch.int64
        assert torch.equal(back, ids.long())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Naive(0), r"num_ids must be an integer from 1 to 2\^63 - 1: got 0; give a whole number"),
        (lambda: Naive(2**63), "num_ids must be an integer from 1 to 2"),
        (lambda: Hash(-1, 3), "num_ids must be an integer from 1 to .* got -1"),
        (lambda: Hash(3, 0), "num_classes must be an integer from 1 to .* got 0"),
        (lambda: QuotientRemainder(0, 3), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: QuotientRemainder(4, 2.0), "num_remainders must be an integer from 1 to .* got 2.0"),  # type: ignore[arg-type]  # refused
        (lambda: MixedRadix(0, (1,)), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: MixedRadix(6, (-2, -3)), "each of the radices must be an integer from 1 to .* got -2"),
        (
            lambda: MixedRadix(7, (2, 3)),
            r"radices must have a product of at least num_ids = 7: got \(2, 3\), whose product is 6; add one or raise",
        ),
        (lambda: MixedRadix(1, ()), r"radices must have a product of at least num_ids = 1: got \(\)"),
        (lambda: ChineseRemainder(6, (0, 3)), "each of the moduli must be an integer from 1 to .* got 0"),
        (
            lambda: ChineseRemainder(7, (2, 3)),
            r"moduli must have a product of at least num_ids = 7: got \(2, 3\), whose product is 6; add one or raise",
        ),
        (
            lambda: ChineseRemainder(7, (5, 6, 4)),
            "moduli must be pairwise coprime: got 6 and 4, both divisible by 2; change one of them",
        ),
        (
            lambda: ChineseRemainder(7, (2**32, 2**32 + 1)),
            "moduli other than the largest must be at most 3037000499, so that .* got 4294967296; lower it",
        ),
    ],
)
def test_errors(build: Callable[[], Partition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "partition",
    [Naive(95), Hash(95, 24), QuotientRemainder(95, 4), MixedRadix(95, (5, 5, 4)), ChineseRemainder(95, (10, 11))],
)
def test_ordinals_write_the_classes_as_digits(partition: Partition) -> None:
    for x, ordinal in enumerate(partition.ordinals(torch.arange(95)).tolist()):
        digits = []
        for classes in reversed(partition.classes):
            ordinal, digit = divmod(ordinal, classes)
            digits.append(digit)
        assert ordinal == 0
        assert tuple(reversed(digits)) == classes_of(partition, x)
