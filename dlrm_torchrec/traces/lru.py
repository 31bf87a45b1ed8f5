"""Computes LRU stack distances of ids, and ids with given stack distances, in O(log n) each.

The stack distance of a lookup is the number of distinct ids looked up since the last lookup of its id, its own id
included. It is 1 if the same id is looked up again at once, and at most C if a cache of C rows hits. The first lookup
of an id has an infinite distance, which is 0 here.

Every lookup takes the next *slot*. An id lives in the slot of its last lookup. A Fenwick tree counts the living slots;
their number above a slot is its depth in the stack. When no slots are left, the dead slots are removed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import int32, int64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only

_MIN_SLOTS = 1 << 12
_EMPTY = -1


class LruStack:
    """A stack of ids in [0, ``rows``), the last one on top. Memory: 4 bytes per row, and at most 32 per id seen."""

    def __init__(self, rows: int) -> None:
        self._slots: NDArray[np.int32] = np.zeros(rows, np.int32)  # slots of the ids; 0 for an id that was not seen yet
        self._living = self._last = 0  # number of ids seen; number of slots taken
        self._ids: NDArray[np.int32]  # ids of the slots, from 1
        self._tree: NDArray[np.int32]
        self._squeeze(np.empty(0, np.int32))

    def distances(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """The stack distance of each lookup: (n,)."""
        result = np.empty(len(ids), np.int64)
        for part in self._parts(len(ids)):
            self._living = _find(
                ids[part],
                result[part],
                tree=self._tree,
                id_of=self._ids,
                slot_of=self._slots,
                last=self._last,
                living=self._living,
            )
            self._last += part.stop - part.start
        return result

    def ids(self, distances: NDArray[np.int64]) -> NDArray[np.int32]:
        """Ids (n,) with these stack distances; new ids come in the order 0, 1, 2, ...

        This is the inverse of ``distances``; use a stack for one of the two only. A distance must not exceed the number
        of ids seen before.
        """
        result = np.empty(len(distances), np.int32)
        for part in self._parts(len(distances)):
            self._living = _take(
                distances[part], result[part], tree=self._tree, id_of=self._ids, last=self._last, living=self._living
            )
            self._last += part.stop - part.start
        return result

    def _parts(self, num_lookups: int) -> Iterator[slice]:
        """Slices of the lookups that each fit into the slots that are left."""
        done = 0
        while done < num_lookups:
            if self._last == len(self._tree) - 1:
                self._squeeze(self._ids[self._ids != _EMPTY])
            stop = min(num_lookups, done + len(self._tree) - 1 - self._last)
            yield slice(done, stop)
            done = stop

    def _squeeze(self, ids: NDArray[np.int32]) -> None:
        """Give the first slots to these ids, the deepest first, and leave at least as many slots free."""
        self._last = len(ids)
        num_slots = max(_MIN_SLOTS, 1 << (2 * len(ids) - 1).bit_length())  # a power of two, for ``_select``
        self._ids = np.full(num_slots + 1, _EMPTY, np.int32)
        self._ids[1 : len(ids) + 1] = ids
        self._slots[ids] = np.arange(1, len(ids) + 1)
        # A node sums the slots from slot - (slot & -slot) + 1 to slot, of which the first len(ids) hold 1.
        slots = np.arange(num_slots + 1, dtype=np.int32)
        covered = slots & -slots
        self._tree = np.clip(len(ids) - (slots - covered), 0, covered)


@compiled(int32[::1], int64, int64)
def _add(tree: NDArray[np.int32], slot: int, change: int) -> None:
    while slot < len(tree):
        tree[slot] += change
        slot += slot & -slot


@compiled(int32[::1], int64)
def _sum(tree: NDArray[np.int32], slot: int) -> int:
    """The number of living slots among 1 .. ``slot``."""
    total = 0
    while slot > 0:
        total += tree[slot]
        slot &= slot - 1
    return total


@compiled(int32[::1], int64)
def _select(tree: NDArray[np.int32], number: int) -> int:
    """The ``number``-th living slot, counted from 1."""
    slot, step = 0, len(tree) - 1
    while step > 0:
        if slot + step < len(tree) and tree[slot + step] < number:
            slot += step
            number -= tree[slot]
        step >>= 1
    return slot + 1


@compiled(read_only(int32), int64[::1], int32[::1], int32[::1], int32[::1], int64, int64)
def _find(
    ids: NDArray[np.int32],
    distances: NDArray[np.int64],
    *,
    tree: NDArray[np.int32],
    id_of: NDArray[np.int32],
    slot_of: NDArray[np.int32],
    last: int,
    living: int,
) -> int:
    """Fill ``distances`` and move every id to a new slot above ``last``; returns the number of living slots."""
    for index in range(len(ids)):
        slot = slot_of[ids[index]]
        if slot:
            distances[index] = living - _sum(tree, slot) + 1
            _add(tree, slot, -1)
            id_of[slot] = _EMPTY
        else:
            distances[index] = 0
            living += 1
        last += 1
        _add(tree, last, 1)
        id_of[last] = ids[index]
        slot_of[ids[index]] = last
    return living


@compiled(read_only(int64), int32[::1], int32[::1], int32[::1], int64, int64)
def _take(
    distances: NDArray[np.int64],
    ids: NDArray[np.int32],
    *,
    tree: NDArray[np.int32],
    id_of: NDArray[np.int32],
    last: int,
    living: int,
) -> int:
    """Fill ``ids`` and move every id to a new slot above ``last``; returns the number of living slots."""
    for index in range(len(distances)):
        if distances[index]:
            slot = _select(tree, living - distances[index] + 1)
            ids[index] = id_of[slot]
            _add(tree, slot, -1)
            id_of[slot] = _EMPTY
        else:
            ids[index] = living
            living += 1
        last += 1
        _add(tree, last, 1)
        id_of[last] = ids[index]
    return living
