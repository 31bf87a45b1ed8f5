"""Which values of a window have an id of the vocabulary, and which values are remembered without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the vocabulary of a table goes on from window to window.

    A value keeps its id until it is evicted. It is forgotten, and its count begins again, when it was in none of the
    last ``max_age`` windows. If more values deserve an id than there is room for, those that were counted most often
    over all windows have one. Of equal counts, those that have an id keep it, then numbers come before texts and
    smaller values before larger ones.
    """

    window: int  # number of this window; the first is 1
    min_count: int = 1  # a value that has no id needs to be seen so often, in all windows together, since forgotten
    capacity: int = 0  # most values with an id; 0 means no limit
    headroom: float = 0.0  # of the first window: free ids for later ones as a share of its values; 0 means no limit
    max_age: int = 0  # 0 means that no value is forgotten

    def room(self, wanted: int) -> int:
        """The capacity when so many values deserve an id in this window; 0 means no limit."""
        return self.capacity or (max(1, ceil(wanted * (1 + self.headroom))) if self.headroom else 0)


class Highest:
    """Tells, piece by piece, which of some keys are the ``most`` highest; of equal keys, the first ones are."""

    def __init__(self, how_many: Mapping[int, int], most: int) -> None:
        """``how_many`` tells how often each key occurs in all pieces."""
        self._least, self._left = max(how_many, default=0) + 1, 0
        for key in sorted(how_many, reverse=True):
            self._least, self._left = key, min(most, how_many[key])
            most -= how_many[key]
            if most <= 0:
                break

    def of(self, keys: Ints, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which of the next N keys are among the highest; only those in the mask ``among`` count."""
        equal = np.flatnonzero(among & (keys == self._least))[: self._left]
        self._left -= len(equal)
        found = among & (keys > self._least)
        found[equal] = True
        return found
