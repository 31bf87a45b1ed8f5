"""Which rows of which row groups a rank reads for each global batch, from any step on.

An epoch is a seeded permutation of all row groups, and the rows of each row group are permuted, too. In this order, the
row groups are dealt to tracks of equal length: each one goes to the track with the fewest rows so far, and is split
where a track becomes full. A global batch takes equally many rows from every track, and each rank gets a contiguous
share of the batch. There are ``lanes`` tracks, or up to ``MIXED_ROW_GROUPS`` times as many when rows are shuffled.

With as many lanes as ranks, every rank reads its own row groups, and equally many rows for any sizes of row groups;
when shuffled, it mixes the rows of several row groups. With any other number of ranks the global batches stay the same,
so a resumed run finds its rows by its step alone (``Order.steps``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heapreplace
from itertools import accumulate, pairwise
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.random.permutation import permutation
from dlrm_torchrec.datasets.stream import Ranks, Share

MIXED_ROW_GROUPS = 4


class Visit(NamedTuple):
    """One reading of a row group, in one epoch and on one track."""

    epoch: int
    track: int
    group: int


class Piece(NamedTuple):
    """The rows ``first`` .. ``last - 1`` of a row group, in the order that they have in that epoch."""

    visit: Visit
    first: int
    last: int


class _Take(NamedTuple):
    """The rows ``first`` .. ``first + rows - 1`` of the rows that a track gives to a batch."""

    track: int
    first: int
    rows: int


class _Track(NamedTuple):
    """The rows of a track in an epoch: from place ``starts[i]`` the rows of ``groups[i]`` from row ``firsts[i]`` on."""

    starts: list[int]
    groups: list[int]
    firsts: list[int]


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

    @cached_property
    def num_rows(self) -> int:
        return int(self.group_rows.sum())

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.ranks.global_batch_size)

    def steps(self, start_step: int) -> Iterator[tuple[Share, list[Piece]]]:
        """This rank's share of each global batch from ``start_step`` (where a run resumes), and its pieces in order."""
        whole, last = self._takes(0), self._takes(self.steps_per_epoch - 1)
        first_epoch, first_batch = divmod(start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            tracks = self._tracks(epoch)
            for batch in range(first_batch, self.steps_per_epoch):
                share, takes = last if batch == self.steps_per_epoch - 1 else whole
                pieces = []
                for number, first, count in takes:
                    track, position = tracks[number], batch * self._rows_per_track + first
                    index = bisect_right(track.starts, position) - 1
                    while count:
                        taken = min(count, track.starts[index + 1] - position)
                        row = track.firsts[index] + position - track.starts[index]
                        pieces.append(Piece(Visit(epoch, number, track.groups[index]), row, row + taken))
                        position, count, index = position + taken, count - taken, index + 1
                yield share, pieces
            first_batch = 0

    def rows(self, visit: Visit) -> NDArray[np.int64] | None:
        """The order of the rows within a row group, the same for every track; None for the order in the file."""
        if not self.shuffle:
            return None
        return permutation(int(self.group_rows[visit.group]), self.seed, visit.epoch, visit.group)

    def _groups(self, epoch: int) -> NDArray[np.int64]:
        count = len(self.group_rows)
        return permutation(count, self.seed, epoch) if self.shuffle else np.arange(count)

    @cached_property
    def _track_rows(self) -> list[int]:
        """The number of rows of each track in an epoch."""
        count = self.lanes * (gcd(self.ranks.global_batch_size // self.lanes, MIXED_ROW_GROUPS) if self.shuffle else 1)
        return [(track + 1) * self.num_rows // count - track * self.num_rows // count for track in range(count)]

    @cached_property
    def _rows_per_track(self) -> int:
        """The number of rows that each track gives to a full global batch."""
        return self.ranks.global_batch_size // len(self._track_rows)

    def _tracks(self, epoch: int) -> list[_Track]:
        tracks = [_Track([0], [], []) for _ in self._track_rows]
        open_tracks = [(0, track) for track, rows in enumerate(self._track_rows) if rows]  # a heap, fewest rows first
        for group in self._groups(epoch).tolist():
            first, end = 0, int(self.group_rows[group])
            while first < end:
                filled, number = open_tracks[0]
                taken = min(end - first, self._track_rows[number] - filled)
                tracks[number].starts.append(filled + taken)
                tracks[number].groups.append(group)
                tracks[number].firsts.append(first)
                first += taken
                if filled + taken < self._track_rows[number]:
                    heapreplace(open_tracks, (filled + taken, number))
                else:
                    heappop(open_tracks)
        return tracks

    def _takes(self, batch: int) -> tuple[Share, list[_Take]]:
        """This rank's share of a global batch of an epoch, and the rows that each track gives to it."""
        left = (rows - batch * self._rows_per_track for rows in self._track_rows)
        ends = list(accumulate(min(max(rows, 0), self._rows_per_track) for rows in left))  # of each track, in the batch
        share = self.ranks.share(ends[-1])
        takes = []
        for track, (start, stop) in enumerate(pairwise([0, *ends])):
            first, last = max(start, share.first), min(stop, share.first + share.num_rows)
            if first < last:
                takes.append(_Take(track, first - start, last - first))
        return share, takes
