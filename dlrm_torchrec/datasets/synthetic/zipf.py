"""Ids with a bounded Zipf distribution: a few popular rows and a long tail, for tables of any size."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dlrm_torchrec.datasets.synthetic.kernels import fill_ids


def scattering(rows: int) -> int:
    """A multiplier m for which i -> i * m mod ``rows`` is one-to-one and moves neighbours far apart."""
    multiplier = max(1, int(rows * 0.6180339887))  # near the golden section
    while math.gcd(multiplier, rows) != 1:
        multiplier += 1
    return multiplier


class Zipf:
    """Ids in ``[0, rows)``; the k-th most popular one has weight ∫ x^-exponent dx over [k, k + 1), k = 1..rows.

    This is a bounded Pareto variable rounded down, so its inverse CDF has a closed form and needs no table of weights.
    A fixed bijection spreads the popularity ranks over the table, so that popular ids are not neighbours; ids that are
    ``by_frequency`` keep them, as a vocabulary does.
    """

    def __init__(self, rows: int, exponent: float, *, by_frequency: bool = False) -> None:
        if exponent <= 1:
            raise ValueError(f"the Zipf exponent must be above 1: got {exponent}; 1.05 to 1.2 is usual for click logs")
        if rows < 1:
            raise ValueError(f"a table must have at least one row to draw ids from: got {rows}; count its ids first")
        self.rows = rows
        self._power = 1.0 - exponent
        self._mass = 1.0 - (rows + 1.0) ** self._power
        self._multiplier = 1 if by_frequency else scattering(rows)

    def ids(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """The ids at these points of the CDF, each point in [0, 1)."""
        ids = np.empty(uniforms.shape, np.int64)
        positions = np.power(1.0 - uniforms * self._mass, 1.0 / self._power)
        fill_ids(positions.reshape(-1), self.rows, self._multiplier, ids.reshape(-1))
        return ids

    def scatter(self, rank: NDArray[np.int64]) -> NDArray[np.int64]:
        """The id of each popularity rank, 0 the most popular: a bijection of [0, rows)."""
        return rank * self._multiplier % self.rows

    def probabilities(self) -> NDArray[np.float64]:
        """The exact probability of every id: (rows,)."""
        edges = (1.0 - np.arange(1, self.rows + 2, dtype=np.float64) ** self._power) / self._mass
        result = np.empty(self.rows)
        result[self.scatter(np.arange(self.rows))] = np.diff(edges)
        return result
