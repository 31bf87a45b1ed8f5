"""The columns of some rows as NumPy arrays: decoded from a file, not yet a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class IdLists:
    """One sparse feature of n rows: the ids of row i are ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[Any]  # (V,) integers
    offsets: NDArray[np.int64] | None = None  # (n + 1,), from 0 to V; None if every row has one id
    weights: NDArray[np.float32] | None = None  # (V,), of the ids; None if all are 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids per row: (n,)."""
        return np.ones(len(self.values), dtype=np.int64) if self.offsets is None else np.diff(self.offsets)

    @property
    def size(self) -> int | None:
        """The number of ids in each row; None if the rows have different numbers."""
        lengths = self.lengths
        return int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else None

    def slice(self, first: int, last: int) -> IdLists:
        """The rows ``first`` .. ``last - 1``, a view."""
        if self.offsets is None:
            return IdLists(self.values[first:last])
        offsets = self.offsets[first : last + 1]
        ids = slice(offsets[0], offsets[-1])
        weights = None if self.weights is None else self.weights[ids]
        return IdLists(self.values[ids], offsets - offsets[0], weights)


@dataclass(frozen=True)
class Columns:
    """Every column of n rows, in spec order."""

    labels: NDArray[np.float32]  # (n,), or (n, L) if there are several
    dense: NDArray[np.float32]  # (n, D)
    sparse: Sequence[IdLists]  # F of n rows each
    weights: NDArray[np.float32] | None = None  # (n,), of the rows; None if all are 1

    def __len__(self) -> int:
        return len(self.labels)
