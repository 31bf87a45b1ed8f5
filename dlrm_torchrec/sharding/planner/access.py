"""How much a cache of a table's rows saves, computed from measured accesses in the form that the planner takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchrec.distributed.types import CacheStatistics

from dlrm_torchrec.schema import AccessStatistics


@dataclass(frozen=True, kw_only=True)
class MeasuredAccess(CacheStatistics):
    """Cache statistics for ``CacheParams(stats=...)`` of a table with ``rows`` rows that ids index directly.

    The model assumes that a batch looks up each of its distinct ids in the cache once, that the cache holds the most
    frequent ids, that all ids of one histogram entry are equally frequent, and that lookups are independent.
    """

    statistics: AccessStatistics
    rows: int
    global_batch_size: int

    def __post_init__(self) -> None:
        if self.rows < self.statistics.distinct:
            raise ValueError(
                f"rows of the table must be at least {self.statistics.distinct}, the number of distinct ids that are "
                f"looked up in it: got {self.rows}; use statistics only for a table in which ids share no rows"
            )
        if self.global_batch_size < 1:
            raise ValueError(f"global batch size must be at least 1: got {self.global_batch_size}; raise it")

    @property
    def expected_lookups(self) -> float:
        """Expected distinct ids in a global batch."""
        return math.fsum(lookups for _, lookups in self._cache_lookups())

    def expected_miss_rate(self, clf: float) -> float:
        """Share of a batch's distinct ids that are not among the ``clf`` x rows most frequent ids.

        It counts distinct ids because the planner multiplies it by ``expected_lookups``. The share of all lookups would
        be smaller, because the ids that repeat in a batch are those in the cache.
        """
        if not self.statistics.lookups:
            return 0.0 if clf > 0 else 1.0
        cached, misses = clf * self.rows, []
        for ids, lookups in self._cache_lookups():
            hits = min(cached, ids)
            misses.append(lookups * (1 - hits / ids))
            cached -= hits
        return math.fsum(misses) / self.expected_lookups

    @property
    def cacheability(self) -> float:
        """Area under the miss rate over the cache load factor 0 to 1: small if few rows get most lookups."""
        missed, area = 1.0, 0.0
        for ids, lookups in self._cache_lookups():
            share = lookups / self.expected_lookups
            area += ids / self.rows * (missed - share / 2)  # the miss rate falls linearly over these ids
            missed -= share
        return area

    def _cache_lookups(self) -> list[tuple[int, float]]:
        """For each histogram entry, most frequent ids first: its number of ids, and how many of them a batch has."""
        batch_lookups = self.global_batch_size * self.statistics.pooling_factor
        expected = []
        for ids, lookups in reversed(self.statistics.histogram):
            if ids:
                share = lookups / ids / self.statistics.lookups
                present = -math.expm1(batch_lookups * math.log1p(-share)) if share < 1 else 1.0
                expected.append((ids, ids * present))
        return expected
