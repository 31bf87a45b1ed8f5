"""Random orders that are pure functions of a key."""

from __future__ import annotations

import numpy as np
from numba import int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.datasets.random.counter import below, derived_key


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """A random order of ``range(size)``, the same for the same key on every machine."""
    order = np.arange(size)
    _shuffle(derived_key(*key), order)
    return order


@compiled(uint64, int64[::1])
def _shuffle(key: np.uint64, items: NDArray[np.int64]) -> None:
    for last in range(len(items) - 1, 0, -1):  # Fisher and Yates
        other = below(key, np.uint64(last), last + 1)
        items[last], items[other] = items[other], items[last]
