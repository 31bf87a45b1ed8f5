"""Sizes against brute force, and the parameter counts of Criteo Kaggle at dim 16 (arXiv 1909.02107)."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, combinations_with_replacement
from math import gcd, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.datasets.criteo import KAGGLE_ROWS
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Naive
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.sizes import (
    MOST_PARTITIONS,
    chinese_remainder_for_collisions,
    chinese_remainder_for_rows,
    fewest_moduli,
    hash_for_collisions,
    hot_cold_for_rows,
    mixed_radix_for_collisions,
    mixed_radix_for_rows,
    optimal_chinese_remainder,
    optimal_mixed_radix,
    quotient_remainder_for_collisions,
    quotient_remainder_for_rows,
)
from dlrm_torchrec.embeddings.compositional.stacked_rows import StackedRows

DIM = 16
sizes = st.integers(1, 63).flatmap(lambda bits: st.integers(1, 2**bits - 1))  # of every magnitude of int64


def rows(partition: Partition) -> int:
    return sum(partition.classes)


def fewest_rows(num_ids: int, k: int, *, coprime: bool = False) -> int:
    """Brute force over all k class counts up to ``num_ids``."""
    return min(
        sum(counts)
        for counts in combinations_with_replacement(range(1, num_ids + 1), k)
        if prod(counts) >= num_ids and (not coprime or all(gcd(a, b) == 1 for a, b in combinations(counts, 2)))
    )


def kaggle_parameters(partition_of: Callable[[int], Partition]) -> int:
    return DIM * sum(rows(partition_of(num_ids)) for num_ids in KAGGLE_ROWS)


def millions(parameters: int, digits: int) -> float:
    return round(parameters / 1e6, digits)


def test_kaggle_full() -> None:
    assert kaggle_parameters(Naive) == 540_201_232


@pytest.mark.parametrize(
    ("collisions", "hashed", "quotient_remainder", "digits"),
    [
        (2, 270.10, 270.10, 2),
        (3, 180.07, 180.07, 2),
        (4, 135.05, 135.05, 2),
        (5, 108.04, 108.04, 2),
        (6, 90.03, 90.04, 2),
        (7, 77.17, 77.17, 2),
        (60, 9.0036, 9.0286, 4),
    ],
)
def test_kaggle_at_collisions(collisions: int, hashed: float, quotient_remainder: float, digits: int) -> None:
    assert millions(kaggle_parameters(lambda n: hash_for_collisions(n, collisions)), digits) == hashed
    parameters = kaggle_parameters(lambda n: quotient_remainder_for_collisions(n, collisions))
    assert millions(parameters, digits) == quotient_remainder


@pytest.mark.parametrize(
    ("threshold", "expected"), [(1, 135.0521), (20, 135.0524), (200, 135.0540), (2000, 135.0895), (20000, 135.6196)]
)
def test_kaggle_above_a_threshold(threshold: int, expected: float) -> None:
    parameters = kaggle_parameters(lambda n: quotient_remainder_for_collisions(n, 4) if n > threshold else Naive(n))
    assert millions(parameters, 4) == expected


def test_kaggle_at_the_root_of_every_table() -> None:
    parameters = kaggle_parameters(lambda n: optimal_mixed_radix(n, 2))
    assert millions(parameters, 3) == 0.461
    assert 540_201_232 // parameters == 1172
    within = kaggle_parameters(lambda n: quotient_remainder_for_rows(n, rows(optimal_mixed_radix(n, 2))))
    assert within == parameters


@given(num_ids=sizes, collisions=sizes)
def test_for_collisions(num_ids: int, collisions: int) -> None:
    kept = min(collisions, num_ids)
    largest = -(-num_ids // kept)
    assert hash_for_collisions(num_ids, collisions).classes == (largest,)
    assert quotient_remainder_for_collisions(num_ids, collisions).classes == (largest, collisions)
    assert mixed_radix_for_collisions(num_ids, collisions, k=2).classes == (largest, kept)


@given(num_ids=sizes, collisions=sizes, k=st.integers(3, 6))
def test_mixed_radix_for_collisions(num_ids: int, collisions: int, k: int) -> None:
    kept = min(collisions, num_ids)
    first, *others = mixed_radix_for_collisions(num_ids, collisions, k=k).classes
    assert first == -(-num_ids // kept)
    assert others == list(optimal_mixed_radix(kept, k - 1).classes)


@given(num_ids=sizes, collisions=st.integers(1, 1000), k=st.integers(2, 5))
def test_chinese_remainder_for_collisions(num_ids: int, collisions: int, k: int) -> None:
    partition = chinese_remainder_for_collisions(num_ids, collisions, k=k)
    first, *others = partition.classes
    assert len(others) == k - 1
    assert first - 64 < -(-num_ids // min(collisions, num_ids)) <= first
    assert rows(partition) <= rows(mixed_radix_for_collisions(num_ids, collisions, k=k)) + 6 * k


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_optimal_mixed_radix_is_the_smallest_of_all(k: int) -> None:
    for num_ids in range(1, 31):
        assert rows(optimal_mixed_radix(num_ids, k)) == fewest_rows(num_ids, k)


@pytest.mark.parametrize(("k", "excess"), [(2, 0), (3, 1), (4, 4)])
def test_optimal_chinese_remainder_is_near_the_smallest_of_all(k: int, excess: int) -> None:
    for num_ids in range(1, 31):
        assert rows(optimal_chinese_remainder(num_ids, k)) <= fewest_rows(num_ids, k, coprime=True) + excess


@given(num_ids=st.integers(2**24, 2**63 - 1), k=st.integers(2, 6))
def test_optimal_rows_of_large_tables(num_ids: int, k: int) -> None:
    radices = optimal_mixed_radix(num_ids, k).classes
    assert len(radices) == k
    assert max(radices) - min(radices) <= 1
    assert prod(radices) >= num_ids > prod(radices) // max(radices) * (max(radices) - 1)
    moduli = optimal_chinese_remainder(num_ids, k).classes
    assert len(moduli) == k
    assert sum(radices) <= sum(moduli) <= sum(radices) + 3 * k


def test_roots_are_exact_where_floats_are_not() -> None:
    for root in (3, 2**20 + 7, 3_037_000_499):
        assert optimal_mixed_radix(root**2, 2).classes == (root, root)
        assert optimal_mixed_radix(root**2 - 1, 2).classes == (root, root)
        assert optimal_mixed_radix(root**2 + 1, 2).classes == (root + 1, root)
    for root in (3, 2_097_151):
        assert optimal_mixed_radix(root**3, 3).classes == (root, root, root)
        assert optimal_mixed_radix(root**3 + 1, 3).classes == (root + 1, root, root)


@given(num_ids=st.integers(1, 300), max_rows=st.integers(1, 320))
def test_quotient_remainder_for_rows_has_the_fewest_collisions(num_ids: int, max_rows: int) -> None:
    fitting = [m for m in range(1, num_ids + 1) if -(-num_ids // m) + m <= max_rows]
    if fitting:
        assert quotient_remainder_for_rows(num_ids, max_rows).num_remainders == fitting[0]
    else:
        least = min(-(-num_ids // m) + m for m in range(1, num_ids + 1))
        with pytest.raises(ValueError, match=f"max_rows must be at least {least} for"):
            quotient_remainder_for_rows(num_ids, max_rows)


@given(num_ids=st.integers(2**20, 2**62), budget=st.fractions(0, 1, max_denominator=10**6))
def test_quotient_remainder_for_rows_of_large_tables(num_ids: int, budget: Fraction) -> None:
    least = rows(optimal_mixed_radix(num_ids, 2))
    max_rows = least + int(budget * (num_ids - least))
    partition = quotient_remainder_for_rows(num_ids, max_rows)
    assert rows(partition) <= max_rows
    fewer = partition.num_remainders - 1
    assert fewer == 0 or -(-num_ids // fewer) + fewer > max_rows


@settings(deadline=None)
@given(num_ids=st.integers(8, 2**40), share=st.floats(0.001, 0.9), k=st.integers(2, 4))
def test_the_rows_given_are_used(num_ids: int, share: float, k: int) -> None:
    for build, optimal in (
        (mixed_radix_for_rows, optimal_mixed_radix),
        (chinese_remainder_for_rows, optimal_chinese_remainder),
    ):
        least = rows(optimal(num_ids, k))
        max_rows = max(least, int(share * num_ids))
        partition = build(num_ids, max_rows, k=k)
        assert least <= rows(partition) <= max_rows
        assert rows(partition) >= min(max_rows, num_ids) / 2 or rows(partition) == least


@settings(deadline=None)
@given(num_ids=st.integers(100, 10**6), hot=st.floats(0.05, 0.95), rows_left=st.integers(200, 10**5), own=st.booleans())
def test_hot_cold_keeps_its_rows(num_ids: int, hot: float, rows_left: int, own: bool) -> None:
    for hashes in (0, 1, 3):
        max_rows = int(rows_left / (1 - hot)) + 20
        partition = hot_cold_for_rows(num_ids, max_rows, hot=hot, hashes=hashes, own_in_all=own)
        assert partition.num_ids == num_ids
        assert StackedRows(partition, (1,) * len(partition.classes)).rows <= max_rows
        assert len(partition.classes) == hashes if hashes else len(partition.classes) <= MOST_PARTITIONS


def test_moduli_are_as_few_as_the_rows_allow() -> None:
    assert [fewest_moduli(10_000, max_rows) for max_rows in (10_000, 201, 200, 67, 41)] == [2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: quotient_remainder_for_collisions(0, 4), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: quotient_remainder_for_collisions(9, 0), "collisions must be an integer from 1 to .* got 0"),
        (lambda: hash_for_collisions(9, -1), "collisions must be an integer from 1 to .* got -1"),
        (
            lambda: mixed_radix_for_collisions(9, 3, k=1),
            "k must be at least 2 partitions: got 1; raise it or use a plain",
        ),
        (lambda: chinese_remainder_for_collisions(9, 3, k=1), "k must be at least 2 partitions: got 1"),
        (lambda: optimal_chinese_remainder(9, 1), "k must be at least 2 partitions: got 1"),
        (lambda: optimal_chinese_remainder(0, 2), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: optimal_mixed_radix(9, 0), "k must be an integer from 1 to .* got 0"),
        (lambda: optimal_mixed_radix(0, 2), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: quotient_remainder_for_rows(0, 5), "num_ids must be an integer from 1 to .* got 0"),
        (lambda: quotient_remainder_for_rows(9, 0), "max_rows must be an integer from 1 to .* got 0"),
        (
            lambda: mixed_radix_for_rows(100, 19, k=2),
            "max_rows must be at least 20 for 2 partitions of 100 ids: got 19; raise it or use more partitions",
        ),
        (
            lambda: fewest_moduli(10**9, 30),
            "max_rows must hold at most 8 partitions that tell 1000000000 ids apart: got 30; raise it, or hash",
        ),
        (
            lambda: hot_cold_for_rows(100, 1, hot=0.5, hashes=1),
            "hot_cold tables must have at least 2 rows, and a share of hot ones between 0 and 1: got 1 rows and 0.5",
        ),
        (
            lambda: quotient_remainder_for_rows(100, 19),
            "max_rows must be at least 20 for quotients and remainders of 100 ids: got 19; raise it or use more",
        ),
    ],
)
def test_errors(build: Callable[[], Partition], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
