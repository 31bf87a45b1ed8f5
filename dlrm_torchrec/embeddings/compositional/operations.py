"""Operations: how the rows of an id's k classes become its vector (arXiv 1909.02107, section 4).

Every operation works on one physical table that holds the k stacked partitions, and asks for *bags* of its rows:
``look_up(rows, offsets, weights)`` returns one sum per bag, as for a plain table. Any kernel that sums rows therefore
also works for compositional tables: PyTorch's or FBGEMM's, sharded or not, fused with its optimizer or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial, reduce
from typing import ClassVar

import torch
from torch.nn import functional

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, offsets_of, pool
from dlrm_torchrec.embeddings.compositional.paths.grouped import Layers, grouped_linear
from dlrm_torchrec.embeddings.compositional.paths.on_cpu import pool_paths
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow, Piece
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup


class Operation(ABC):
    """A way to compute an id's vector from the rows of its classes."""

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

        TorchRec stacks the column shards of a rank below each other. A shard of rows of several distributions keeps its
        numbers, because it does not know its first row: ``initialize_tables`` does.
        """
        parts = self.initial_rows(stack, dim)
        if len(parts) == 1:
            return torch.nn.init.uniform_(weight, -parts[0].limit, parts[0].limit)
        if len(weight) % stack.rows:
            return weight
        for start in range(0, len(weight), stack.rows):
            shard = weight[start : start + stack.rows]
            for piece, part in zip(torch.split(shard, [part.rows for part in parts]), parts, strict=True):
                torch.nn.init.uniform_(piece, part.center - part.limit, part.center + part.limit)
        return weight

    @abstractmethod
    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The vector of each id (N, num_outputs * row dim).

        ``bags`` has the bags of one feature of the group after another. Weights are ignored.
        """

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The sum of the vectors of each bag's ids, weighted if there are weights: (bags, num_outputs * row dim)."""
        return pool(self.vectors(group, bags, look_up), bags)


class Summed(Operation):
    """Operations whose result is a bag of rows, so that the look-up itself combines them."""

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:  # noqa: ARG002 (other operations use it)
        return [InitialRows(stack.rows, center=0.0, limit=stack.expected_ids**-0.5)]

    def pieces(self, source: int, rows: tuple[ClassRow, ...]) -> list[Piece]:
        """The bags of rows to look up, one piece for each output, where an id's classes have these ``rows``."""
        return [Piece(source, (row,)) for row in rows]

    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        return torch.cat(group.rows_of_classes(look_up, bags), dim=1)

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        rows = group.summed(self.pieces)(bags)
        sums = look_up(rows.values, offsets_of(rows.lengths), rows.weights)
        outputs = sums.view(self.num_outputs(group.k), len(bags.lengths), sums.size(1))
        return outputs.transpose(0, 1).flatten(1)


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
        return [InitialRows(stack.rows, center=0.0, limit=(len(stack.class_rows) * stack.expected_ids) ** -0.5)]

    def pieces(self, source: int, rows: tuple[ClassRow, ...]) -> list[Piece]:
        return [Piece(source, rows)]

    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        return group.sums_of_classes(look_up, bags)


@dataclass(frozen=True)
class Mult(Operation):
    """The element-wise product of the k rows of each id, summed over the bag; a product of sums would be another model.

    Factors after the first start as ``center`` + U(-spread, spread). The first factor starts so small that the product
    has the variance of a plain table. Ids with a first row of their own share their other factors, which start as 1.
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
        own = stack.partition.own_rows
        if not own:
            later = InitialRows(sum(others), center=self.center, limit=self.spread)
            return [InitialRows(first, center=0.0, limit=limit), later]
        parts = [
            InitialRows(own, center=0.0, limit=stack.partition.num_ids**-0.5),
            InitialRows(first - own, center=0.0, limit=limit),
        ]
        for size in others:  # a factor of 1 for ids with rows of their own
            parts.append(InitialRows(1, center=1.0, limit=0.0))
            parts.append(InitialRows(size - 1, center=self.center, limit=self.spread))
        return parts

    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        return reduce(torch.mul, group.rows_of_classes(look_up, bags))

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        few = group.has_few_combinations(bags)
        return self._pooled_by_class(group, bags, look_up) if few else super().pooled(group, bags, look_up)

    def _pooled_by_class(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        """The same sum by the distributive law: ids of a bag that share their later classes are summed first.

        sum_x w1[p1(x)] * w2[p2(x)] = sum_c w2[c] * sum_{x: p2(x) = c} w1[p1(x)]. The sums over x are a plain lookup,
        so there is only one product per bag and class instead of one per id.
        """
        later_rows = group.combined_rows(bags.values.device)
        read = group.sums_by_class(look_up, bags, later_rows.view(-1))
        sums, factors = torch.split(read, [group.num_combinations * len(bags.lengths), later_rows.numel()])
        products = sums.view(group.num_combinations, group.num_features, -1, read.size(1))
        if len(later_rows):
            products = products * reduce(torch.mul, factors.view(*later_rows.shape, 1, factors.size(1)))
        return products.sum(0).flatten(0, 1)


class Passed(Operation):
    """A row of the first partition, passed through one small network per later partition; the id's class selects it.

    The networks of later classes are stored as rows of the same table. Every batch reads all of them once.
    """

    column_wise = False

    @abstractmethod
    def products(self, dim: int, k: int) -> int:
        """The number of multiply-adds with which one id passes through its k - 1 networks."""

    @abstractmethod
    def layers(self, networks: torch.Tensor, *, number: int, k: int) -> Layers:
        """Weights and biases of stored ``networks`` (num classes, rows, dim) of partition ``number``, from 1 on."""

    def pieces(self, dim: int, *, number: int, k: int) -> int:  # noqa: ARG002 (other operations use it)
        """Into how many pieces a vector is cut that pass through the network of partition ``number`` one by one."""
        return 1

    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        if bags.values.device.type == "cpu":
            ids, places = group.distinct(bags)  # each id passes once
            return functional.embedding(places, self._each(group, ids, look_up))
        # to find out how many distinct ids there are would mean waiting for the device
        return self._each(group, bags._replace(weights=None), look_up)

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        if bags.values.device.type != "cpu":
            return super().pooled(group, bags, look_up)
        ids, places = group.distinct(bags)
        vectors = self._each(group, ids, look_up)
        return functional.embedding_bag(
            places,
            vectors,
            offsets_of(bags.lengths),
            mode="sum",
            per_sample_weights=None if bags.weights is None else bags.weights.to(vectors.dtype),
            include_last_offset=True,
        )

    def _each(self, group: TableGroup, ids: Bags, look_up: LookUp) -> torch.Tensor:
        """The vector (N, dim) of each id, passed on its own."""
        first, *later = group.networks(ids).values.view(group.k, len(ids.values))
        read = group.read_rows(look_up, first, group.later_rows(first.device))
        vectors, *parts = group.by_partition(read)
        for number, (classes, networks) in enumerate(zip(later, parts, strict=True), start=1):
            layers = partial(self.layers, number=number, k=group.k)
            pieces = self.pieces(read.size(1), number=number, k=group.k)
            vectors = grouped_linear(vectors, classes, networks, layers, pieces=pieces)
        return vectors


@dataclass(frozen=True)
class Path(Passed):
    """Networks with ``hidden`` units and ReLU, dim -> hidden -> dim.

    With ``hidden`` 0 a network is one dim x dim matrix, the linear variant. The rows of a network are W1 (hidden rows),
    b1 (hidden / dim rows, rounded up), W2 transposed (hidden rows), b2 (one row); the linear variant stores the
    transposed matrix.
    """

    hidden: int = 64

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise ValueError(
                f"hidden units of a path must be 0 (linear) or more: got {self.hidden}; the paper uses 16 to 128"
            )

    def _network_rows(self, dim: int) -> list[int]:
        return [self.hidden, -(-self.hidden // dim), self.hidden, 1] if self.hidden else [dim]

    def class_rows(self, dim: int, k: int) -> tuple[int, ...]:
        return (1,) + (sum(self._network_rows(dim)),) * (k - 1)

    def products(self, dim: int, k: int) -> int:
        return (k - 1) * (2 * self.hidden * dim if self.hidden else dim**2)

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:
        # He initialisation of the hidden layer: the variance 2 / dim doubles the second moment, and ReLU halves it
        limits = [(6 / dim) ** 0.5, 0.0, (3 / self.hidden) ** 0.5, 0.0] if self.hidden else [(3 / dim) ** 0.5]
        network = [
            InitialRows(rows, center=0.0, limit=limit)
            for rows, limit in zip(self._network_rows(dim), limits, strict=True)
        ]
        num_networks = sum(stack.partition.classes[1:])
        return [InitialRows(stack.sizes[0], center=0.0, limit=stack.partition.num_ids**-0.5), *network * num_networks]

    def vectors(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        if group.k == 2 and bags.values.device.type == "cpu":
            return pool_paths(group, bags._replace(weights=None), look_up, self._network_rows, single=True)
        return super().vectors(group, bags, look_up)

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        learned = bags.weights is not None and bags.weights.requires_grad
        if group.k == 2 and bags.values.device.type == "cpu" and not learned:
            return pool_paths(group, bags, look_up, self._network_rows)
        return super().pooled(group, bags, look_up)

    def layers(self, networks: torch.Tensor, *, number: int = 1, k: int = 2) -> Layers:  # noqa: ARG002 (all are alike)
        if not self.hidden:
            return [(networks, None)]
        w1, b1, w2, b2 = torch.split(networks, self._network_rows(networks.size(2)), dim=1)
        return [(w1.mT, b1.flatten(1)[:, : self.hidden]), (w2, b2.squeeze(1))]
