"""Which rows of which row group a rank reads for which global batch.

An epoch is a seeded permutation of all row groups, each with its rows permuted. This sequence of R rows is cut into
``lanes`` contiguous pieces of equal length; a global batch takes its next rows from every lane alike, and the ranks
share the batch contiguously. With as many lanes as ranks every rank thus reads row groups of its own, evenly whatever
their sizes; with any other number of ranks the global batches stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets import counter
from dlrm_torchrec.datasets.stream import Ranks, Share


class Visit(NamedTuple):
    """One reading of a row group, in one epoch and for one lane."""

    epoch: int
    lane: int
    group: int


class Piece(NamedTuple):
    """The rows ``first`` .. ``last - 1`` of a row group in its order of that epoch."""

    visit: Visit
    first: int
    last: int


@dataclass(frozen=True)
class Order:
    """The reading order of row groups of ``group_rows`` rows over ``epochs`` epochs."""

    group_rows: NDArray[np.int64]  # (G,)
    epochs: int
    lanes: int
    ranks: Ranks
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.ranks.global_batch_size % self.lanes:
            raise ValueError(
                f"lanes must divide the global batch size {self.ranks.global_batch_size}: got {self.lanes}; "
                "use the number of ranks that the run began with"
            )
        if self.num_rows == 0 or self.epochs < 1:
            raise ValueError(
                f"a stream must have rows and epochs: got {self.num_rows} rows and {self.epochs} epochs; "
                "check the split and the number of epochs"
            )

    @property
    def num_rows(self) -> int:
        return int(self.group_rows.sum())

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.ranks.global_batch_size)

    def steps(self, start_step: int) -> Iterator[tuple[Share, list[Piece]]]:
        """This rank's share of every global batch from ``start_step`` on, and the pieces that make it up, in order."""
        first_epoch, first_batch = divmod(start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            groups = self._groups(epoch)
            ends = np.cumsum(self.group_rows[groups])
            for batch in range(first_batch, self.steps_per_epoch):
                yield self._step(epoch, batch, groups, ends)
            first_batch = 0

    def rows(self, visit: Visit) -> NDArray[np.int64] | None:
        """The order of the rows within a row group, None as stored: the same for every lane."""
        if not self.shuffle:
            return None
        return counter.permutation(int(self.group_rows[visit.group]), self.seed, visit.epoch, visit.group)

    def _groups(self, epoch: int) -> NDArray[np.int64]:
        count = len(self.group_rows)
        return counter.permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)

    def _step(
        self, epoch: int, batch: int, groups: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[Share, list[Piece]]:
        # In the order of the epoch: the rows that each lane gives to this batch.
        rows_per_lane = self.ranks.global_batch_size // self.lanes
        cuts = [lane * self.num_rows // self.lanes for lane in range(self.lanes + 1)]
        firsts = [min(cut + batch * rows_per_lane, end) for cut, end in pairwise(cuts)]
        counts = [min(rows_per_lane, end - first) for first, end in zip(firsts, cuts[1:], strict=True)]
        share = self.ranks.share(sum(counts))
        pieces, offset = [], 0  # offset of the lane's first row in the global batch
        for lane, (first, count) in enumerate(zip(firsts, counts, strict=True)):
            skipped = min(max(share.first - offset, 0), count)
            wanted = min(max(share.first + share.num_rows - offset, 0), count)
            offset += count
            position, last = first + skipped, first + wanted
            index = int(np.searchsorted(ends, position, side="right"))
            while position < last:
                start = int(ends[index] - self.group_rows[groups[index]])
                stop = min(last, int(ends[index]))
                if stop > position:
                    visit = Visit(epoch, lane, int(groups[index]))
                    pieces.append(Piece(visit, position - start, stop - start))
                position, index = stop, index + 1
        return share, pieces
