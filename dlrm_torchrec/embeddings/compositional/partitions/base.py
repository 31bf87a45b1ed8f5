"""What a partition is: a map from an id to its class in each of k small tables, in exact int64 arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

INT64_MAX = torch.iinfo(torch.int64).max
MIXED_BITS = 51  # of a mixed id; float64 divides such numbers exactly


class Digit(NamedTuple):
    """How arithmetic finds the class of an id x in one partition.

    Ids below ``hot`` have the class min(x, base - 1). Others have base + (x - hot) \\ divisor mod modulus, where a
    ``seed`` other than 0 first mixes the bits of x - hot.
    """

    divisor: int = 1
    modulus: int = INT64_MAX
    hot: int = 0
    base: int = 0
    seed: int = 0


class Partition(ABC):
    """k partitions of the ids 0 .. num_ids - 1 that are used together: each puts every id into one of its classes."""

    num_ids: int

    @property
    def shared_from(self) -> tuple[int, ...] | None:
        """The first row of each partition, if the k partitions are k ways into the same rows; else None."""
        return None

    @property
    @abstractmethod
    def classes(self) -> tuple[int, ...]:
        """Number of classes of each of the k partitions."""

    @abstractmethod
    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The k classes of every id: int64, shaped like ``ids``, which must lie in [0, num_ids)."""

    @property
    def digits(self) -> tuple[Digit, ...]:
        """The k classes as digits of the id; those of a partition with ``codes`` mean nothing."""
        return (Digit(),) * len(self.classes)

    @property
    def codes(self) -> tuple[torch.Tensor | None, ...]:
        """The class of every id (num_ids,), int16 or int32 on CPU, of a partition that lists them; otherwise None."""
        return (None,) * len(self.classes)

    @property
    def first_ids(self) -> torch.Tensor | None:
        """Sorted ids (H,) whose numbers, by which digits and codes go, are 0 .. H - 1; another id x has H + x."""
        return None

    @property
    def listed_bytes(self) -> int:
        """Bytes of what is listed per id; 0 if arithmetic finds all classes."""
        return sum(codes.nbytes for codes in self.codes if codes is not None)

    @property
    def own_rows(self) -> int:
        """How many first classes, from 0 on, are of one id each that has class 0 in the later partitions."""
        return 0

    def ordinals(self, ids: torch.Tensor) -> torch.Tensor:
        """The k classes of every id as one number in mixed radix; the first class is its highest digit."""
        ordinals, *later = self.of(ids)
        for classes, count in zip(later, self.classes[1:], strict=True):
            ordinals = ordinals * count + classes
        return ordinals


class Complementary(Partition):
    """Partitions whose k classes identify an id."""

    @abstractmethod
    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        """The ids that have these k classes: the inverse of ``of``. If no id has them, the result is meaningless."""


def check_count(name: str, value: int) -> None:
    """ValueError unless ``value`` is an integer from 1 to 2^63 - 1: a float would make the classes inexact."""
    if not isinstance(value, int) or not 1 <= value <= INT64_MAX:
        raise ValueError(
            f"{name} must be an integer from 1 to 2^63 - 1: got {value!r}; give a whole number in that range"
        )
