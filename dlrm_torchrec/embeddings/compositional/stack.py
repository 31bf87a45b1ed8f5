"""Partitions that are stacked in one physical table, and bags of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from dlrm_torchrec.embeddings.compositional.partitions import Partition

# (rows (R,), offsets (bags + 1,), weights (R,) or None) -> sums (bags, row dim)
LookUp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Bags(NamedTuple):
    """Bags of ids or rows: ``values`` (R,) int64, ``lengths`` (bags,), ``weights`` (R,) or None."""

    values: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None


class Block(NamedTuple):
    """Initial weights of ``rows`` consecutive rows: U(center - limit, center + limit)."""

    rows: int
    center: float
    limit: float

    @classmethod
    def plain(cls, rows: int) -> Block:
        """Initial weights of a plain table of ``rows`` rows, as in DLRM."""
        return cls(rows, center=0.0, limit=rows**-0.5)


@dataclass(frozen=True)
class Stack:
    """k partitions in one table; partition j begins at row ``first_rows[j]`` and has ``class_rows[j]`` rows a class."""

    partition: Partition
    class_rows: tuple[int, ...]

    @cached_property
    def sizes(self) -> list[int]:
        return [classes * rows for classes, rows in zip(self.partition.classes, self.class_rows, strict=True)]

    @cached_property
    def rows(self) -> int:
        return sum(self.sizes)

    @cached_property
    def first_rows(self) -> list[int]:
        return [sum(self.sizes[:j]) for j in range(len(self.sizes))]

    def rows_of(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The rows of every id, one (N,) tensor for each of the k partitions; every class must have one row."""
        return [first + classes for first, classes in zip(self.first_rows, self.partition.of(ids), strict=True)]


def one_each(rows: torch.Tensor) -> torch.Tensor:
    """Offsets of bags that hold one row each."""
    return torch.arange(len(rows) + 1, device=rows.device)


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Offsets (bags + 1,) of bags with these lengths."""
    offsets: torch.Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return offsets


def pool(vectors: torch.Tensor, bags: Bags) -> torch.Tensor:
    """The sum over each bag (bags, dim), from one vector per id, multiplied by the id's weight if there are weights."""
    if bags.weights is not None:
        vectors = vectors * bags.weights[:, None]
    if len(vectors) == len(bags.lengths) and not vectors.is_cuda and bool((bags.lengths == 1).all()):
        return vectors  # one-hot; on a GPU, finding that out would mean waiting for it
    return torch.segment_reduce(vectors, "sum", lengths=bags.lengths, axis=0, unsafe=True)
