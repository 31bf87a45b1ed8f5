"""Rows of the ids of many features, found in one pass: divisors, class counts and offsets are numbers per feature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition
from dlrm_torchrec.embeddings.compositional.partitions.digits import class_of, has_hot, has_seed
from dlrm_torchrec.embeddings.compositional.row_kernel import Passes, expand


class Source(NamedTuple):
    """A feature whose ids must be in [0, ``num_ids``), with the names that an error gives."""

    num_ids: int
    feature: str
    table: str
    mean: bool = False  # whether an id counts as one over the number of ids of its bag


class ClassRow(NamedTuple):
    """The row of an id is ``first_row`` plus the class of the id in the partition with this ``number``."""

    partition: Partition
    number: int
    first_row: int


class Piece(NamedTuple):
    """Bags of rows, made of the bags of a source: ``rows`` stand in the place of each id."""

    source: int
    rows: tuple[ClassRow, ...]


class RowMap:
    """Turns bags of ids of sources into bags of rows, piece by piece, with a fixed number of operators.

    On a CPU, that is one loop over the ids. There, ``count`` shortens bags that have more ids than a partition has
    classes: they hold a class's row once, with the number of its ids as its weight.
    """

    def __init__(self, sources: Sequence[Source], pieces: Sequence[Piece], *, count: bool) -> None:
        self.sources, self.pieces, self.count = list(sources), list(pieces), count
        self._passes = _passes(self.sources, self.pieces)
        digits = [Digit(*map(int, row[3:])) for row in self._passes.class_rows]
        self._hot, self._seeded = has_hot(digits), has_seed(digits)
        self._tensors: dict[torch.device, _Tensors] = {}

    def __call__(self, bags: Bags) -> Bags:
        """Bags (pieces x B) from bags (sources x B); raises ValueError for an id outside of its range."""
        learned = bags.weights is not None and (bags.weights.requires_grad or bags.weights.dtype != torch.float32)
        if bags.values.device.type == "cpu" and not learned:
            return self._by_loop(bags)
        return self._by_operators(bags)

    def _by_loop(self, bags: Bags) -> Bags:
        weights = torch.empty(0) if bags.weights is None else bags.weights
        found = expand(
            self._passes,
            bags.values.long().contiguous().numpy(),
            bags.lengths.long().contiguous().numpy(),
            weights.contiguous().numpy(),
            self.count,
        )
        if found.bad_source >= 0:
            self._refuse(found.bad_source, found.bad_value)
        weighted = bags.weights is not None or len(found.weights) > 0
        return Bags(
            torch.from_numpy(found.values),
            torch.from_numpy(found.lengths),
            torch.from_numpy(found.weights) if weighted else None,
        )

    def _by_operators(self, bags: Bags) -> Bags:
        values, lengths = bags.values.long(), bags.lengths.long().view(len(self.sources), -1)
        counts = lengths.sum(1)
        known: list[int] = counts.tolist() if bags.per_feature is None else bags.per_feature
        if values.device not in self._tensors:
            self._tensors[values.device] = _tensors(self._passes, values.device)
        own = self._tensors[values.device]
        sizes = counts[own.sources] * own.widths
        ends = sizes.cumsum(0)
        numbers = torch.arange(
            sum(known[piece.source] * len(piece.rows) for piece in self.pieces), device=values.device
        )
        piece = torch.searchsorted(ends, numbers, right=True)
        row, position = piece, numbers
        if any(len(piece.rows) > 1 for piece in self.pieces):
            within = numbers - (ends - sizes)[piece]
            position = within // own.widths[piece]
            row = own.first_class_rows[piece] + within - position * own.widths[piece]
            position = position + (counts.cumsum(0) - counts)[own.sources][piece]
        elif [piece.source for piece in self.pieces] != list(range(len(self.sources))):
            position = numbers + ((counts.cumsum(0) - counts)[own.sources] - ends + sizes)[piece]
        ids = values[position]
        class_rows = own.class_rows[row]
        first_row, _, assigned, *_, limit = class_rows.unbind(1)
        self._check(piece, ids, limit)
        rows = first_row + class_of(ids, class_rows[:, 3:-1], hot=self._hot, seeded=self._seeded)
        if len(own.assigned):
            place = torch.where(assigned < 0, 0, assigned + ids)
            rows = torch.where(assigned < 0, rows, first_row + own.assigned[place])
        weights = None if bags.weights is None else bags.weights[position]
        if any(source.mean for source in self.sources):
            shares = torch.where(own.means[:, None], 1 / lengths.clamp(min=1), 1.0).view(-1)
            each = torch.repeat_interleave(shares, lengths.view(-1), output_size=len(values))[position]
            weights = each if weights is None else each * weights
        return Bags(rows, (lengths[own.sources] * own.widths[:, None]).view(-1), weights)

    def _check(self, piece: torch.Tensor, ids: torch.Tensor, limit: torch.Tensor) -> None:
        """Raises ValueError for an id outside of its range; a GPU asserts it instead, to avoid waiting."""
        good = (ids >= 0) & (ids < limit)
        if ids.device.type != "cpu":
            torch._assert_async(good.all())
        elif not good.all():
            position = int((~good).nonzero()[0])
            self._refuse(self.pieces[int(piece[position])].source, int(ids[position]))

    def _refuse(self, number: int, value: int) -> None:
        source = self.sources[number]
        raise ValueError(
            f"ids of feature {source.feature!r} must be in [0, {source.num_ids}), the ids of table {source.table!r}: "
            f"got {value}; check how that column was prepared"
        )


def _passes(sources: Sequence[Source], pieces: Sequence[Piece]) -> Passes:
    class_rows, listed, begins = [], [np.empty(0, np.int32)], dict[tuple[int, int], int]()
    for row in (row for piece in pieces for row in piece.rows):
        count, digits = row.partition.classes[row.number], row.partition.digits
        begin, digit = -1, Digit()
        if digits is None:
            assert isinstance(row.partition, Assigned)
            key = id(row.partition), row.number
            if key not in begins:
                begins[key] = sum(map(len, listed))
                listed.append(row.partition.assignments[row.number].numpy().astype(np.int32))
            begin = begins[key]
        else:
            digit = digits[row.number]
        class_rows.append((row.first_row, count, begin, *digit))
    lasts = list(accumulate(len(piece.rows) for piece in pieces))
    return Passes(
        sources=np.array([(source.num_ids, source.mean) for source in sources], np.int64).reshape(-1, 2),
        pieces=np.array(
            [(piece.source, last - len(piece.rows), last) for piece, last in zip(pieces, lasts, strict=True)], np.int64
        ).reshape(-1, 3),
        class_rows=np.array(class_rows, np.int64).reshape(-1, 3 + len(Digit())),
        assigned=np.concatenate(listed),
    )


class _Tensors(NamedTuple):
    """The numbers of ``Passes`` on a device."""

    sources: torch.Tensor  # of each piece
    first_class_rows: torch.Tensor
    widths: torch.Tensor
    means: torch.Tensor  # of each source
    class_rows: torch.Tensor  # also with the number of ids of the source, at the end
    assigned: torch.Tensor


def _tensors(passes: Passes, device: torch.device) -> _Tensors:
    source, first, last = passes.pieces.T
    limits = passes.sources[np.repeat(source, last - first), 0]
    return _Tensors(
        sources=torch.tensor(source, device=device),
        first_class_rows=torch.tensor(first, device=device),
        widths=torch.tensor(last - first, device=device),
        means=torch.tensor(passes.sources[:, 1] > 0, device=device),
        class_rows=torch.tensor(np.column_stack([passes.class_rows, limits]), device=device),
        assigned=torch.tensor(passes.assigned, device=device),
    )
