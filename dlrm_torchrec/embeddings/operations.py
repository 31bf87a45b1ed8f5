"""Operations: how the rows of an id's k classes become its vector (arXiv 1909.02107, section 4).

Every operation works on one physical table in which the k partitions are stacked, and asks for *bags* of its rows:
``look_up(rows, offsets, weights)`` gives one sum per bag, as a bag of a plain table would. So any kernel that sums
rows, PyTorch's or FBGEMM's, sharded or not, fused with its optimizer or not, also serves compositional tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple

import torch

from dlrm_torchrec.embeddings.grouped import grouped_linear
from dlrm_torchrec.embeddings.partitions import Partition

# (rows (R,), offsets (bags + 1,), weights (R,) or None) -> sums (bags, row dim)
LookUp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Bags(NamedTuple):
    """Ids or rows of bags: ``values`` (R,) int64, ``lengths`` (bags,), ``weights`` (R,) or None."""

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
        """DLRM's, for a plain table."""
        return cls(rows, 0.0, rows**-0.5)


@dataclass(frozen=True)
class Stack:
    """k partitions in one table: partition j begins at row ``first_rows[j]``, a class has ``class_rows[j]`` rows."""

    partition: Partition
    class_rows: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        return [classes * rows for classes, rows in zip(self.partition.classes, self.class_rows, strict=True)]

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    @property
    def first_rows(self) -> list[int]:
        return [sum(self.sizes[:j]) for j in range(len(self.sizes))]

    def rows_of(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """The row of each of the k classes of every id, for classes of one row each."""
        return [first + classes for first, classes in zip(self.first_rows, self.partition.of(ids), strict=True)]


class Operation(ABC):
    """How an id's vector is made of its classes' rows."""

    row_wise: ClassVar[bool] = False  # whether rows may lie on different ranks
    column_wise: ClassVar[bool] = True  # whether columns may

    def row_dim(self, dim: int, k: int) -> int:  # noqa: ARG002 (for those that split the dim)
        """Numbers of a physical row."""
        return dim

    def num_outputs(self, k: int) -> int:  # noqa: ARG002
        """Vectors per bag, side by side."""
        return 1

    def class_rows(self, dim: int, k: int) -> tuple[int, ...]:  # noqa: ARG002
        """Physical rows of one class of each of the k partitions."""
        return (1,) * k

    @abstractmethod
    def blocks(self, stack: Stack, dim: int) -> list[Block]:
        """Initial weights with which a vector has the mean 0 and the variance 1 / (3 n) of a plain table's."""

    @abstractmethod
    def pooled(self, stack: Stack, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """Sum over each bag of its ids' (weighted) vectors: (bags, num_outputs * row dim)."""


class Summed(Operation):
    """Operations that are bags of rows themselves, so that nothing is left to combine."""

    row_wise = True

    def blocks(self, stack: Stack, dim: int) -> list[Block]:  # noqa: ARG002
        return [Block(stack.rows, 0.0, stack.partition.num_ids**-0.5)]

    def rows(self, stack: Stack, bags: Bags) -> Bags:
        """Bags of physical rows: of all bags the first output, then of all bags the second, ..."""
        rows = stack.rows_of(bags.values)
        weights = None if bags.weights is None else bags.weights.repeat(len(rows))
        return Bags(torch.cat(rows), bags.lengths.repeat(len(rows)), weights)

    def pooled(self, stack: Stack, bags: Bags, look_up: LookUp) -> torch.Tensor:
        rows = self.rows(stack, bags)
        sums = look_up(rows.values, offsets_of(rows.lengths), rows.weights)
        outputs = self.num_outputs(len(stack.sizes))
        return sums.view(outputs, len(bags.lengths), sums.size(1)).transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Concat(Summed):
    """The k rows side by side, each of dim / k numbers; unique where rows are (Theorem 1 of the paper)."""

    def row_dim(self, dim: int, k: int) -> int:
        return dim // k

    def num_outputs(self, k: int) -> int:
        return k


@dataclass(frozen=True)
class FeatureGeneration(Summed):
    """k rows that stay k vectors: each feature becomes k features of the model."""

    def num_outputs(self, k: int) -> int:
        return k


@dataclass(frozen=True)
class Add(Summed):
    """The sum of the k rows."""

    def blocks(self, stack: Stack, dim: int) -> list[Block]:  # noqa: ARG002
        return [Block(stack.rows, 0.0, (len(stack.class_rows) * stack.partition.num_ids) ** -0.5)]

    def rows(self, stack: Stack, bags: Bags) -> Bags:
        rows = torch.stack(stack.rows_of(bags.values), dim=1)
        k = rows.size(1)
        weights = None if bags.weights is None else bags.weights.repeat_interleave(k)
        return Bags(rows.view(-1), bags.lengths * k, weights)


@dataclass(frozen=True)
class Mult(Operation):
    """The element-wise product of the k rows, per id and then summed: a product of sums would be another model.

    Factors after the first start as ``center`` + U(-spread, spread), the first small enough for the product.
    """

    center: float = 0.0
    spread: float = 3**0.5

    def blocks(self, stack: Stack, dim: int) -> list[Block]:  # noqa: ARG002
        first, *others = stack.sizes
        second_moment = self.center**2 + self.spread**2 / 3
        limit = (stack.partition.num_ids * second_moment ** len(others)) ** -0.5
        return [Block(first, 0.0, limit), Block(sum(others), self.center, self.spread)]

    def pooled(self, stack: Stack, bags: Bags, look_up: LookUp) -> torch.Tensor:
        num_combinations = prod(stack.partition.classes[1:])
        weights = bags.weights
        # FBGEMM's bucketizing passes no gradient on to weights, and takes float32 ones only
        sortable = weights is None or (weights.dtype == torch.float32 and not weights.requires_grad)
        if num_combinations * len(bags.lengths) <= len(bags.values) and sortable:
            return self._pooled_by_class(stack, num_combinations, bags, look_up)
        rows = torch.cat(stack.rows_of(bags.values))
        first, *others = torch.split(look_up(rows, one_each(rows), None), [len(bags.values)] * len(stack.sizes))
        for other in others:
            first = first * other
        return pool(first, bags)

    def _pooled_by_class(self, stack: Stack, num_combinations: int, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The same sum by the distributive law: ids of a bag that share their later classes are summed first.

        sum_x w1[p1(x)] * w2[p2(x)] = sum_c w2[c] * sum_{x: p2(x) = c} w1[p1(x)]. The sums over x are a plain lookup,
        and what is left is one product per bag and class instead of one per id.
        """
        first, *later = stack.partition.of(bags.values)
        combination, later_rows = torch.zeros_like(first), []
        repeats = num_combinations
        index = torch.arange(num_combinations, device=first.device)
        for classes, row, count in zip(later, stack.first_rows[1:], stack.partition.classes[1:], strict=True):
            repeats //= count
            combination = combination * count + classes
            later_rows.append(row + index // repeats % count)
        lengths, values, weights, *_ = torch.ops.fbgemm.bucketize_sparse_features(
            bags.lengths, first * num_combinations + combination, False, num_combinations, bags.weights
        )
        rows = torch.cat([values, *later_rows])
        ones = lengths.new_ones(len(rows) - len(values))
        if weights is not None:
            weights = torch.cat([weights, weights.new_ones(len(ones))])
        sums = look_up(rows, offsets_of(torch.cat([lengths, ones])), weights)
        by_class, factors = torch.split(sums, [len(lengths), len(ones)])
        factor = factors.view(len(later), num_combinations, 1, sums.size(1)).prod(0)
        return (by_class.view(num_combinations, len(bags.lengths), sums.size(1)) * factor).sum(0)


@dataclass(frozen=True)
class Path(Operation):
    """A row of the first partition, passed through one small network per later partition, chosen by the id's class.

    ``hidden`` units with ReLU, dim -> hidden -> dim; 0: one dim x dim matrix, the linear variant. A class's network
    is stored as rows of the same table: W1 (hidden rows), b1 (hidden / dim rows, rounded up), W2 transposed (hidden
    rows), b2 (one row); or the transposed matrix.
    """

    hidden: int = 64

    column_wise = False

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise ValueError(
                f"hidden units of a path must be 0 (linear) or more: got {self.hidden}; the paper uses 16 to 128"
            )

    def _network_rows(self, dim: int) -> list[int]:
        return [self.hidden, -(-self.hidden // dim), self.hidden, 1] if self.hidden else [dim]

    def class_rows(self, dim: int, k: int) -> tuple[int, ...]:
        return (1,) + (sum(self._network_rows(dim)),) * (k - 1)

    def blocks(self, stack: Stack, dim: int) -> list[Block]:
        # He initialisation of the hidden layer: ReLU halves the second moment that 2 / dim doubles
        limits = [(6 / dim) ** 0.5, 0.0, (3 / self.hidden) ** 0.5, 0.0] if self.hidden else [(3 / dim) ** 0.5]
        network = [Block(rows, 0.0, limit) for rows, limit in zip(self._network_rows(dim), limits, strict=True)]
        num_networks = sum(stack.partition.classes[1:])
        return [Block(stack.sizes[0], 0.0, stack.partition.num_ids**-0.5), *network * num_networks]

    def pooled(self, stack: Stack, bags: Bags, look_up: LookUp) -> torch.Tensor:
        first, *later = stack.partition.of(bags.values)
        networks = torch.arange(stack.sizes[0], stack.rows, device=first.device)
        rows = torch.cat([first, networks])
        vectors, *parameters = torch.split(look_up(rows, one_each(rows), None), [len(first), *stack.sizes[1:]])
        for classes, parameter in zip(later, parameters, strict=True):
            vectors = self._apply(vectors, classes, parameter.view(-1, stack.class_rows[1], vectors.size(1)))
        return pool(vectors, bags)

    def _apply(self, vectors: torch.Tensor, classes: torch.Tensor, networks: torch.Tensor) -> torch.Tensor:
        """``vectors`` (N, dim) through the network of their class, ``networks`` (num classes, rows, dim)."""
        dim = vectors.size(1)
        if not self.hidden:
            return grouped_linear(vectors, classes, [(networks, None)])
        w1, b1, w2, b2 = torch.split(networks, self._network_rows(dim), dim=1)
        return grouped_linear(vectors, classes, [(w1.mT, b1.flatten(1)[:, : self.hidden]), (w2, b2.squeeze(1))])


def one_each(rows: torch.Tensor) -> torch.Tensor:
    """Offsets of bags of one row."""
    return torch.arange(len(rows) + 1, device=rows.device)


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Offsets (bags + 1,) of bags of these lengths."""
    offsets: torch.Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return offsets


def pool(vectors: torch.Tensor, bags: Bags) -> torch.Tensor:
    """Sums (bags, dim) over each bag of one (weighted) vector per id."""
    if bags.weights is not None:
        vectors = vectors * bags.weights[:, None]
    return torch.segment_reduce(vectors, "sum", lengths=bags.lengths, axis=0, unsafe=True)
