"""Compositional tables whose rows are spread over ranks, although their operation needs all rows of an id in one place.

A rank owns the ids whose first class has its row there. The rows of later classes are few, and every rank gets them all
in each step. So an id is sent once, to its owner, and the sums of the owners' bags add up to the bag's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torchrec.distributed.embedding_types import ShardedEmbeddingTable

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, offsets_of, one_each
from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition
from dlrm_torchrec.embeddings.compositional.stacked_rows import StackedRows
from dlrm_torchrec.embeddings.compositional.table_configs import StackedTable
from dlrm_torchrec.embeddings.compositional.table_group import Member, TableGroup


class Ordinals(Partition):
    """The digits of a number, the highest first: the classes of which ``Partition.ordinals`` made it."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.num_ids, self._counts = prod(counts), tuple(counts)

    @property
    def classes(self) -> tuple[int, ...]:
        return self._counts

    @property
    def digits(self) -> tuple[Digit, ...]:
        return tuple(Digit(prod(self._counts[j + 1 :]), count) for j, count in enumerate(self._counts))

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(ids.long() // digit.divisor % digit.modulus for digit in self.digits)


def all_ordinals(table: ShardedEmbeddingTable, config: StackedTable) -> int:
    """The number of ordinals for which TorchRec cuts equal blocks so that each rank gets those of its rows."""
    shards = table.global_metadata.shards_metadata
    ranks = len([shard for shard in shards if shard.shard_offsets[1] == shards[0].shard_offsets[1]])
    return ranks * prod(_local(table, config).classes)


def _local(table: ShardedEmbeddingTable, config: StackedTable) -> Ordinals:
    """The ordinals of a rank's rows; all ranks but the last have equally many."""
    rows = int(table.global_metadata.shards_metadata[0].shard_sizes[0])
    return Ordinals((rows, *config.stack.partition.classes[1:]))


class SpreadGroup(TableGroup):
    """The shards of ``tables`` on this rank, for ids that come as ordinals; ``ranks`` share the rows.

    A row of a first class has its number in the kernel, and a row of a later class its place among all of those.
    """

    def __init__(
        self,
        tables: Sequence[ShardedEmbeddingTable],
        configs: Sequence[StackedTable],
        ranks: dist.ProcessGroup,
    ) -> None:
        both = list(zip(tables, configs, strict=True))
        super().__init__(
            [
                Member(config.name, tuple(config.logical.feature_names), StackedRows(_local(table, config), classes))
                for table, config in both
                for classes in [config.stack.class_rows]
            ]
        )
        self.ranks = ranks
        self._starts = list(accumulate((table.local_rows for table in tables), initial=0))
        later = [(number, j) for j in range(1, self.k) for number in range(len(both))]
        sizes = [configs[number].stack.sizes[j] for number, j in later]
        self._places = dict(zip(later, accumulate(sizes, initial=0), strict=False))
        owned = [self._owned(number, *both[number], j) for number, j in later]
        self._own_lengths = torch.cat([torch.empty(0, dtype=torch.int64), *(here.long() for here, _ in owned)])
        self._own_rows = torch.cat([torch.empty(0, dtype=torch.int64), *(rows[here] for here, rows in owned)])

    def _owned(
        self, number: int, table: ShardedEmbeddingTable, config: StackedTable, j: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which rows of a later partition are on this rank, and their numbers in the kernel."""
        assert table.local_metadata is not None
        rows = torch.arange(config.stack.sizes[j]) + config.stack.first_rows[j] - table.local_metadata.shard_offsets[0]
        return (rows >= 0) & (rows < table.local_rows), rows + self._starts[number]

    def first_row(self, number: int, j: int) -> int:
        return self._places[number, j] if j else self._starts[number]

    def read(self, look_up: LookUp, bags: Bags, later: torch.Tensor) -> torch.Tensor:
        """As for a group on one rank; all ``ranks`` must call it, and have later classes' gradients, at the same time.

        One look-up reads both, so that an optimizer takes one step.
        """
        device = bags.values.device
        lengths = self._kept("own lengths", device, lambda: self._own_lengths)
        rows = self._kept("own rows", device, lambda: self._own_rows)
        weights = None if bags.weights is None else torch.cat([bags.weights, bags.weights.new_ones(len(rows))])
        both = torch.cat([bags.lengths, lengths])
        sums, own = torch.split(
            look_up(torch.cat([bags.values, rows]), offsets_of(both), weights), [len(bags.lengths), len(lengths)]
        )
        if not len(lengths):
            return sums
        every: torch.Tensor = _SumOverRanks.apply(own, self.ranks)  # type: ignore[no-untyped-call]  # untyped in torch
        return torch.cat([sums, functional.embedding(later, every)])

    def read_rows(self, look_up: LookUp, rows: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        return self.read(look_up, one_each(rows), later)

    def sums_of_classes(self, look_up: LookUp, bags: Bags) -> torch.Tensor:
        return reduce(torch.add, self.rows_of_classes(look_up, bags))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor, ranks: dist.ProcessGroup) -> torch.Tensor:
        ctx.ranks = ranks
        return _sum_over(numbers, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum_over(gradients[0], ctx.ranks), None


def _sum_over(numbers: torch.Tensor, ranks: dist.ProcessGroup) -> torch.Tensor:
    total = numbers.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=ranks)
    return total
