"""Partitions of a chosen size: by collisions, by a row budget, or with the fewest rows; in exact integer arithmetic.

``collisions`` is the number of ids that share a class of the partition that has ceil(n / collisions) classes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, isqrt, prod
from typing import TypeVar

from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition, check_count
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold

MOST_PARTITIONS = 8  # of the ids that share rows; more factors do not train

Sized = TypeVar("Sized", bound=Partition)
_SEARCH_WIDTH = 64  # number of first moduli that are tried; coprime sets are dense, so trying more saves few rows


def quotient_remainder_for_collisions(num_ids: int, collisions: int) -> QuotientRemainder:
    """ceil(n / collisions) quotients and ``collisions`` remainders, even if there are fewer ids, as published."""
    check_count("collisions", collisions)
    return QuotientRemainder(num_ids, collisions)


def hash_for_collisions(num_ids: int, collisions: int) -> Hash:
    """ceil(n / collisions) classes."""
    return Hash(num_ids, _ceil_div(num_ids, _collisions(num_ids, collisions)))


def mixed_radix_for_collisions(num_ids: int, collisions: int, *, k: int) -> MixedRadix:
    """The radix ceil(n / collisions), then the k - 1 radices of the smallest sum that cover ``collisions``."""
    _check_several(k)
    collisions = _collisions(num_ids, collisions)
    return MixedRadix(num_ids, (_ceil_div(num_ids, collisions), *_even_split(collisions, k - 1)))


def chinese_remainder_for_collisions(num_ids: int, collisions: int, *, k: int = 2) -> ChineseRemainder:
    """A first modulus of ceil(n / collisions) or slightly more, then k - 1 moduli that split the rest about evenly."""
    _check_several(k)
    first = _ceil_div(num_ids, _collisions(num_ids, collisions))
    return _fewest_rows(num_ids, k, range(first, first + _SEARCH_WIDTH))


def quotient_remainder_for_rows(num_ids: int, max_rows: int) -> QuotientRemainder:
    """The quotients and remainders with the fewest collisions that need at most ``max_rows`` rows together."""
    check_count("num_ids", num_ids)
    check_count("max_rows", max_rows)
    least = sum(_even_split(num_ids, 2))
    if max_rows < least:
        raise ValueError(
            f"max_rows must be at least {least} for quotients and remainders of {num_ids} ids: got {max_rows}; "
            "raise it or use more partitions"
        )
    # ceil(n / m) + m <= max_rows holds where m^2 - max_rows m + n <= 0: m is the lower root, rounded up
    return QuotientRemainder(num_ids, _ceil_div(max_rows - isqrt(max_rows**2 - 4 * num_ids), 2))


def optimal_mixed_radix(num_ids: int, k: int) -> MixedRadix:
    """The k radices with the smallest sum, about k n^(1/k)."""
    check_count("num_ids", num_ids)
    check_count("k", k)
    return MixedRadix(num_ids, _even_split(num_ids, k))


def optimal_chinese_remainder(num_ids: int, k: int) -> ChineseRemainder:
    """k pairwise coprime moduli whose sum is close to the smallest possible, about k n^(1/k)."""
    check_count("num_ids", num_ids)
    _check_several(k)
    root = _root(num_ids, k)
    return _fewest_rows(num_ids, k, range(max(1, root - _SEARCH_WIDTH), root + 2))


def hash_for_rows(num_ids: int, max_rows: int) -> Hash:
    """At most ``max_rows`` classes."""
    check_count("max_rows", max_rows)
    return Hash(num_ids, min(num_ids, max_rows))


def mixed_radix_for_rows(num_ids: int, max_rows: int, *, k: int) -> MixedRadix:
    """The k radices with the fewest collisions that need at most ``max_rows`` rows together."""
    fewest = optimal_mixed_radix(num_ids, k)
    return _fewest_collisions(fewest, max_rows, lambda collisions: mixed_radix_for_collisions(num_ids, collisions, k=k))


def chinese_remainder_for_rows(num_ids: int, max_rows: int, *, k: int) -> ChineseRemainder:
    """The k moduli with the fewest collisions, as far as bisection finds them, of at most ``max_rows`` rows."""
    fewest = optimal_chinese_remainder(num_ids, k)
    return _fewest_collisions(
        fewest, max_rows, lambda collisions: chinese_remainder_for_collisions(num_ids, collisions, k=k)
    )


def fewest_moduli(num_ids: int, max_rows: int) -> int:
    """The least k, from 2 on, for which k pairwise coprime moduli need at most ``max_rows`` rows.

    Raises ValueError if no k up to ``MOST_PARTITIONS`` does.
    """
    return _fewest(optimal_chinese_remainder, num_ids, max_rows)


def fewest_radices(num_ids: int, max_rows: int) -> int:
    """The least k, from 2 on, for which k radices need at most ``max_rows`` rows; as ``fewest_moduli`` otherwise."""
    return _fewest(optimal_mixed_radix, num_ids, max_rows)


def _fewest(optimal: Callable[[int, int], Partition], num_ids: int, max_rows: int) -> int:
    for k in range(2, MOST_PARTITIONS + 1):
        if sum(optimal(num_ids, k).classes) <= max_rows:
            return k
    raise ValueError(
        f"max_rows must hold at most {MOST_PARTITIONS} partitions that tell {num_ids} ids apart: got {max_rows}; raise "
        "it, or hash the ids"
    )


def hot_cold_for_rows(num_ids: int, max_rows: int, *, hot: float, hashes: int = 0, own_in_all: bool = False) -> HotCold:
    """At most ``max_rows`` rows, of which the share ``hot`` is for the most frequent ids.

    The other ids share the rest: by that many ``hashes``, or told apart by as few coprime moduli as fit. Raises
    ValueError when they do not fit.
    """
    check_count("num_ids", num_ids)
    if max_rows < 2 or not 0 < hot < 1:
        raise ValueError(
            f"hot_cold tables must have at least 2 rows, and a share of hot ones between 0 and 1: got {max_rows} rows "
            f"and {hot}; raise the rows, or choose a share such as .5"
        )
    num_hot = max(1, min(int(hot * max_rows), num_ids - 1))
    cold = num_ids - num_hot
    if hashes == 1:
        return HotCold(num_hot, hash_for_rows(cold, max_rows - num_hot))
    if hashes:
        num_hot = max(1, num_hot // hashes)
        cold, left = num_ids - num_hot, max_rows - hashes * num_hot
        check_count("rows of ids that are not hot", left)
        return HotCold(num_hot, Hashes(cold, min(cold, left), hashes), own_in_all=True)
    k = fewest_moduli(num_ids, max_rows - num_hot - MOST_PARTITIONS)  # hot ids have a class in later partitions, too
    if own_in_all:
        num_hot = max(1, num_hot // k)
        cold = num_ids - num_hot
        return HotCold(num_hot, chinese_remainder_for_rows(cold, max_rows - k * num_hot, k=k), own_in_all=True)
    return HotCold(num_hot, chinese_remainder_for_rows(cold, max_rows - num_hot - (k - 1), k=k))


def _fewest_collisions(fewest_rows: Sized, max_rows: int, of_collisions: Callable[[int], Sized]) -> Sized:
    """Of the partitions by collisions, the one with the fewest that needs at most ``max_rows`` rows, by bisection."""
    if sum(fewest_rows.classes) > max_rows:
        raise ValueError(
            f"max_rows must be at least {sum(fewest_rows.classes)} for {len(fewest_rows.classes)} partitions of "
            f"{fewest_rows.num_ids} ids: got {max_rows}; raise it or use more partitions"
        )
    found, low, high = fewest_rows, 1, max(1, fewest_rows.num_ids // max(fewest_rows.classes))
    while low < high:
        middle = (low + high) // 2
        tried = of_collisions(middle)
        if sum(tried.classes) <= max_rows:
            found, high = tried, middle
        else:
            low = middle + 1
    return found


def _check_several(k: int) -> None:
    check_count("k", k)
    if k < 2:
        raise ValueError(f"k must be at least 2 partitions: got {k}; raise it or use a plain or hashed table")


def _collisions(num_ids: int, collisions: int) -> int:
    """``collisions``, but at most the number of ids."""
    check_count("num_ids", num_ids)
    check_count("collisions", collisions)
    return min(collisions, num_ids)


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _root(value: int, k: int) -> int:
    """The largest integer whose k-th power is at most ``value``, found bit by bit."""
    root = 0
    for bit in reversed(range(value.bit_length() // k + 1)):
        if (root | 1 << bit) ** k <= value:
            root |= 1 << bit
    return root


def _even_split(product: int, k: int) -> tuple[int, ...]:
    """The k integers with the smallest sum whose product is at least ``product``, largest first."""
    # among k integers with a given sum, the product is largest when they differ by at most one
    root = _root(product, k)
    larger = next(larger for larger in range(k + 1) if (root + 1) ** larger * root ** (k - larger) >= product)
    return (root + 1,) * larger + (root,) * (k - larger)


def _fewest_rows(num_ids: int, k: int, firsts: range) -> ChineseRemainder:
    return ChineseRemainder(num_ids, min((_coprime_moduli(num_ids, k, first) for first in firsts), key=sum))


def _coprime_moduli(product: int, k: int, first: int) -> tuple[int, ...]:
    """``first`` and k - 1 more pairwise coprime moduli, about equal, so that their product is at least ``product``."""
    moduli = [first]
    for left in range(k - 1, 0, -1):
        modulus = _root(_ceil_div(product, prod(moduli)), left)
        while gcd(modulus, prod(moduli)) > 1:
            modulus += 1
        moduli.append(modulus)
    return tuple(moduli)
