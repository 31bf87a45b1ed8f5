"""The columns of some rows in NumPy: what is decoded from a file, before it becomes a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bags:
    """One sparse feature of n rows: the ids of row i are ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[np.integer]  # (V,)
    offsets: NDArray[np.int64] | None = None  # (n + 1,), from 0 to V; None: every row has one id

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids per row: (n,)."""
        return np.ones(len(self.values), dtype=np.int64) if self.offsets is None else np.diff(self.offsets)

    def slice(self, first: int, last: int) -> Bags:
        """The rows ``first`` .. ``last - 1``, a view."""
        if self.offsets is None:
            return Bags(self.values[first:last])
        offsets = self.offsets[first : last + 1]
        return Bags(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: NDArray[np.int64]) -> Bags:
        """The rows ``rows[0]``, ``rows[1]``, ..., a copy."""
        if self.offsets is None:
            return Bags(self.values.take(rows))
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Bags(self.values.take(index), offsets)


@dataclass(frozen=True)
class Columns:
    """Every column of n rows, in spec order."""

    labels: NDArray[np.float32]  # (n,)
    dense: NDArray[np.float32]  # (n, D)
    sparse: Sequence[Bags]  # F of n rows each

    def __len__(self) -> int:
        return len(self.labels)

    def slice(self, first: int, last: int) -> Columns:
        """The rows ``first`` .. ``last - 1``, a view."""
        sparse = [bags.slice(first, last) for bags in self.sparse]
        return Columns(self.labels[first:last], self.dense[first:last], sparse)

    def take(self, rows: NDArray[np.int64]) -> Columns:
        """The rows ``rows[0]``, ``rows[1]``, ..., a copy."""
        # ndarray.take copies whole rows, which indexing does not.
        return Columns(self.labels.take(rows), self.dense.take(rows, axis=0), [bags.take(rows) for bags in self.sparse])
