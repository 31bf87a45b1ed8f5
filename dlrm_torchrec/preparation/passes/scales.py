"""What is measured of numbers in the training rows: mean and deviation to standardise by, and boundaries of buckets.

Both are the same for any number of workers and ranks: units are summed in their order, and quantiles are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.raw_values import scaled
from dlrm_torchrec.schema import DenseFeature

_LOW_BITS = np.int64(2**63 - 1)


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared differences from the mean of some numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, raw: npt.NDArray[np.float64], feature: DenseFeature) -> Moments:
        """The moments of raw numbers (B,) before they are standardised; NaN counts if the feature has a default."""
        before = vars(replace(feature, standardise=False, default=feature.default or 0.0))
        present = raw if feature.default is not None else raw[~np.isnan(raw)]
        values = scaled(present, before).astype(np.float64)
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(len(values), mean, float(np.square(values - mean).sum()))

    def __add__(self, other: Moments) -> Moments:
        """The moments of both (T. F. Chan et al., "Updating Formulae", 1979)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart * apart * self.count * other.count / count
        return Moments(count, self.mean + apart * other.count / count, squares)

    def standardise(self, feature: DenseFeature) -> DenseFeature:
        """The feature with mean and deviation; a constant column has deviation 1."""
        deviation = math.sqrt(self.squares / max(1, self.count))
        return replace(feature, mean=self.mean, deviation=deviation if deviation > 0 else 1.0)


def in_order(values: pa.Array) -> pa.Array:
    """Numbers as int64 that have the same order; null for null."""
    bits = (values.fill_null(0.0).to_numpy() + 0.0).view(np.int64)  # 0 and -0 are one number
    return pa.array(bits ^ (bits >> np.int64(63) & _LOW_BITS), mask=values.is_null().to_numpy(zero_copy_only=False))


def boundaries(counted: Iterable[pa.Table], total: int, most: int) -> list[float]:
    """At most ``most`` ascending quantiles of ``total`` numbers, of which ``counted`` holds the values and counts.

    The values are those of ``in_order``, distinct and ascending. Buckets hold about equally many numbers: each takes
    its share of the numbers that are left, and a value with more than such a share has a bucket of its own.
    """
    found: list[int] = []
    left, held = total, 0
    for value, count in _counts(counted):
        share = left / (most + 1 - len(found))
        if held and len(found) < most and max(held, count) >= share:
            found.append(value)
            left, held = left - held, 0
        held += count
    keys = np.array(found, np.int64)
    numbers: list[float] = (keys ^ (keys >> np.int64(63) & _LOW_BITS)).view(np.float64).tolist()
    return numbers


def _counts(counted: Iterable[pa.Table]) -> Iterator[tuple[int, int]]:
    for table in counted:
        yield from zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True)
