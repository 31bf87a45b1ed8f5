"""Complementary partitions by arithmetic, and the hashing trick.

Partitions are complementary when any two ids differ in at least one class, so that the k classes identify the id.
Definitions: Shi et al. 2019, "Compositional embeddings using complementary partitions" (arXiv 1909.02107), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import gcd, isqrt, prod

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import (
    INT64_MAX,
    Complementary,
    Digit,
    Partition,
    check_count,
)
from dlrm_torchrec.embeddings.compositional.partitions.hashes import mixed

# The product of two residues below this fits in int64.
_LARGEST_FACTOR = isqrt(INT64_MAX)


def _check_product(name: str, factors: tuple[int, ...], num_ids: int) -> None:
    check_count("num_ids", num_ids)
    for factor in factors:
        check_count(f"each of the {name}", factor)
    if not factors or prod(factors) < num_ids:
        raise ValueError(
            f"{name} must have a product of at least num_ids = {num_ids}: "
            f"got {factors}, whose product is {prod(factors)}; add one or raise one"
        )


def _divmod(ids: torch.Tensor, divisor: int) -> tuple[torch.Tensor, torch.Tensor]:
    quotient = ids // divisor
    return quotient, torch.sub(ids, quotient, alpha=divisor)  # % would divide a second time, and division is slow


@dataclass(frozen=True)
class Naive(Complementary):
    """One partition in which every id has its own class, as in a plain table."""

    num_ids: int

    def __post_init__(self) -> None:
        check_count("num_ids", self.num_ids)

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.num_ids,)

    @property
    def digits(self) -> tuple[Digit, ...]:
        return (Digit(),)

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (ids.long(),)

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        (ids,) = classes
        return ids.long()


@dataclass(frozen=True)
class Hash(Partition):
    """The hashing trick, id mod ``num_classes``: ids collide if there are fewer classes than ids.

    A ``seed`` other than 0 mixes the bits of the id first, so that each seed lets other ids collide.
    """

    num_ids: int
    num_classes: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("num_ids", self.num_ids)
        check_count("num_classes", self.num_classes)

    @property
    def classes(self) -> tuple[int, ...]:
        return (self.num_classes,)

    @property
    def digits(self) -> tuple[Digit, ...]:
        return (Digit(modulus=self.num_classes, seed=self.seed),)

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids = ids.long()
        return ((mixed(ids, torch.full_like(ids, self.seed)) if self.seed else ids) % self.num_classes,)


@dataclass(frozen=True)
class QuotientRemainder(Complementary):
    """The quotient id \\ m and the remainder id mod m, for m = ``num_remainders``: ceil(n / m) and m classes."""

    num_ids: int
    num_remainders: int

    def __post_init__(self) -> None:
        check_count("num_ids", self.num_ids)
        check_count("num_remainders", self.num_remainders)

    @property
    def classes(self) -> tuple[int, ...]:
        return -(-self.num_ids // self.num_remainders), self.num_remainders

    @property
    def digits(self) -> tuple[Digit, ...]:
        return Digit(self.num_remainders), Digit(modulus=self.num_remainders)

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _divmod(ids.long(), self.num_remainders)

    def ordinals(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.long()

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        quotient, remainder = classes
        return quotient.long() * self.num_remainders + remainder


@dataclass(frozen=True)
class MixedRadix(Complementary):
    """Generalised quotient-remainder: the digits of the id in mixed radix, least significant first.

    P_1 = id mod m_1 and P_j = (id \\ (m_1 ... m_(j-1))) mod m_j, where the product of the radices m_j is at least
    ``num_ids``.
    """

    num_ids: int
    radices: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_product("radices", self.radices, self.num_ids)

    @property
    def classes(self) -> tuple[int, ...]:
        return self.radices

    @property
    def digits(self) -> tuple[Digit, ...]:
        # a divisor above the largest id gives class 0, however large it is
        divisors = [min(prod(self.radices[:j]), INT64_MAX) for j in range(len(self.radices))]
        return tuple(Digit(*each) for each in zip(divisors, self.radices, strict=True))

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        digits, rest = [], ids.long()
        for radix in self.radices[:-1]:
            rest, digit = _divmod(rest, radix)
            digits.append(digit)
        return *digits, rest  # rest is below the last radix because the product of all radices is at least num_ids

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros_like(classes[0], dtype=torch.int64)
        for radix, digit in reversed(list(zip(self.radices, classes, strict=True))):
            ids = ids * radix + digit
        return ids


@dataclass(frozen=True)
class ChineseRemainder(Complementary):
    """P_j = id mod m_j, for pairwise coprime moduli m_j whose product is at least ``num_ids``."""

    num_ids: int
    moduli: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_product("moduli", self.moduli, self.num_ids)
        for one, other in combinations(self.moduli, 2):
            if gcd(one, other) > 1:
                raise ValueError(
                    f"moduli must be pairwise coprime: got {one} and {other}, both divisible by {gcd(one, other)}; "
                    "change one of them"
                )
        for modulus in sorted(self.moduli)[:-1]:
            if modulus > _LARGEST_FACTOR:
                raise ValueError(
                    f"moduli other than the largest must be at most {_LARGEST_FACTOR}, so that products stay in "
                    f"int64: got {modulus}; lower it"
                )

    @property
    def classes(self) -> tuple[int, ...]:
        return self.moduli

    @property
    def digits(self) -> tuple[Digit, ...]:
        return tuple(Digit(modulus=modulus) for modulus in self.moduli)

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids = ids.long()
        return tuple(ids % modulus for modulus in self.moduli)

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        # Garner's algorithm: after each modulus, ids is id mod product, so no sum ever exceeds the id itself.
        # The largest modulus comes first because that one is never squared.
        (product, ids), *rest = sorted(zip(self.moduli, classes, strict=True), key=lambda pair: -pair[0])
        ids = ids.long()
        for modulus, residue in rest:
            if product >= self.num_ids:
                break
            digit = (residue - ids) % modulus * pow(product, -1, modulus) % modulus
            ids = ids + digit * product
            product *= modulus
        return ids
