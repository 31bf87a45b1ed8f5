"""Blocks of rows, from which batches are cut: in reading order, with the ids of all features in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import int32, int64
from numpy.typing import NDArray

from dlrm_torchrec.datasets.compiled import compiled, read_only
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists

Ids = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Block:
    """Every column of n rows, in spec order."""

    labels: NDArray[np.float32]  # (n,)
    dense: NDArray[np.float32]  # (n, D)
    ids: Ids  # (F, n) without offsets, or (V,) with offsets
    # (F, n + 1): row i of feature f has ids[offsets[f, i]:offsets[f, i + 1]]; None: one each
    offsets: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64] | int:
        """Ids per feature and row: (F, n), or 1."""
        return 1 if self.offsets is None else np.diff(self.offsets)

    def slice(self, first: int, last: int) -> Block:
        """The rows ``first`` .. ``last - 1``, a view."""
        if self.offsets is None:
            return Block(self.labels[first:last], self.dense[first:last], self.ids[:, first:last], None)
        return Block(self.labels[first:last], self.dense[first:last], self.ids, self.offsets[:, first : last + 1])


def joined(columns: Columns, kind: type[np.int32 | np.int64], order: NDArray[np.int64] | None = None) -> Block:
    """The rows ``order[0]``, ``order[1]``, ... of ``columns``, or all of them if None; ids have the type ``kind``."""
    labels, dense, sparse = columns.labels, columns.dense, columns.sparse
    if order is not None:
        labels, dense = labels.take(order), dense.take(order, axis=0)  # take copies whole rows; indexing copies numbers
    if all(bags.offsets is None for bags in sparse):
        ids: Ids = np.empty((len(sparse), len(labels)), kind)
        for row, bags in zip(ids, sparse, strict=True):
            _copy(bags, order, row)
        return Block(labels, dense, ids, None)
    offsets = np.zeros((len(sparse), 1 + len(labels)), np.int64)
    for row, bags in zip(offsets, sparse, strict=True):
        np.cumsum(bags.lengths if order is None else bags.lengths.take(order), out=row[1:])
    offsets[1:] += np.cumsum(offsets[:-1, -1])[:, None]
    ids = np.empty(offsets[-1, -1], kind)
    for row, bags in zip(offsets, sparse, strict=True):
        _copy(bags, order, ids[row[0] : row[-1]])
    return Block(labels, dense, ids, offsets)


def join_ids(pieces: Sequence[Block], length_per_key: Sequence[int], values: NDArray[np.int64]) -> None:
    """Fill ``values`` with the ids of all pieces: feature after feature, and row after row within a feature."""
    first, starts = 0, np.cumsum([0, *length_per_key[:-1]])
    for piece in pieces:
        if piece.offsets is None:
            last = first + len(piece)
            values.reshape(len(starts), -1)[:, first:last] = piece.ids
            first = last
        else:
            _APPEND[piece.ids.dtype](piece.ids, piece.offsets, starts, values)


def _copy(bags: IdLists, order: NDArray[np.int64] | None, target: Ids) -> None:
    values = bags.values.astype(target.dtype, copy=False)
    if order is None:
        target[:] = values
    elif (size := bags.size) is not None:
        rows = (len(order), size)
        np.take(values.reshape(rows), order, axis=0, out=target.reshape(rows), mode="clip")  # mode "raise" would buffer
    else:
        _GATHER[target.dtype](values, bags.offsets, order, target)


# Indices are unsigned, because numba tests the sign of signed ones, which takes four times as long.
def _gather(values: Ids, offsets: NDArray[np.int64], order: NDArray[np.int64], ids: Ids) -> None:
    target = np.uint64(0)
    for row in order:
        source = np.uint64(offsets[row])
        count = np.uint64(offsets[row + 1]) - source
        for position in range(count):
            ids[target + position] = values[source + position]
        target += count


def _append(ids: Ids, offsets: NDArray[np.int64], starts: NDArray[np.int64], values: NDArray[np.int64]) -> None:
    for feature in range(len(offsets)):
        source, target = np.uint64(offsets[feature, 0]), np.uint64(starts[feature])
        count = np.uint64(offsets[feature, -1]) - source
        for position in range(count):
            values[target + position] = ids[source + position]
        starts[feature] += count


_GATHER: dict[np.dtype[Any], Any] = {
    np.dtype(kind.name): compiled(read_only(kind), read_only(int64), int64[::1], kind[::1])(_gather)
    for kind in (int32, int64)
}
_APPEND: dict[np.dtype[Any], Any] = {
    np.dtype(kind.name): compiled(kind[::1], int64[:, :], int64[::1], int64[::1])(_append) for kind in (int32, int64)
}
