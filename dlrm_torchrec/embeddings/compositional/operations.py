"""Operations: how the rows of an id's k classes become its vector (arXiv 1909.02107, section 4).

Every operation works on one physical table that holds the k stacked partitions, and asks for *bags* of its rows:
``look_up(rows, offsets, weights)`` returns one sum per bag, as for a plain table. Any kernel that sums rows therefore
also works for compositional tables: PyTorch's or FBGEMM's, sharded or not, fused with its optimizer or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import ClassVar

import torch
from torch.nn import functional

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, offsets_of, one_each, pool
from dlrm_torchrec.embeddings.compositional.grouped import grouped_linear
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows


class Operation(ABC):
    """A way to compute an id's vector from the rows of its classes."""

    row_wise: ClassVar[bool] = False  # whether rows may lie on different ranks
    column_wise: ClassVar[bool] = True  # whether columns may lie on different ranks

    def row_dim(self, dim: int, k: int) -> int:  # noqa: ARG002 (operations that split the dim use k)
        """The number of elements of a physical row."""
        return dim

    def num_outputs(self, k: int) -> int:  # noqa: ARG002 (other operations use it)
        """The number of vectors per bag, which are concatenated."""
        return 1

    def class_rows(self, dim: int, k: int) -> tuple[int, ...]:  # noqa: ARG002 (other operations use it)
        """The number of physical rows of one class, for each of the k partitions."""
        return (1,) * k

    @abstractmethod
    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:
        """Initial weights that give a vector the mean 0 and variance 1 / (3 n), as in a plain table."""

    @torch.no_grad()
    def draw(self, stack: StackedRows, dim: int, weight: torch.Tensor) -> torch.Tensor:
        """Draw the initial weights in place; ``weight`` may be a shard of rows, or one or more shards of columns.

        A table is sharded by rows only if all its rows have the same distribution. TorchRec stacks the column shards
        of a rank below each other.
        """
        parts = self.initial_rows(stack, dim)
        if len(parts) == 1:
            return torch.nn.init.uniform_(weight, -parts[0].limit, parts[0].limit)
        for start in range(0, len(weight), stack.rows):
            shard = weight[start : start + stack.rows]
            for piece, part in zip(torch.split(shard, [part.rows for part in parts]), parts, strict=True):
                torch.nn.init.uniform_(piece, part.center - part.limit, part.center + part.limit)
        return weight

    @abstractmethod
    def pooled(self, stack: StackedRows, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The sum of the vectors of each bag's ids, weighted if there are weights: (bags, num_outputs * row dim)."""


class Summed(Operation):
    """Operations whose result is a bag of rows, so that the look-up itself combines them."""

    row_wise = True

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:  # noqa: ARG002 (other operations use it)
        return [InitialRows(stack.rows, center=0.0, limit=stack.partition.num_ids**-0.5)]

    def rows(self, stack: StackedRows, bags: Bags) -> Bags:
        """Bags of physical rows: first the first output of all bags, then the second output of all bags, ..."""
        return self.ask(stack.rows_of(bags.values), bags)

    def ask(self, rows: list[torch.Tensor], bags: Bags) -> Bags:
        """The bags of ``rows`` of some partitions to look up: ``num_outputs`` for each of ``bags``."""
        weights = None if bags.weights is None else bags.weights.repeat(len(rows))
        return Bags(torch.cat([bags.values[:0], *rows]), bags.lengths.repeat(len(rows)), weights)

    def pooled(self, stack: StackedRows, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The summed vectors; rows of a partition with few classes are read once and multiplied by their counts."""
        num_bags, rows = len(bags.lengths), stack.rows_of(bags.values)
        few = [j for j, size in enumerate(stack.sizes) if size * num_bags <= len(bags.values)]
        many = [j for j in range(len(rows)) if j not in few]
        asked = self.ask([rows[j] for j in many], bags)
        spans = [torch.arange(stack.sizes[j], device=bags.values.device) + stack.first_rows[j] for j in few]
        single = torch.cat([asked.values[:0], *spans])
        lengths = torch.cat([asked.lengths, asked.lengths.new_ones(len(single))])
        weights = None if asked.weights is None else torch.cat([asked.weights, asked.weights.new_ones(len(single))])
        read = look_up(torch.cat([asked.values, single]), offsets_of(lengths), weights)
        read = read.to(torch.promote_types(read.dtype, torch.float32))  # float16 cannot hold counts above 2048
        whole = many[: self.num_outputs(len(many))]
        pieces = torch.split(read, [num_bags] * len(whole) + [len(span) for span in spans])
        sums = dict(zip(whole + few, pieces, strict=True))
        for j in few:
            sums[j] = _counts(bags, rows[j] - stack.first_rows[j], stack.sizes[j], read.dtype) @ sums[j]
        return self.join([sums[j] for j in sorted(sums)])

    def join(self, sums: list[torch.Tensor]) -> torch.Tensor:
        """The outputs of each bag, from one sum (bags, row dim) per partition."""
        return torch.cat(sums, dim=1)


@dataclass(frozen=True)
class Concat(Summed):
    """The k rows concatenated, each of dim / k numbers; vectors are unique if rows are (Theorem 1 of the paper)."""

    def row_dim(self, dim: int, k: int) -> int:
        return dim // k

    def num_outputs(self, k: int) -> int:
        return k


@dataclass(frozen=True)
class FeatureGeneration(Summed):
    """k rows that stay separate: each feature becomes k features of the model."""

    def num_outputs(self, k: int) -> int:
        return k


@dataclass(frozen=True)
class Add(Summed):
    """The sum of the k rows."""

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:  # noqa: ARG002 (other operations use it)
        return [InitialRows(stack.rows, center=0.0, limit=(len(stack.class_rows) * stack.partition.num_ids) ** -0.5)]

    def ask(self, rows: list[torch.Tensor], bags: Bags) -> Bags:
        k = len(rows)
        values = torch.stack(rows, dim=1).view(-1) if rows else bags.values[:0]
        weights = None if bags.weights is None else bags.weights.repeat_interleave(k)
        return Bags(values, bags.lengths.repeat(min(k, 1)) * k, weights)

    def join(self, sums: list[torch.Tensor]) -> torch.Tensor:
        return reduce(torch.add, sums)


def _counts(bags: Bags, classes: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """How often each class occurs in each bag, or its total weight there: (bags, num_classes)."""
    num_bags = len(bags.lengths)
    numbers = torch.arange(num_bags, device=classes.device)
    bag = torch.repeat_interleave(numbers, bags.lengths, output_size=len(classes))
    each = torch.ones_like(classes, dtype=dtype) if bags.weights is None else bags.weights.to(dtype)
    counts = torch.zeros(num_bags * num_classes, dtype=dtype, device=classes.device)
    return counts.scatter_add(0, bag * num_classes + classes, each).view(num_bags, num_classes)


@dataclass(frozen=True)
class Mult(Operation):
    """The element-wise product of the k rows of each id, summed over the bag; a product of sums would be another model.

    Factors after the first start as ``center`` + U(-spread, spread). The first factor starts so small that the product
    has the variance of a plain table.
    """

    center: float = 0.0
    spread: float = 3**0.5

    def __post_init__(self) -> None:
        if self.spread < 0 or self.center == self.spread == 0:
            raise ValueError(
                f"factors of a product must start as center + U(-spread, spread) where spread is not negative and not "
                f"both are 0: got center {self.center} and spread {self.spread}; keep the defaults"
            )

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:  # noqa: ARG002 (other operations use it)
        first, *others = stack.sizes
        second_moment = self.center**2 + self.spread**2 / 3
        limit = (stack.partition.num_ids * second_moment ** len(others)) ** -0.5
        return [
            InitialRows(first, center=0.0, limit=limit),
            InitialRows(sum(others), center=self.center, limit=self.spread),
        ]

    def pooled(self, stack: StackedRows, bags: Bags, look_up: LookUp) -> torch.Tensor:
        num_combinations = prod(stack.partition.classes[1:])
        weights = bags.weights
        # FBGEMM's bucketizing gives weights no gradient, and takes only float32 weights
        sortable = weights is None or (weights.dtype == torch.float32 and not weights.requires_grad)
        if num_combinations * len(bags.lengths) <= len(bags.values) and sortable:
            return self._pooled_by_class(stack, num_combinations, bags, look_up)
        rows = torch.cat(stack.rows_of(bags.values))
        first, *others = torch.split(look_up(rows, one_each(rows), None), [len(bags.values)] * len(stack.sizes))
        for other in others:
            first = first * other
        return pool(first, bags)

    def _pooled_by_class(self, stack: StackedRows, num_combinations: int, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The same sum by the distributive law: ids of a bag that share their later classes are summed first.

        sum_x w1[p1(x)] * w2[p2(x)] = sum_c w2[c] * sum_{x: p2(x) = c} w1[p1(x)]. The sums over x are a plain lookup,
        so there is only one product per bag and class instead of one per id.
        """
        later_rows, repeats = [], num_combinations
        index = torch.arange(num_combinations, device=bags.values.device)
        for row, count in zip(stack.first_rows[1:], stack.partition.classes[1:], strict=True):
            repeats //= count
            later_rows.append(row + index // repeats % count)
        lengths, values, weights, *_ = torch.ops.fbgemm.bucketize_sparse_features(
            bags.lengths,
            stack.partition.ordinals(bags.values),
            bucketize_pos=False,
            my_size=num_combinations,
            weights=bags.weights,
        )
        rows = torch.cat([values, *later_rows])
        ones = lengths.new_ones(len(rows) - len(values))
        if weights is not None:
            weights = torch.cat([weights, weights.new_ones(len(ones))])
        sums = look_up(rows, offsets_of(torch.cat([lengths, ones])), weights)
        by_class, factors = torch.split(sums, [len(lengths), len(ones)])
        products = by_class.view(num_combinations, len(bags.lengths), sums.size(1))
        if later_rows:
            products = products * reduce(torch.mul, torch.chunk(factors, len(later_rows))).unsqueeze(1)
        return products.sum(0)


@dataclass(frozen=True)
class Path(Operation):
    """A row of the first partition, passed through one small network per later partition; the id's class selects it.

    A network has ``hidden`` units with ReLU: dim -> hidden -> dim. With ``hidden`` 0 it is one dim x dim matrix, the
    linear variant. The network of a class is stored as rows of the same table: W1 (hidden rows), b1 (hidden / dim
    rows, rounded up), W2 transposed (hidden rows), b2 (one row); the linear variant stores the transposed matrix.
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

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:
        # He initialisation of the hidden layer: the variance 2 / dim doubles the second moment, and ReLU halves it
        limits = [(6 / dim) ** 0.5, 0.0, (3 / self.hidden) ** 0.5, 0.0] if self.hidden else [(3 / dim) ** 0.5]
        network = [
            InitialRows(rows, center=0.0, limit=limit)
            for rows, limit in zip(self._network_rows(dim), limits, strict=True)
        ]
        num_networks = sum(stack.partition.classes[1:])
        return [InitialRows(stack.sizes[0], center=0.0, limit=stack.partition.num_ids**-0.5), *network * num_networks]

    def pooled(self, stack: StackedRows, bags: Bags, look_up: LookUp) -> torch.Tensor:
        ids, places = torch.unique(bags.values, return_inverse=True)  # each id passes once; this waits for a GPU
        first, *later = stack.partition.of(ids)
        rows = torch.cat([first, torch.arange(stack.sizes[0], stack.rows, device=first.device)])
        vectors, *parameters = torch.split(look_up(rows, one_each(rows), None), [len(first), *stack.sizes[1:]])
        for classes, parameter in zip(later, parameters, strict=True):
            networks = parameter.view(-1, stack.class_rows[1], vectors.size(1))
            vectors = grouped_linear(vectors, classes, self.layers(networks))
        return functional.embedding_bag(
            places,
            vectors,
            offsets_of(bags.lengths),
            mode="sum",
            per_sample_weights=None if bags.weights is None else bags.weights.to(vectors.dtype),
            include_last_offset=True,
        )

    def layers(self, networks: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weights and biases of stored ``networks`` (num classes, rows, dim), as ``grouped_linear`` takes them."""
        if not self.hidden:
            return [(networks, None)]
        w1, b1, w2, b2 = torch.split(networks, self._network_rows(networks.size(2)), dim=1)
        return [(w1.mT, b1.flatten(1)[:, : self.hidden]), (w2, b2.squeeze(1))]
