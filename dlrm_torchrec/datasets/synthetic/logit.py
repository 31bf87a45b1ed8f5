"""Three terms of a row become P(label = 1): each gets a fixed share of the logit's variance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Shares of the logit's variance: of the dense columns alone, the ids alone, and both together.
_SHARES = np.array([0.30, 0.55, 0.15])
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Logit:
    """The scaled sum of the terms of a row, shifted by ``bias``."""

    mean: Floats  # (3, 1), of each term
    scale: Floats  # (3, 1)
    bias: float

    @classmethod
    def of(cls, terms: Floats, *, positive_rate: float, logit_std: float) -> Logit:
        """The logit that has this standard deviation and this rate of positives on the rows of ``terms`` (3, n)."""
        if not 0 < positive_rate < 1:
            raise ValueError(f"positive_rate must be in (0, 1): got {positive_rate}; 0.25 is usual for click logs")
        if logit_std <= 0:
            raise ValueError(f"logit_std must be positive: got {logit_std}; 1.75 gives an AUC of about 0.85")
        mean = terms.mean(axis=1, keepdims=True)
        spread = terms.std(axis=1, keepdims=True)
        # A constant term is left out, for example if there are no dense columns.
        scale = np.where(spread > 0, _SHARES[:, None] ** 0.5 / np.maximum(spread, _TINY), 0.0)
        scale *= logit_std / max(_logits(terms, mean, scale).std(), _TINY)
        return cls(mean, scale, _bias_for_rate(_logits(terms, mean, scale), positive_rate))

    def probabilities(self, terms: Floats) -> Floats:
        """P(label = 1) of every row: (3, n) gives (n,)."""
        return _sigmoid(self.bias + _logits(terms, self.mean, self.scale))


def _logits(terms: Floats, mean: Floats, scale: Floats) -> Floats:
    logits: Floats = (scale * (terms - mean)).sum(axis=0)
    return logits


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _bias_for_rate(logits: Floats, rate: float) -> float:
    """The shift that makes the mean probability equal to ``rate``, found by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logits + middle).mean() < rate else (low, middle)
    return (low + high) / 2
