"""Hash tables of 64-bit integers in plain arrays, with open addressing: a key lies in the first slot free for it.

These loops count and look up the values of a vocabulary. They have one cache miss per value; a search in a sorted array
has a dozen.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import int32, int64, uint8

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.random.counter import GOLDEN

LOAD = 0.6  # share of the slots that may be taken
_HALF = np.uint64(32)


@numba.njit(inline="always")
def _slot(key: Any, slots: int) -> Any:
    """The first slot to look for a key, among less than 2^32 slots."""
    return np.int64(((np.uint64(key) * GOLDEN >> _HALF) * np.uint64(slots)) >> _HALF)


@numba.njit(inline="always")
def _next(slot: int, slots: int) -> int:
    """The next slot to look for a key."""
    return slot + 1 if slot + 1 < slots else 0


@compiled(read_only(int64), int64[::1], int64[::1], int64)
def count_values(values: Any, keys: Any, counts: Any, taken: int) -> tuple[int, int]:
    """Adds values to ``counts`` (slots,) until the table is full; returns how many it added, and the slots ``taken``.

    A slot of ``keys`` is free where its count is 0.
    """
    slots = len(keys)
    for i in range(len(values)):
        slot = _slot(values[i], slots)
        while counts[slot] and keys[slot] != values[i]:
            slot = _next(slot, slots)
        if not counts[slot]:
            if taken >= LOAD * slots:
                return i, taken
            keys[slot] = values[i]
            taken += 1
        counts[slot] += 1
    return len(values), taken


@compiled(read_only(int64), read_only(int64), int64[::1], int64[::1])
def move_counts(old_keys: Any, old_counts: Any, keys: Any, counts: Any) -> None:
    """Put all counts of one table into a larger, empty one."""
    slots = len(keys)
    for i in range(len(old_keys)):
        if old_counts[i]:
            slot = _slot(old_keys[i], slots)
            while counts[slot]:
                slot = _next(slot, slots)
            keys[slot], counts[slot] = old_keys[i], old_counts[i]


@compiled(read_only(int64), read_only(int32), int64[::1], int32[::1])
def insert_ids(values: Any, new_ids: Any, keys: Any, ids: Any) -> None:
    """Puts distinct values and their ids into an empty table, whose ``ids`` (slots,) are 0; the id 0 leaves one out."""
    slots = len(keys)
    for i in range(len(values)):
        if not new_ids[i]:
            continue
        slot = _slot(values[i], slots)
        while ids[slot]:
            slot = _next(slot, slots)
        keys[slot], ids[slot] = values[i], new_ids[i]


@compiled(read_only(int64), read_only(uint8), int64, int32[::1], read_only(int64), read_only(int32), int64, int64)
def find_ids(
    values: Any, valid: Any, offset: int, value_ids: Any, *, keys: Any, ids: Any, if_missing: int, if_absent: int
) -> None:
    """Writes the ids of N values to ``value_ids`` (N,); value i is missing if bit ``offset`` + i of ``valid`` is 0."""
    slots = len(keys)
    for i in range(len(values)):
        if not valid[(offset + i) >> 3] >> ((offset + i) & 7) & 1:
            value_ids[i] = if_missing
            continue
        slot = _slot(values[i], slots)
        while ids[slot] and keys[slot] != values[i]:
            slot = _next(slot, slots)
        value_ids[i] = ids[slot] if ids[slot] else if_absent
