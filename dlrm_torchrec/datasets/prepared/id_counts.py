"""How often ids are looked up: counted in an array of a table's rows, or in files when ids may be any of 2^63."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_PARTS = 256  # files, each of which is counted in memory on its own
_HELD_BYTES = 1 << 26  # of counts that are not in files yet
_SLICE_IDS = 1 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # spreads ids of any kind over the files


class IdCounts(Protocol):
    """Counts lookups, window by window."""

    def add(self, ids: Ids) -> int:
        """Count the lookups (V,) of a window; the number of distinct ids among them."""
        ...

    def occurrences(self) -> Mapping[int, int]:
        """For each number of lookups, how many ids have it; without ids that have none."""
        ...


class RowCounts:
    """Counts ids in [0, rows) in 8 bytes per row: ``counts`` (rows,)."""

    def __init__(self, rows: int) -> None:
        self.counts = np.zeros(rows, np.int64)

    def add(self, ids: Ids) -> int:
        before, positions = self.counts[ids], np.arange(len(ids))
        self.counts[ids] = positions  # one lookup of each id stays: this needs no sorting and no second array
        distinct = int(np.count_nonzero(self.counts[ids] == positions))
        self.counts[ids] = before
        np.add.at(self.counts, ids, 1)
        return distinct

    def occurrences(self) -> Mapping[int, int]:
        return occurrences(self.counts)


class ManagedCounts:
    """Counts any ids, as those of tables that manage their ids, in memory that does not grow with them.

    Ids and their counts go to unnamed files in the system's folder, 16 bytes for each distinct id of a window. All
    counts of an id are in the same file.
    """

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.int64]] = []  # (2, n): ids and counts
        self._held_bytes = 0
        self._files: list[IO[bytes]] = []

    def add(self, ids: Ids) -> int:
        distinct, counts = np.unique(ids, return_counts=True)
        self._waiting.append(np.stack([distinct, counts]))
        self._held_bytes += self._waiting[-1].nbytes
        if self._held_bytes > _HELD_BYTES:
            self._spill()
        return len(distinct)

    def occurrences(self) -> Mapping[int, int]:
        if not self._files:
            return _summed(np.concatenate(self._waiting, axis=1).T) if self._waiting else {}
        self._spill()
        found = Counter[int]()
        for file in self._files:
            with file:
                file.seek(0)
                found.update(_summed(np.fromfile(file, np.int64).reshape(-1, 2)))
        return found

    def _spill(self) -> None:
        if not self._files:
            self._files = [tempfile.TemporaryFile() for _ in range(_PARTS)]  # noqa: SIM115  # closed after they are read
        pairs = np.concatenate([np.empty((2, 0), np.int64), *self._waiting], axis=1).T
        part = (pairs[:, 0].astype(np.uint64) * _GOLDEN >> np.uint64(56)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(_PARTS + 1))
        for number, file in enumerate(self._files):
            pairs[order[bounds[number] : bounds[number + 1]]].tofile(file)
        self._waiting, self._held_bytes = [], 0


def _summed(pairs: NDArray[np.int64]) -> Mapping[int, int]:
    """The occurrences of the sums of counts, from all ids and their counts (n, 2)."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    first = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    return occurrences(np.add.reduceat(pairs[:, 1], first)) if len(first) else {}


def occurrences(counts: NDArray[np.int64]) -> Mapping[int, int]:
    """How many of the ``counts`` (ids,) are each number, 0 apart."""
    found = Counter[int]()
    for first in range(0, len(counts), _SLICE_IDS):
        part = counts[first : first + _SLICE_IDS]
        each, how_many = np.unique(part[part > 0], return_counts=True)
        found.update(dict(zip(each.tolist(), how_many.tolist(), strict=True)))
    return found
