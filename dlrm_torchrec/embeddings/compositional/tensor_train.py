"""Tensor trains: "TT-Rec: Tensor train compression for deep learning recommendation models" (arXiv 2101.11714)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp
from dlrm_torchrec.embeddings.compositional.operations import Passed
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.paths.grouped import Layers
from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows, StackedRows
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup


@dataclass(frozen=True)
class TensorTrain(Passed):
    """The product of cores G1, G2 and G3, which an id's three classes select (equation 3 of the paper).

    With a dim of d1 * d2 * d3, as even as possible, number (i, j, l) of a vector is G1[i] @ G2[j] @ G3[l]. Core 1 is a
    row of the first partition, as d1 x dim / d1 numbers: no number of a row is unused, and dim / d1 is the first rank.
    The other ranks are ``rank``. Core 2 has dim / d1 x d2 x ``rank`` numbers and core 3 ``rank`` x d3, in whole rows;
    only what fills up a class's last row is unused. More or fewer partitions have more or fewer cores; with two,
    dim / d1 is the only rank.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank of a tensor train must be at least 1: got {self.rank}; the paper uses 8 to 64")

    def class_rows(self, dim: int, k: int) -> tuple[int, ...]:
        return 1, *(-(-rank * width // dim) for rank, width in self._cores(dim, k))

    def products(self, dim: int, k: int) -> int:
        return sum(
            self.pieces(dim, number=j, k=k) * rank * width for j, (rank, width) in enumerate(self._cores(dim, k), 1)
        )

    def pieces(self, dim: int, *, number: int, k: int) -> int:
        return prod(even_factors(dim, k)[:number])

    def initial_rows(self, stack: StackedRows, dim: int) -> list[InitialRows]:
        cores = zip(stack.sizes[1:], self._cores(dim, len(stack.sizes)), strict=True)
        first = InitialRows(stack.sizes[0], center=0.0, limit=stack.partition.num_ids**-0.5)
        return [first, *(InitialRows(size, center=0.0, limit=(3 / rank) ** 0.5) for size, (rank, _) in cores)]

    def pooled(self, group: TableGroup, bags: Bags, look_up: LookUp) -> torch.Tensor:
        if group.k == 1 or not group.has_few_combinations(bags):
            return super().pooled(group, bags, look_up)
        # core 1 comes first, so that ids of a bag with equal later cores are summed first, as in a product
        device = bags.values.device
        read = group.sums_by_class(look_up, bags, group.later_rows(device))
        sums, *stored = group.by_partition(read)
        pairs = zip(stored, group.combined_places(device), strict=True)
        matrix, *cores = (
            self.layers(part, number=number, k=group.k)[0][0][places]
            for number, (part, places) in enumerate(pairs, start=1)
        )  # (combinations, features, rank before, factor * rank behind)
        rank = matrix.size(2)
        for core in cores:
            pieces = matrix.view(*matrix.shape[:2], -1, core.size(2))
            matrix = (pieces @ core).view(*matrix.shape[:2], rank, -1)
        pieces = sums.view(*matrix.shape[:2], -1, rank)
        return (pieces @ matrix).sum(0).view(-1, sums.size(1))

    def layers(self, networks: torch.Tensor, *, number: int, k: int) -> Layers:
        rank, width = self._cores(networks.size(2), k)[number - 1]
        return [(networks.flatten(1)[:, : rank * width].unflatten(1, (rank, width)), None)]

    def _cores(self, dim: int, k: int) -> list[tuple[int, int]]:
        """Rows and columns of each later core: the rank before it; its factor of the dim times the rank behind it."""
        first, *factors = even_factors(dim, k)
        ranks = [dim // first, *[self.rank] * (k - 2), 1]
        return [(rank, factor * after) for rank, factor, after in zip(ranks, factors, ranks[1:], strict=False)]


def tensor_train_for_rows(
    of_collisions: Callable[[int], Partition], dim: int, *, max_rows: int, rank: int
) -> tuple[Partition, TensorTrain]:
    """The tensor train of the largest rank up to ``rank`` that has at most ``max_rows`` rows, with its partition.

    Of the partitions ``of_collisions``, it has the one with the fewest collisions, as far as bisection finds it: uneven
    ones of a small rank learn more than even ones of a larger rank. Raises ValueError when not even rank 1 fits.
    """
    num_ids, k = of_collisions(1).num_ids, len(of_collisions(1).classes)
    for tried in range(rank, 0, -1):
        operation = TensorTrain(tried)
        class_rows = operation.class_rows(dim, k)
        # n / c + c^(1 / (k - 1)) R is least here, for R rows of a class of each later partition
        low, high = 1, max(1, int((num_ids * (k - 1) / sum(class_rows[1:])) ** ((k - 1) / k)))
        found = None
        while low <= high:
            middle = high if found is None else (low + high) // 2
            partition = of_collisions(middle)
            if StackedRows(partition, class_rows).rows <= max_rows:
                found, high = partition, middle - 1
            elif found is None:
                break  # the fewest rows of this rank are too many
            else:
                low = middle + 1
        if found is not None:
            return found, operation
    raise ValueError(
        f"max_rows must hold a tensor train of rank 1 for {num_ids} ids in {k} partitions: got {max_rows}; raise it, "
        "or use more partitions"
    )


@lru_cache
def even_factors(product: int, k: int) -> tuple[int, ...]:
    """The k integers of this product that have the smallest sum, smallest first."""
    if k == 1:
        return (product,)
    firsts = [first for first in range(1, product + 1) if first**k <= product and product % first == 0]
    return min(
        ((first, *even_factors(product // first, k - 1)) for first in firsts), key=lambda each: (sum(each), each)
    )
