"""Rows of the ids of many features, found in one pass: divisors, class counts and offsets are numbers per feature."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from dlrm_torchrec.embeddings.compositional.bags import Bags
from dlrm_torchrec.embeddings.compositional.partitions.base import Digit, Partition
from dlrm_torchrec.embeddings.compositional.partitions.digits import class_of, has_hot, has_seed
from dlrm_torchrec.embeddings.compositional.partitions.listed import ListedCodes, listed_or
from dlrm_torchrec.embeddings.compositional.row_kernel import Passes, expand
from dlrm_torchrec.embeddings.compositional.sources import Renumbering, Source


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
    classes: they hold a class's row once, with the number of its ids as its weight. Maps of the same partitions can
    share their ``codes``.
    """

    def __init__(
        self, sources: Sequence[Source], pieces: Sequence[Piece], *, count: bool, codes: ListedCodes | None = None
    ) -> None:
        self.sources, self.pieces, self.count = list(sources), list(pieces), count
        rows = [row for piece in self.pieces for row in piece.rows]
        self._codes = codes or ListedCodes([row.partition.codes[row.number] for row in rows])
        self._passes = _passes(self.sources, self.pieces, self._codes)
        # whether there are the first rows of all sources, then the second ones, ...: each repeats the ids as they are
        self._by_class = [(piece.source, len(piece.rows)) for piece in self.pieces] == [
            (number, 1) for number in range(len(self.sources))
        ] * (len(self.pieces) // max(len(self.sources), 1))
        digits = [Digit(*map(int, row[3:])) for row in self._passes.class_rows]
        self._hot, self._seeded = has_hot(digits), has_seed(digits)
        listed = any(source.first_ids is not None for source in sources)
        self._renumbering = Renumbering(sources) if listed else None
        self._tensors: dict[torch.device, _Tensors] = {}

    def __call__(self, bags: Bags) -> Bags:
        """Bags (pieces x B) from bags (sources x B); raises ValueError for an id outside of its range."""
        if self._renumbering is not None:
            bags = self._renumbering(bags)
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
            self.sources[found.bad_source].refuse(found.bad_value)
        weighted = bags.weights is not None or len(found.weights) > 0
        return Bags(
            torch.from_numpy(found.values),
            torch.from_numpy(found.lengths),
            torch.from_numpy(found.weights) if weighted else None,
        )

    def _by_operators(self, bags: Bags) -> Bags:
        values, lengths = bags.values.long(), bags.lengths.long().view(len(self.sources), -1)
        counts = lengths.sum(1)
        if values.device not in self._tensors:
            self._tensors[values.device] = _tensors(self._passes, self._codes, values.device)
        own = self._tensors[values.device]
        if self._by_class:
            feature = torch.repeat_interleave(own.sources[: len(counts)], counts, output_size=len(values))
            piece = row = own.first_class_rows.view(-1, len(counts))[:, feature].view(-1)
            times = len(self.pieces) // len(counts)
            of_rows, row_lengths = partial(torch.Tensor.repeat, repeats=(times,)), lengths.repeat(times, 1)
        else:
            known: list[int] = counts.tolist() if bags.per_feature is None else bags.per_feature
            sizes = counts[own.sources] * own.widths
            ends = sizes.cumsum(0)
            numbers = torch.arange(
                sum(known[piece.source] * len(piece.rows) for piece in self.pieces), device=values.device
            )
            piece = torch.searchsorted(ends, numbers, right=True)
            first, before = torch.stack([ends - sizes, (counts.cumsum(0) - counts)[own.sources]])[:, piece]
            row, within = piece, numbers - first
            if any(len(piece.rows) > 1 for piece in self.pieces):
                width = own.widths[piece]
                row, within = own.first_class_rows[piece] + within % width, within // width
            of_rows = partial(torch.index_select, dim=0, index=before + within)
            row_lengths = lengths[own.sources] * own.widths[:, None]
        ids = of_rows(values)
        class_rows = own.class_rows[row]
        first_row, _, begin, *_, limit = class_rows.unbind(1)
        self._check(piece, ids, limit)
        classes = class_of(ids, class_rows[:, 3:-1], hot=self._hot, seeded=self._seeded)
        rows = first_row + listed_or(classes, ids, begin=begin, codes=own.codes)
        weights = None if bags.weights is None else of_rows(bags.weights)
        if any(source.mean for source in self.sources):
            shares = torch.where(own.means[:, None], 1 / lengths.clamp(min=1), 1.0).view(-1)
            each = of_rows(torch.repeat_interleave(shares, lengths.view(-1), output_size=len(values)))
            weights = each if weights is None else each * weights
        return Bags(rows, row_lengths.view(-1), weights)

    def _check(self, piece: torch.Tensor, ids: torch.Tensor, limit: torch.Tensor) -> None:
        """Raises ValueError for an id outside of its range; a GPU asserts it instead, to avoid waiting."""
        good = ids // limit == 0
        if ids.device.type != "cpu":
            torch._assert_async(good.all())
        elif not good.all():
            position = int((~good).nonzero()[0])
            self.sources[self.pieces[int(piece[position])].source].refuse(int(ids[position]))


def _passes(sources: Sequence[Source], pieces: Sequence[Piece], codes: ListedCodes) -> Passes:
    class_rows = [
        (
            row.first_row,
            row.partition.classes[row.number],
            codes.begin(row.partition.codes[row.number]),
            *row.partition.digits[row.number],
        )
        for piece in pieces
        for row in piece.rows
    ]
    lasts = list(accumulate(len(piece.rows) for piece in pieces))
    return Passes(
        sources=np.array([(source.num_numbers, source.mean) for source in sources], np.int64).reshape(-1, 2),
        pieces=np.array(
            [(piece.source, last - len(piece.rows), last) for piece, last in zip(pieces, lasts, strict=True)], np.int64
        ).reshape(-1, 3),
        class_rows=np.array(class_rows, np.int64).reshape(-1, 3 + len(Digit())),
        short_codes=codes.short,
        long_codes=codes.long,
    )


class _Tensors(NamedTuple):
    """The numbers of ``Passes`` on a device."""

    sources: torch.Tensor  # of each piece
    first_class_rows: torch.Tensor
    widths: torch.Tensor
    means: torch.Tensor  # of each source
    class_rows: torch.Tensor  # also with the number of ids of the source, at the end
    codes: list[torch.Tensor]  # short and long ones


def _tensors(passes: Passes, codes: ListedCodes, device: torch.device) -> _Tensors:
    source, first, last = passes.pieces.T
    limits = passes.sources[np.repeat(source, last - first), 0]
    return _Tensors(
        sources=torch.tensor(source, device=device),
        first_class_rows=torch.tensor(first, device=device),
        widths=torch.tensor(last - first, device=device),
        means=torch.tensor(passes.sources[:, 1] > 0, device=device),
        class_rows=torch.tensor(np.column_stack([passes.class_rows, limits]), device=device),
        codes=codes.on(device),
    )
