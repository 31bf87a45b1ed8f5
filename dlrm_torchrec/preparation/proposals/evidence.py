"""How much of a label one column explains, measured out of fold on a sample: evidence for what the column is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PRIOR_ROWS = 10  # a class counts as if it had so many more rows with the mean label
_ROWS_PER_BUCKET = 100
_BUCKETS = 64


@dataclass(frozen=True)
class Comparison:
    """Shares of the label's variance that a column explains by its exact values and by its size."""

    by_value: float
    by_size: float
    errors: float  # the difference in standard errors; positive if exact values explain more


def compare(values: Floats, labels: Floats) -> Comparison:
    """How much of the labels (N,) is explained by numbers (N,), NaN for missing, as names and as quantities.

    Each half of the rows is predicted from the other half: by the mean label of the same value, and by the mean label
    of the same quantile bucket. Both means are drawn towards the mean of all.
    """
    _, exact = np.unique(values, return_inverse=True)
    half = np.arange(len(values)) % 2 == 0
    by_value, by_size = np.empty(len(values)), np.empty(len(values))
    for train in (half, ~half):
        known = np.unique(values[train & ~np.isnan(values)])
        shares = np.linspace(0, 1, _buckets(len(values)) + 1)[1:-1]
        bounds = np.unique(np.quantile(known, shares)) if len(known) else known
        sizes = np.where(np.isnan(values), 0, 1 + np.searchsorted(bounds, values, side="right")).astype(np.int64)
        by_value[~train] = _means(exact, labels, train)[exact[~train]]
        by_size[~train] = _means(sizes, labels, train)[sizes[~train]]
    spread = float(labels.var()) or 1.0
    gain = np.square(by_size - labels) - np.square(by_value - labels)
    error = float(gain.std()) / math.sqrt(len(gain))
    return Comparison(
        by_value=1 - float(np.square(by_value - labels).mean()) / spread,
        by_size=1 - float(np.square(by_size - labels).mean()) / spread,
        errors=float(gain.mean()) / error if error else 0.0,
    )


def separation(values: Floats, labels: npt.NDArray[np.bool_]) -> float:
    """The AUC of a number (N,) for labels (N,), or of its negative if that is more; NaN counts as the smallest."""
    ranked = np.where(np.isnan(values), -np.inf, values)
    _, place, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return 0.5
    auc = (float(ranks[labels].sum()) - positives * (positives + 1) / 2) / (positives * negatives)
    return max(auc, 1 - auc)


def _buckets(rows: int) -> int:
    return min(_BUCKETS, max(2, rows // _ROWS_PER_BUCKET))


def _means(codes: Ints, labels: Floats, rows: npt.NDArray[np.bool_]) -> Floats:
    """The mean label of each code in some rows."""
    count = np.bincount(codes[rows], minlength=int(codes.max()) + 1)
    total = np.bincount(codes[rows], weights=labels[rows], minlength=len(count))
    means: Floats = (total + _PRIOR_ROWS * labels[rows].mean()) / (count + _PRIOR_ROWS)
    return means
