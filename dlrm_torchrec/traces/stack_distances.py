"""Counts LRU stack distances of ids (the profile), and makes ids that follow the counts (a trace).

Source: Naumov et al. 2019 (arXiv 1906.00091), Algorithm 1 for the profile of a trace, and Algorithm 2 for a trace of a
profile. Here, unlike in Algorithm 2, distances are drawn without replacement. If a distance exceeds the number of ids
seen so far, it is put back and a new id is looked up; Algorithm 2 draws another distance instead. So the trace has
exactly the given profile, and first lookups become rarer over time as they do in the data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.random.counter import below
from dlrm_torchrec.traces.lru import LruStack

Ints = NDArray[np.int64]

_BITS = 4  # the width of a bin is at most 2^-4 of its distances
_NUM_BINS = (32 - _BITS) << _BITS  # for distances of less than 2^31


def bin_of(distances: Ints) -> Ints:
    """The bin of each distance. Each distance below 32 has its own bin; above, a power of two is cut into 16 bins."""
    shifts = np.maximum(np.frexp(distances)[1].astype(np.int64) - 1 - _BITS, 0)
    return (shifts << _BITS) + (distances >> shifts)


def _first_distances(num_bins: int) -> Ints:
    """The smallest distance of each bin and of the next bin after them: (num_bins + 1,)."""
    bins = np.arange(num_bins + 1)
    shifts = np.maximum((bins >> _BITS) - 1, 0)
    result: Ints = (bins - (shifts << _BITS)) << shifts
    return result


@dataclass(frozen=True)
class StackProfile:
    """The lookups of one feature by the bin of their stack distance; bin 0 counts the first lookups of ids."""

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        bins = len(self.counts)
        if not 1 <= bins <= _NUM_BINS or min(self.counts) < 0 or self.counts[0] < max(1, _first_distances(bins)[-2]):
            raise ValueError(
                f"stack distances must be 1 to {_NUM_BINS} counts, none negative, of distances up to the number of "
                f"ids, which is the first count: got {self.counts}; measure them again"
            )

    @property
    def lookups(self) -> int:
        return sum(self.counts)

    @property
    def distinct(self) -> int:
        """The number of distinct ids."""
        return self.counts[0]

    def hit_rate(self, rows: int) -> float:
        """The share of lookups that an LRU cache of ``rows`` rows serves, if it is empty at first."""
        firsts = _first_distances(len(self.counts))
        served = ((rows + 1 - firsts[:-1]) / np.diff(firsts)).clip(0, 1)  # of the bin that it cuts, its share
        return float((np.array(self.counts) * served)[1:].sum() / self.lookups)

    def trace(self, key: np.uint64, *, lookups: int, rows: int) -> StackTrace:
        """A trace of at least so many lookups of a table of ``rows`` rows."""
        return StackTrace(self.scaled(lookups=max(lookups, self.lookups), rows=rows), key)

    def scaled(self, *, lookups: int, rows: int) -> StackProfile:
        """The profile of a longer trace of ``lookups`` lookups with the same shares, as far as the rows suffice.

        If a table has too few ``rows`` for the first lookups, the surplus is spread over the distances in proportion.
        """
        counts = np.array(self.counts) * (lookups / self.lookups)
        if counts[0] > rows:
            counts[_first_distances(len(counts))[:-1] > rows] = 0
            if not counts[1:].any():
                raise ValueError(
                    f"rows must be at least the {lookups} lookups of a trace that never repeats an id: got {rows}; "
                    "ask for fewer lookups"
                )
            counts[1:] *= (lookups - rows) / counts[1:].sum()
            counts[0] = rows
        return _profile(_rounded(counts, lookups))


def measure(pieces: Iterable[NDArray[np.integer]], rows: int) -> StackProfile:
    """The profile of ids in [0, ``rows``), in pieces of any size. Raises ValueError when there are no ids."""
    stack, counts = LruStack(rows), np.zeros(_NUM_BINS, np.int64)
    for ids in pieces:
        counts += np.bincount(bin_of(stack.distances(ids.astype(np.int32))), minlength=_NUM_BINS)
    if not counts.any():
        raise ValueError("a feature must have ids to be profiled: got only empty bags; leave it out")
    return _profile(counts)


class StackTrace:
    """Ids 0, 1, 2, ... in the order of their first lookups; all lookups together have exactly the given profile.

    The first lookups are like the beginning of the data that the profile was measured on.
    """

    def __init__(self, profile: StackProfile, key: np.uint64) -> None:
        self._firsts = _first_distances(_NUM_BINS)
        self._left = np.zeros(_NUM_BINS, np.int64)
        self._left[: len(profile.counts)] = profile.counts
        self._key = key
        self._drawn = self._seen = 0
        self._stack = LruStack(profile.distinct)

    def take(self, lookups: int) -> NDArray[np.int32]:
        """The next ids: (lookups,). All calls together must not take more than the lookups of the profile."""
        distances = np.empty(lookups, np.int64)
        self._seen = _draw(distances, self._left, self._firsts, seen=self._seen, key=self._key, drawn=self._drawn)
        self._drawn += lookups
        return self._stack.ids(distances)


def _profile(counts: Ints) -> StackProfile:
    """The profile of these counts, without the empty bins beyond the largest distance."""
    return StackProfile(tuple(counts[: counts.nonzero()[0].max(initial=0) + 1].tolist()))


def _rounded(counts: NDArray[np.float64], total: int) -> Ints:
    """Whole numbers next to ``counts`` that sum to ``total``; the first one is never rounded up."""
    result = np.floor(counts).astype(np.int64)
    missing = total - int(result.sum())
    result[np.argsort(result - counts, kind="stable")[:missing]] += 1
    return result


@compiled(int64[::1], int64[::1], read_only(int64), int64, uint64, int64)
def _draw(distances: Ints, left: Ints, firsts: Ints, *, seen: int, key: np.uint64, drawn: int) -> int:
    """Fill ``distances`` with equally likely draws from ``left``; takes and returns the number of ids ``seen``."""
    groups = left.reshape((-1, 1 << _BITS)).sum(axis=1)  # so that a draw reads 28 + 16 numbers instead of 448
    total = groups.sum()
    for index in range(len(distances)):
        counter = np.uint64(2 * (drawn + index))
        rank = below(key, counter, total)
        group = 0
        while rank >= groups[group]:
            rank -= groups[group]
            group += 1
        bin_ = group << _BITS
        while rank >= left[bin_]:
            rank -= left[bin_]
            bin_ += 1
        if firsts[bin_] > seen:
            bin_ = 0
        groups[bin_ >> _BITS] -= 1
        left[bin_] -= 1
        total -= 1
        if bin_:
            width = min(firsts[bin_ + 1], seen + 1) - firsts[bin_]
            distances[index] = firsts[bin_] + below(key, counter + np.uint64(1), width)
        else:
            distances[index] = 0
            seen += 1
    return seen
