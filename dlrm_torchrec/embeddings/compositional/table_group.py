"""Compositional tables whose rows lie below each other in one physical table, so that one kernel reads them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, offsets_of
from dlrm_torchrec.embeddings.compositional.partitions.listed import ListedCodes
from dlrm_torchrec.embeddings.compositional.row_map import ClassRow, Piece, RowMap
from dlrm_torchrec.embeddings.compositional.sources import Source
from dlrm_torchrec.embeddings.compositional.stacked_rows import StackedRows


class Member(NamedTuple):
    """A table of a group, with the features that read it."""

    name: str
    features: tuple[str, ...]
    stack: StackedRows


class TableGroup:
    """Tables with equally many partitions, k; their rows follow each other, and their features, too.

    The results of its maps have the first class of all ids, then the second class of all ids, ...
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.k = len(members[0].stack.sizes)
        self.num_features = sum(len(member.features) for member in members)
        self.bases = _starts([member.stack.rows for member in members])
        self._summed: RowMap | None = None
        self._indices: dict[tuple[str, torch.device], torch.Tensor] = {}

    def first_row(self, number: int, j: int) -> int:
        """The row at which partition ``j`` of table ``number`` begins."""
        return self.bases[number] + self.members[number].stack.first_rows[j]

    def read(self, look_up: LookUp, bags: Bags, later: torch.Tensor) -> torch.Tensor:
        """The sums of ``bags`` of rows of first classes; below them ``later``, rows of later classes."""
        ones = bags.lengths.new_ones(len(later))
        weights = None if bags.weights is None else torch.cat([bags.weights, bags.weights.new_ones(len(later))])
        return look_up(torch.cat([bags.values, later]), offsets_of(torch.cat([bags.lengths, ones])), weights)

    def read_rows(self, look_up: LookUp, rows: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """The numbers of ``rows`` of first classes, one by one; below them those of ``later``."""
        both = torch.cat([rows, later])
        return look_up(both, torch.arange(len(both) + 1, device=both.device), None)

    def rows_of_classes(self, look_up: LookUp, bags: Bags) -> tuple[torch.Tensor, ...]:
        """The rows (N, dim) of the first classes of all ids, those of their second classes, ..."""
        count = len(bags.values)
        first, later = torch.split(self.rows(bags._replace(weights=None)).values, [count, (self.k - 1) * count])
        return torch.split(self.read_rows(look_up, first, later), [count] * self.k)

    def sums_of_classes(self, look_up: LookUp, bags: Bags) -> torch.Tensor:
        """The sum (N, dim) of the rows of each id's classes."""
        rows = self.rows(bags._replace(weights=None)).values.view(self.k, len(bags.values)).T.flatten()
        return look_up(rows, torch.arange(0, len(rows) + 1, self.k, device=rows.device), None)

    @cached_property
    def rows(self) -> RowMap:
        """A map from ids to the rows of their k classes."""
        return self._map(lambda number: [self.first_row(number, j) for j in range(self.k)])

    @cached_property
    def digits(self) -> RowMap:
        """A map from ids to the row of their first class, and to the numbers of their later classes."""
        return self._map(lambda number: [self.first_row(number, 0)] + [0] * (self.k - 1))

    @cached_property
    def _classes(self) -> RowMap:
        """A map from ids to the numbers of their k classes."""
        return self._map(lambda _: [0] * self.k)

    @cached_property
    def networks(self) -> RowMap:
        """A map from ids to the row of their first class, and to places of their later classes in ``later_rows``."""
        return self._map(lambda number: [self.first_row(number, 0), *self._class_places[number][1:]])

    @cached_property
    def _class_places(self) -> list[tuple[int, ...]]:
        """The place of each table's first class among the classes of all tables, for each partition."""
        return list(zip(*[_starts(counts) for counts in self.class_counts], strict=True))

    def summed(self, pieces: Callable[[int, tuple[ClassRow, ...]], list[Piece]]) -> RowMap:
        """A map from ids to the bags of rows that ``pieces`` makes of a feature's rows; for a group of one feature."""
        ((name, (feature,), stack),) = self.members
        if self._summed is None:
            source = Source(stack.partition.num_ids, feature, name, first_ids=stack.partition.first_ids)
            self._summed = RowMap([source], pieces(0, stack.class_rows_of()), count=False)
        return self._summed

    @cached_property
    def class_counts(self) -> list[list[int]]:
        """The number of classes of each partition in each table."""
        return [list(counts) for counts in zip(*[m.stack.partition.classes for m in self.members], strict=True)]

    @cached_property
    def num_combinations(self) -> int:
        """The largest number of combinations of an id's later classes."""
        return max(prod(member.stack.partition.classes[1:]) for member in self.members)

    def later_rows(self, device: torch.device) -> torch.Tensor:
        """The rows of all later partitions, of one partition after another's and there of all tables."""

        def create() -> torch.Tensor:
            ranges = [
                torch.arange(member.stack.sizes[j]) + self.first_row(number, j)
                for j in range(1, self.k)
                for number, member in enumerate(self.members)
            ]
            return torch.cat([torch.empty(0, dtype=torch.int64), *ranges])

        return self._kept("later rows", device, create)

    def by_partition(self, read: torch.Tensor) -> list[torch.Tensor]:
        """What was read before ``later_rows``; then for each later partition (classes of all tables, class rows, dim).

        One operator takes ``read`` apart, so that one gives its gradient.
        """
        sizes = [sum(member.stack.sizes[j] for member in self.members) for j in range(1, self.k)]
        before, *parts = torch.split(read, [len(read) - sum(sizes), *sizes])
        class_rows = self.members[0].stack.class_rows[1:]
        return [before, *(part.view(-1, rows, read.size(1)) for part, rows in zip(parts, class_rows, strict=True))]

    def combined_rows(self, device: torch.device) -> torch.Tensor:
        """Rows of the later classes of every combination, (k - 1, combinations, features).

        A feature with fewer combinations than others repeats its own.
        """
        return self._kept("combined rows", device, lambda: self._combined(self.first_row))

    def combined_places(self, device: torch.device) -> torch.Tensor:
        """As ``combined_rows``, but the places of the classes among those of their partition in ``later_rows``."""
        return self._kept(
            "combined places", device, lambda: self._combined(lambda number, j: self._class_places[number][j])
        )

    def _combined(self, first: Callable[[int, int], int]) -> torch.Tensor:
        """The later classes of every combination, counted from the ``first`` of a table and a partition."""
        index = torch.arange(self.num_combinations)
        found = torch.empty(self.k - 1, self.num_combinations, self.num_features, dtype=torch.int64)
        feature = 0
        for number, member in enumerate(self.members):
            repeats = 1
            for j in reversed(range(1, self.k)):
                count = member.stack.partition.classes[j]
                own = first(number, j) + index // repeats % count
                found[j - 1, :, feature : feature + len(member.features)] = own[:, None]
                repeats *= count
            feature += len(member.features)
        return found

    def has_few_combinations(self, bags: Bags) -> bool:
        """Whether ``sums_by_class`` has fewer bags than there are ids, and can sum them."""
        weights = bags.weights
        # FBGEMM's bucketizing gives weights no gradient, and takes only float32 weights
        sortable = weights is None or (weights.dtype == torch.float32 and not weights.requires_grad)
        return sortable and self.num_combinations * len(bags.lengths) <= len(bags.values)

    def sums_by_class(self, look_up: LookUp, bags: Bags, later: torch.Tensor) -> torch.Tensor:
        """Sums of rows of first classes over a bag's ids with equal later classes; below them rows ``later``.

        There is a sum for each combination of later classes and there for each bag.
        """
        first, *classes = self.digits(bags._replace(weights=None)).values.view(self.k, len(bags.values))
        lengths, values, weights, *_ = torch.ops.fbgemm.bucketize_sparse_features(
            bags.lengths,
            first * self.num_combinations + self.combinations(classes, bags),
            bucketize_pos=False,
            my_size=self.num_combinations,
            weights=bags.weights,
        )
        return self.read(look_up, Bags(values, lengths, weights), later)

    def combinations(self, classes: Sequence[torch.Tensor], bags: Bags) -> torch.Tensor:
        """The number of each id's combination of later classes, from these classes; the last is the lowest digit."""
        if not classes:
            return torch.zeros_like(bags.values, dtype=torch.int64)
        return self._joined(classes, self.class_counts[1:], bags)

    def ordinals(self, bags: Bags) -> torch.Tensor:
        """The k classes of each id as one number in mixed radix; the first class is its highest digit.

        Raises ValueError for an id outside of its range.
        """
        classes = self._classes(bags._replace(weights=None)).values.view(self.k, len(bags.values))
        return self._joined(list(classes), self.class_counts, bags)

    def _joined(self, digits: Sequence[torch.Tensor], counts: Sequence[list[int]], bags: Bags) -> torch.Tensor:
        """One number of each id's digits; ``counts`` are how many values each digit has, in each table."""
        found, features = digits[0], None
        for digit, of_tables in zip(digits[1:], counts[1:], strict=True):
            if len(set(of_tables)) == 1:
                found = found * of_tables[0] + digit
                continue
            features = self.features_of(bags) if features is None else features
            found = found * self._of_features(f"counts {of_tables}", of_tables, found.device)[features] + digit
        return found

    def features_of(self, bags: Bags) -> torch.Tensor:
        """The number of each id's feature."""
        counts = bags.lengths.view(self.num_features, -1).sum(1)
        numbers = torch.arange(len(counts), device=counts.device)
        return torch.repeat_interleave(numbers, counts, output_size=len(bags.values))

    def distinct(self, bags: Bags) -> tuple[Bags, torch.Tensor]:
        """Every id of each feature once, as one bag per feature, and where each id of ``bags`` is among them.

        A GPU would be waited for.
        """
        starts = [0, *accumulate(source.num_ids for source in self.rows.sources)]
        first = self._of_features("starts", starts[:-1], bags.values.device, once=True)
        keys = bags.values + first[self.features_of(bags)] if self.num_features > 1 else bags.values
        keys, places = torch.unique(keys, return_inverse=True)
        features = torch.searchsorted(first, keys, right=True) - 1
        counts = torch.zeros_like(first).scatter_add(0, features, torch.ones_like(features))
        return Bags(keys - first[features], counts, None), places

    def _map(self, first_rows: Callable[[int], Sequence[int]]) -> RowMap:
        """A map to rows that begin at the k ``first_rows`` of each table."""
        sources, by_partition = [], [[] for _ in range(self.k)]  # type: ignore[var-annotated]
        for number, member in enumerate(self.members):
            partition = member.stack.partition
            for feature in member.features:
                for j, first in enumerate(first_rows(number)):
                    by_partition[j].append(Piece(len(sources), (ClassRow(partition, j, first),)))
                sources.append(Source(partition.num_ids, feature, member.name, first_ids=partition.first_ids))
        pieces = [piece for pieces in by_partition for piece in pieces]
        return RowMap(sources, pieces, count=False, codes=self._codes)

    @cached_property
    def _codes(self) -> ListedCodes:
        return ListedCodes([codes for member in self.members for codes in member.stack.partition.codes])

    def _of_features(
        self, name: str, numbers: Sequence[int], device: torch.device, *, once: bool = False
    ) -> torch.Tensor:
        each = numbers if once else [n for n, m in zip(numbers, self.members, strict=True) for _ in m.features]
        return self._kept(name, device, lambda: torch.tensor(each, dtype=torch.int64))

    def _kept(self, name: str, device: torch.device, create: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor of numbers that do not change; it is copied to the device once."""
        if (name, device) not in self._indices:
            self._indices[name, device] = create().to(device)
        return self._indices[name, device]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)][:-1]
