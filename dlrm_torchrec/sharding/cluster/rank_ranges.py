"""Short text for sets of ranks, such as 0-3,6."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise


def runs(ranks: Collection[int]) -> list[tuple[int, int]]:
    """The first and the last rank of every run of consecutive ranks."""
    ranks = sorted(set(ranks))
    ends = [0, *(end for end, (rank, other) in enumerate(pairwise(ranks), 1) if other != rank + 1), len(ranks)]
    return [(ranks[start], ranks[end - 1]) for start, end in pairwise(ends)]


def ranges(ranks: Collection[int]) -> str:
    """The runs of ranks as text, separated by commas.

    >>> ranges([9, 0, 1, 2, 3, 6, 8])
    '0-3,6,8-9'
    """
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs(ranks))
