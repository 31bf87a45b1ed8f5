"""Blocks of rows, from which batches are cut: in reading order, with the ids of all features in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import float32, int32, int64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists

Ids = NDArray[np.signedinteger[Any]]
Values = NDArray[Any]  # ids or their weights


@dataclass(frozen=True)
class Block:
    """Every column of n rows, in spec order."""

    labels: NDArray[np.float32]  # (n,), or (n, L) if there are several
    dense: NDArray[np.float32]  # (n, D)
    ids: Ids  # (F, n) without offsets, or (V,) with offsets
    # (F, n + 1): row i of feature f has ids[offsets[f, i]:offsets[f, i + 1]]; None: one each
    offsets: NDArray[np.int64] | None
    weights: NDArray[np.float32] | None = None  # (n,), of the rows; None if all are 1
    id_weights: NDArray[np.float32] | None = None  # (V,), where any feature has weights; other features have 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64] | int:
        """Ids per feature and row: (F, n), or 1."""
        return 1 if self.offsets is None else np.diff(self.offsets)

    def slice(self, first: int, last: int) -> Block:
        """The rows ``first`` .. ``last - 1``, a view."""
        rows = self.labels[first:last], self.dense[first:last]
        weights = None if self.weights is None else self.weights[first:last]
        if self.offsets is None:
            return Block(*rows, self.ids[:, first:last], None, weights)
        return Block(*rows, self.ids, self.offsets[:, first : last + 1], weights, self.id_weights)


def joined(columns: Columns, kind: type[np.int32 | np.int64], order: NDArray[np.int64] | None = None) -> Block:
    """The rows ``order[0]``, ``order[1]``, ... of ``columns``, or all of them if None; ids have the type ``kind``."""
    labels, dense, sparse, weights = columns.labels, columns.dense, columns.sparse, columns.weights
    if order is not None:  # take copies whole rows; indexing copies numbers
        labels, dense = labels.take(order, axis=0), dense.take(order, axis=0)
        weights = None if weights is None else weights.take(order)
    if all(bags.offsets is None for bags in sparse):
        ids: Ids = np.empty((len(sparse), len(labels)), kind)
        for row, bags in zip(ids, sparse, strict=True):
            _copy(bags, order, row)
        return Block(labels, dense, ids, None, weights)
    offsets = np.zeros((len(sparse), 1 + len(labels)), np.int64)
    for row, bags in zip(offsets, sparse, strict=True):
        np.cumsum(bags.lengths if order is None else bags.lengths.take(order), out=row[1:])
    offsets[1:] += np.cumsum(offsets[:-1, -1])[:, None]
    ids = np.empty(offsets[-1, -1], kind)
    for row, bags in zip(offsets, sparse, strict=True):
        _copy(bags, order, ids[row[0] : row[-1]])
    if all(bags.weights is None for bags in sparse):
        return Block(labels, dense, ids, offsets, weights)
    id_weights = np.ones(len(ids), np.float32)
    for row, bags in zip(offsets, sparse, strict=True):
        if bags.weights is not None:
            _copy(IdLists(bags.weights, bags.offsets), order, id_weights[row[0] : row[-1]])
    return Block(labels, dense, ids, offsets, weights, id_weights)


def join_ids(
    pieces: Sequence[Block],
    length_per_key: Sequence[int],
    values: NDArray[np.int64],
    weights: NDArray[np.float32] | None = None,
) -> None:
    """Fill ``values`` with the ids of all pieces: feature after feature, and row after row within a feature.

    Likewise ``weights`` with their weights, if the pieces have any.
    """
    first, starts = 0, np.cumsum([0, *length_per_key[:-1]])
    for piece in pieces:
        if piece.offsets is None:
            last = first + len(piece)
            values.reshape(len(starts), -1)[:, first:last] = piece.ids
            first = last
        else:
            if piece.id_weights is not None:
                _APPEND[piece.id_weights.dtype](piece.id_weights, piece.offsets, starts.copy(), weights)
            _APPEND[piece.ids.dtype](piece.ids, piece.offsets, starts, values)


def _copy(bags: IdLists, order: NDArray[np.int64] | None, target: Values) -> None:
    values = bags.values.astype(target.dtype, copy=False)
    if order is None:
        target[:] = values
    elif (size := bags.size) is not None:
        source, rows = values.reshape(len(bags.lengths), size), (len(order), size)
        np.take(source, order, axis=0, out=target.reshape(rows), mode="clip")  # mode "raise" would buffer
    else:
        _GATHER[target.dtype](values, bags.offsets, order, target)


# Indices are unsigned, because numba tests the sign of signed ones, which takes four times as long.
def _gather(values: Values, offsets: NDArray[np.int64], order: NDArray[np.int64], ids: Values) -> None:
    target = np.uint64(0)
    for row in order:
        source = np.uint64(offsets[row])
        count = np.uint64(offsets[row + 1]) - source
        for position in range(count):
            ids[target + position] = values[source + position]
        target += count


def _append(ids: Values, offsets: NDArray[np.int64], starts: NDArray[np.int64], values: Values) -> None:
    for feature in range(len(offsets)):
        source, target = np.uint64(offsets[feature, 0]), np.uint64(starts[feature])
        count = np.uint64(offsets[feature, -1]) - source
        for position in range(count):
            values[target + position] = ids[source + position]
        starts[feature] += count


_GATHER: dict[np.dtype[Any], Any] = {
    np.dtype(kind.name): compiled(read_only(kind), read_only(int64), int64[::1], kind[::1])(_gather)
    for kind in (int32, int64, float32)
}
_APPEND: dict[np.dtype[Any], Any] = {
    np.dtype(kind.name): compiled(kind[::1], int64[:, :], int64[::1], joined_kind[::1])(_append)
    for kind, joined_kind in ((int32, int64), (int64, int64), (float32, float32))
}
