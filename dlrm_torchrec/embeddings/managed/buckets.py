"""Buckets of managed ids: each has its own share of a table's rows, so that ranks may hold any number of buckets.

Which ids a rank sees does not decide which ids get rows: a bucket has the same ids on any number of ranks.
"""

from __future__ import annotations

import torch

LEAST_ROWS = 512  # of a bucket, so that buckets of ids that were dealt at random are about equally full
BITS = 63  # of an id
EMPTY = 2**BITS - 1  # no id: those of ``schema.MANAGED_IDS`` are below


def num_buckets(rows: int) -> int:
    """The largest power of two that leaves each bucket at least 512 of the ``rows``.

    >>> num_buckets(511), num_buckets(2_500), num_buckets(10_000_000)
    (1, 4, 16384)
    """
    return 1 << max(0, (rows // LEAST_ROWS).bit_length() - 1)


def whole_buckets(rows: int) -> int:
    """``rows``, or the next number that is a multiple of its number of buckets.

    >>> whole_buckets(2_501)
    2504
    """
    buckets = num_buckets(rows)
    return -(-rows // buckets) * buckets


def dealt(ids: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 2**63) that look random: another one for each id (n,) in the same range; EMPTY stays EMPTY.

    Their highest bits are the bucket. The steps are those of a multiplicative hash (Knuth, volume 3, 6.4).
    """
    # numbers and not names, because TorchScript knows no globals
    found = (ids ^ (ids >> 32)) * 0x1E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF
    found = (found ^ (found >> 32)) * 0x3F58476D1CE4E5B9 & 0x7FFFFFFFFFFFFFFF
    return found ^ (found >> 32) ^ 0x255839FA1E126AF7


def undealt(numbers: torch.Tensor) -> torch.Tensor:
    """The ids of ``dealt`` numbers."""
    found = numbers ^ _OFFSET
    for inverse in _INVERSES:
        found = (found ^ (found >> 32)) * inverse & EMPTY
    return found ^ (found >> 32)


def bucket_of(ids: torch.Tensor, buckets: int) -> torch.Tensor:
    """The bucket (n,) in [0, ``buckets``), a power of two, of each id (n,)."""
    return dealt(ids) // ((1 << 62) // buckets * 2) if buckets > 1 else torch.zeros_like(ids)


_OFFSET = 0x255839FA1E126AF7
_INVERSES = tuple(pow(factor, -1, 2**BITS) for factor in (0x3F58476D1CE4E5B9, 0x1E3779B97F4A7C15))
