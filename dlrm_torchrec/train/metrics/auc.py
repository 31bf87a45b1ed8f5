"""The area under the ROC curve, with weights and exact for equal scores."""

from __future__ import annotations

import torch


def weighted_auc(scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """The share of pairs of a positive and a negative in which the positive has the higher score.

    A pair counts with the product of its weights, and half of it if the scores are equal.

    Args:
        scores: (N,), of any float type
        labels: (N,), 0 or 1
        weights: (N,) float64, at least 0
    """
    _, place = torch.unique(scores, return_inverse=True)  # sorted, so a higher place is a higher score
    groups = int(place.max()) + 1
    positive, negative = (
        torch.zeros(groups, dtype=torch.float64).index_add_(0, place, part)
        for part in (weights * labels, weights * (1 - labels))
    )
    below = negative.cumsum(0) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))
