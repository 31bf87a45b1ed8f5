"""How far chance moves the difference of a metric between two models that score the same rows.

Both models meet the same easy and hard rows, so their difference varies much less than each of the metrics does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from dlrm_torchrec.train.metrics.leave_one_out import HeldOut, gains_of_users
from dlrm_torchrec.train.metrics.scores import Scores

_LEAST = 1e-12  # a probability whose logarithm is taken, as in ``train.metrics.binary``


def standard_errors(
    metrics: Mapping[str, float], metric: str, before: Scores, after: Scores, *, labels: Sequence[str]
) -> dict[str, float]:
    """The standard error of the change of ``metric`` of each label that has it, by its name in ``metrics``.

    It is that of a fall of ``auc`` (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, for two correlated curves),
    of a rise of ``rmse`` as a share of it, and of a rise of ``logloss`` in nats. Weights count as shares of rows.

    Args:
        metrics: those of ``train.metrics.labels.label_metrics``
        metric: auc, rmse or logloss
        before: outputs of the first model, probabilities (N, L) or numbers, labels and weights of all rows
        after: the same with the outputs of the second model
        labels: the names of the labels
    """
    found: dict[str, float] = {}
    for number, label in enumerate(labels):
        names = [f"{label}/{metric}", *([metric] if number == 0 else [])]
        if known := [name for name in names if name in metrics]:
            found |= dict.fromkeys(known, _of_label(metric, before.of_label(number), after.of_label(number)))
    return found


def standard_error_of_ndcg(before: HeldOut, after: HeldOut) -> float:
    """That of a fall of NDCG@10 between two models that rank the items of the same users."""
    _, change = gains_of_users(after) - gains_of_users(before)
    return math.sqrt(_variance_of_mean(change, torch.ones_like(change)))


def _of_label(metric: str, before: Scores, after: Scores) -> float:
    labels = before.labels.double()
    weights = torch.ones_like(labels) if before.weights is None else before.weights.double()
    if metric == "auc":
        change = _places(after.outputs, labels, weights) - _places(before.outputs, labels, weights)
        classes = [labels > 0.5, labels <= 0.5]
        return math.sqrt(sum(_variance_of_mean(change[rows], weights[rows]) for rows in classes))
    terms = _squares if metric == "rmse" else _entropies
    change = terms(after.outputs, labels, weights) - terms(before.outputs, labels, weights)
    return math.sqrt(_variance_of_mean(change, weights))


def _places(outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The share of the rows of the other class that each row (N,) is ordered rightly with; half of it for equals."""
    values, place = torch.unique(outputs, return_inverse=True)
    positive, negative = (
        torch.zeros_like(values, dtype=torch.float64).index_add_(0, place, part)
        for part in (weights * labels, weights * (1 - labels))
    )
    below = (negative.cumsum(0) - negative / 2) / negative.sum()
    above = 1 - (positive.cumsum(0) - positive / 2) / positive.sum()
    return torch.where(labels > 0.5, below[place], above[place])


def _squares(outputs: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The terms (N,) of the logarithm of the RMSE, to first order around it."""
    squares = (outputs - labels).square()
    return squares * weights.sum() / (2 * (weights * squares).sum())


def _entropies(outputs: torch.Tensor, labels: torch.Tensor, _weights: torch.Tensor) -> torch.Tensor:
    chance = outputs.clamp(_LEAST, 1 - _LEAST)
    return -(labels * chance.log() + (1 - labels) * (1 - chance).log())


def _variance_of_mean(terms: torch.Tensor, weights: torch.Tensor) -> float:
    """The variance of the weighted mean of independent ``terms`` (n,); 0 for a single one, which says nothing of it."""
    total = weights.sum()
    deviations = terms - (weights * terms).sum() / total
    variance = (weights * deviations).square().sum() / total**2
    return float(variance) * len(terms) / max(len(terms) - 1, 1)
