"""Where the row of an id is: a hash table on a CPU, or on a GPU the rows in the order of their ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import boolean, int16, int64, types, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.embeddings.managed.buckets import BITS, EMPTY, bucket_of

BYTES_PER_ROW = {"cpu": 4, "cuda": 8}  # two slots of two bytes, or the number of a row
_SLOTS = 2  # of a row, so that half of them are free; they hold numbers within a bucket, which has few rows


class Places:
    """Finds rows by ``ids``, those of the rows of the buckets from ``first_bucket`` on, of ``buckets`` in all.

    Once ids have changed, ``update`` must be told of it.
    """

    def __init__(self, ids: torch.Tensor, *, rows_per_bucket: int, buckets: int, first_bucket: int) -> None:
        self._ids, self._size, self._buckets, self._first = ids, rows_per_bucket, buckets, first_bucket
        self._bits = BITS - (buckets.bit_length() - 1)  # below those of the bucket
        self._slots = np.empty(_SLOTS * len(ids) if ids.device.type == "cpu" else 0, np.int16)
        self._order = torch.empty(0)
        self.update(torch.ones(len(ids) // rows_per_bucket, dtype=torch.bool))

    def update(self, changed: torch.Tensor) -> None:
        """Follow the ids in the ``changed`` buckets (buckets here,)."""
        if self._ids.device.type == "cpu":
            _fill(self._ids.numpy(), self._slots, changed.numpy(), self._size)
        else:
            self._order = torch.argsort(self._ids)

    def find(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The row (n,) of each id (n,), and whether the id has it for itself; else it is the last of its bucket."""
        if ids.device.type == "cpu":
            rows, own = torch.empty_like(ids), torch.empty_like(ids, dtype=torch.bool)
            own_ids, sizes = self._ids.numpy(), (self._size, self._first, self._bits)
            _find(ids.contiguous().numpy(), own_ids, self._slots, *sizes, rows.numpy(), own.numpy())
            return rows, own
        shared = (bucket_of(ids, self._buckets) - self._first + 1) * self._size - 1
        return find_in_order(ids, self._ids, self._order, shared)


def find_in_order(
    ids: torch.Tensor, ids_of_rows: torch.Tensor, order: torch.Tensor, shared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row (n,) of each id (n,), or else its ``shared`` one (n,), and whether it has a row for itself.

    ``order`` (rows,) are the rows in the order of their ids. TorchScript can compile this.
    """
    place = torch.searchsorted(ids_of_rows, ids, sorter=order).clamp(max=ids_of_rows.size(0) - 1)
    rows = order[place]
    own = ids_of_rows[rows] == ids
    return torch.where(own, rows, shared), own


@compiled(int64)
def _dealt(number: int) -> np.uint64:
    """``dealt`` of one id."""
    mask = uint64(0x7FFFFFFFFFFFFFFF)
    found = uint64(number)
    found = (found ^ (found >> uint64(32))) * uint64(0x1E3779B97F4A7C15) & mask
    found = (found ^ (found >> uint64(32))) * uint64(0x3F58476D1CE4E5B9) & mask
    return found ^ (found >> uint64(32)) ^ uint64(0x255839FA1E126AF7)


@compiled(uint64, int64)
def _slot(dealt: np.uint64, slots: int) -> Any:
    """The first slot to look into, of those of a bucket; it depends on the lowest 32 bits."""
    return int64((dealt & uint64(0xFFFFFFFF)) * uint64(slots) >> uint64(32))


@compiled(read_only(int64), int16[::1], read_only(boolean), int64)
def _fill(ids: NDArray[np.int64], slots: NDArray[np.int16], changed: NDArray[np.bool_], size: int) -> None:
    """Write the rows of all ids of the changed buckets, counted within the bucket, into its slots; -1 is a free one."""
    count = _SLOTS * size
    for bucket in range(len(changed)):
        if changed[bucket]:
            own = slots[bucket * count : (bucket + 1) * count]
            own[:] = -1
            for row in range(size):
                number = ids[bucket * size + row]
                if number != EMPTY:
                    place = _slot(_dealt(number), count)
                    while own[place] >= 0:
                        place = place + 1 if place + 1 < count else 0
                    own[place] = row


@compiled(
    read_only(int64), read_only(int64), read_only(int16), int64, int64, int64, int64[::1], types.Array(boolean, 1, "C")
)
def _find(  # noqa: PLR0917  # compiled functions take no keywords
    ids: NDArray[np.int64],
    ids_of_rows: NDArray[np.int64],
    slots: NDArray[np.int16],
    size: int,
    first_bucket: int,
    bits: int,
    rows: NDArray[np.int64],
    own: NDArray[np.bool_],
) -> None:
    count = _SLOTS * size
    for number in range(len(ids)):
        dealt = _dealt(ids[number])
        bucket = int64(dealt >> uint64(bits)) - first_bucket
        place, row = _slot(dealt, count), size - 1
        own[number] = False
        while slots[bucket * count + place] >= 0:
            candidate = slots[bucket * count + place]
            if ids_of_rows[bucket * size + candidate] == ids[number]:
                row = candidate
                own[number] = True
                break
            place = place + 1 if place + 1 < count else 0
        rows[number] = bucket * size + row
